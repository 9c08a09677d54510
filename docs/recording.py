"""Write docs/run.svg: `autoft plan` and `autoft run` on the starter, filmed from a real terminal while they go.

    python docs/recording.py

It takes about two minutes on two cores, and a network if the starter model is not here yet. The figures are those of
this machine.
"""

from __future__ import annotations

import io
import os
import platform
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from autoft.home import home, write_text
from autoft.trainer.sources.starter import starter_folder

PICTURE = Path(__file__).parent / "run.svg"
SETTINGS = "--set max_steps=24 --set eval_rows=8"
COMMANDS = (f"autoft plan starter {SETTINGS}", f"autoft run {SETTINGS}")
WIDTH, HEIGHT = 80, 34
MOST_SCREENS = 12  # of one command
FIRST_S, EACH_S, LAST_S = 4.0, 0.9, 8.0
AT_REST_S = 0.1  # a terminal that has written nothing for so long shows a whole screen
TOKENS = re.compile(r"\x1b\[(?P<up>\d+)A|\x1b\[2K|\x1b\[\?25[hl]|\r|\n|(?P<text>(?:\x1b\[[\d;]*m|[^\x1b\r\n])+)")
CLOCK = re.compile(r"[\d.]+ (?:ms|s|min) so far")
SVG = """<svg viewBox="0 0 {width} VIEW_HEIGHT" xmlns="http://www.w3.org/2000/svg">
<title>autoft plan and autoft run on the starter</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px "Fira Code", Menlo, Consolas, monospace; }}
{styles}
FILM
</style>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
<svg x="9" y="10" width="{terminal_width}" height="SCREEN_HEIGHT"><g class="film">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
</svg>
"""


def screens(words: Sequence[str], env: dict[str, str], folder: Path) -> Iterator[list[str]]:
    """What a terminal shows each time that the command has written something: its rows, in ANSI colors.

    Raises: CalledProcessError where the command fails.
    """
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder) as process:
        os.close(theirs)
        written, shown = b"", 0
        while True:
            is_writing = select.select([ours], [], [], AT_REST_S)[0]
            if not is_writing and len(written) > shown:
                shown = len(written)
                yield rows_of(written.decode())
            chunk = read(ours) if is_writing else None
            if chunk == b"":
                break
            written += chunk or b""
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, written.decode())
    yield rows_of(written.decode())


def read(terminal: int) -> bytes:
    """What was written to it since; nothing where its last writer has gone."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says so
        return b""


def rows_of(written: str) -> list[str]:
    """A terminal's rows after it was sent this, none of them scrolled away, down to the last that is not empty.

    It knows what rich sends: rows cleared and written again, no cell by itself. Raises: ValueError at anything else.
    """
    if strange := TOKENS.sub("", written):
        raise ValueError(f"control sequence {strange[:20]!a} is not one of rich's")
    rows, at, begins = [""], 0, False
    for token in TOKENS.finditer(written):
        if token["up"]:
            at = max(0, at - int(token["up"]))
        elif token[0] == "\n":
            at += 1
            rows += [""] * (at == len(rows))
        elif token[0] == "\x1b[2K":
            rows[at] = ""
        elif token["text"]:
            rows[at] = token[0] if begins else rows[at] + token[0]
        begins = token[0] == "\r"
    while rows and not rows[-1]:
        rows.pop()
    return rows


def picked(shown: Sequence[list[str]], most: int) -> list[list[str]]:
    """At most `most` of the screens, evenly spread, with the last; none in which only the clock moved."""
    by_look = {CLOCK.sub("", "\n".join(rows)): rows for rows in shown}
    different = list(by_look.values())
    step = max(1.0, (len(different) - 1) / max(1, most - 1))
    places = sorted({round(len(different) - 1 - step * number) for number in range(min(most, len(different)))})
    return [different[place] for place in places]


def film(shown: Sequence[list[str]]) -> str:
    """The screens as one SVG, that shows one after another and fetches nothing.

    They stand below each other in one picture, and a window shows HEIGHT rows of it; the last where nothing may move.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for rows in shown:
        last = [*rows[-HEIGHT:], *[""] * (HEIGHT - len(rows))]
        console.print(Text("\n").join(Text.from_ansi(row) for row in last), no_wrap=True, overflow="crop")
    drawn = console.export_svg(code_format=SVG, unique_id="run")
    drawn = re.sub(r"<text[^>]*>\n</text>", "", drawn)  # ends of lines
    drawn = re.sub(r' clip-path="url\([^)]*\)"', "", drawn)
    (line_height,) = re.findall(r"font: [\d.]+px/([\d.]+)px", drawn)
    screen = HEIGHT * float(line_height)
    filled = {"FILM": motion(len(shown), screen), "VIEW_HEIGHT": f"{screen + 20:.1f}", "SCREEN_HEIGHT": f"{screen:.1f}"}
    for name, value in filled.items():
        drawn = drawn.replace(name, value, 1)  # the template comes before the text
    return "".join(f"{line.rstrip()}\n" for line in drawn.splitlines() if line.strip())


def motion(count: int, screen: float) -> str:
    """The CSS that shows `count` screens of that height, in pixels, in turn."""
    lasting = [FIRST_S, *[EACH_S] * (count - 2), LAST_S]
    total, at, stops = sum(lasting), 0.0, []
    for number, seconds in enumerate(lasting):
        stops.append(f"{at / total:.2%} {{ transform: translateY({-number * screen:.1f}px); }}")
        at += seconds
    still = f"transform: translateY({-(count - 1) * screen:.1f}px)"
    return f""".film {{ {still}; animation: film {total:.1f}s step-end infinite; }}
@keyframes film {{ {" ".join(stops)} }}
@media (prefers-reduced-motion: reduce) {{ .film {{ animation: none; }} }}"""


def filmed(folder: Path) -> list[list[str]]:
    """Screens of COMMANDS, one after the other in one terminal, run in `folder` with no history of earlier runs."""
    own_home = folder / "home"
    own_home.mkdir()
    (own_home / "models").symlink_to(home() / "models")
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    env |= {"AUTOFT_HOME": str(own_home), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    env |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    above, shown = [], []
    for line in COMMANDS:
        above.append(f"\x1b[1m$ {line}\x1b[0m")
        words = [sys.executable, "-m", *line.split()]
        seen = picked(list(screens(words, env, folder)), MOST_SCREENS if line == COMMANDS[-1] else 1)
        shown += [[*above, *rows] for rows in seen]
        above = [*shown[-1], ""]
    return shown


def main() -> None:
    starter_folder(print)
    with tempfile.TemporaryDirectory() as name:
        drawn = film(filmed(Path(name)))
    for private in filter(None, (name, str(Path.home()), platform.node())):
        if private in drawn:
            sys.exit(f"{PICTURE.name}: not written, it would show {private}")
    write_text(PICTURE, drawn)


if __name__ == "__main__":
    main()
