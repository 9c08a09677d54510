"""docs/run.svg, and docs/recording.py, which films it: what a terminal shows, one screen after another, as one SVG."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "run.svg"
TEXT = "{http://www.w3.org/2000/svg}text"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="films a POSIX terminal")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("recording")


def lines_of(svg: str) -> list[str]:
    """The lines of text of an SVG, from above."""
    rows: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter(TEXT):
        place = float(text.attrib["y"])
        rows[place] = rows.get(place, "") + (text.text or "").replace("\xa0", " ")
    return [rows[place] for place in sorted(rows)]


def test_the_picture_shows_the_plan_then_the_run_then_its_result(recording: Any) -> None:
    text = "\n".join(lines_of(PICTURE.read_text(encoding="utf-8")))
    planned, run = (re.escape(f"$ {line}") for line in recording.COMMANDS)
    shown = [planned, "  Plan +LoRA", "Next: autoft run starter", run, r"Training +█+·+ \d+%", "One held-out message"]
    shown += ["loss, nats a token", "autoft chat runs/starter"]
    assert re.search(".+?".join(shown), text, re.DOTALL)


def test_the_picture_fetches_nothing_and_shows_no_path_of_a_machine() -> None:
    drawn = PICTURE.read_text(encoding="utf-8")
    assert len(drawn) < 200_000
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image|@font-face|@import", drawn) == []
    assert [line for line in lines_of(drawn) if re.search(r"(?<![\w.])/\w+/\w|[A-Z]:\\", line)] == []


def test_screens_are_those_of_the_terminal_while_the_command_goes(recording: Any, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "print(os.get_terminal_size().columns, sys.stdout.isatty())\n"
        "for number in 1, 2:\n"
        "    print(f'\\r\\x1b[2K\\x1b[1mstep {number}\\x1b[0m', end='', flush=True)\n"
        "    time.sleep(0.5)\n"
        "print('\\r\\x1b[2Kdone')\n"
    )
    shown = list(recording.screens([sys.executable, "-c", code], dict(os.environ), tmp_path))
    head = f"{recording.WIDTH} True"
    bold = [f"\x1b[1mstep {number}\x1b[0m" for number in (1, 2)]
    assert shown == [[head, bold[0]], [head, bold[1]], [head, "done"]]


def test_a_command_that_fails_is_not_filmed(recording: Any, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        list(recording.screens([sys.executable, "-c", "raise SystemExit('full')"], dict(os.environ), tmp_path))
    assert "full" in raised.value.output


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ("one\r\ntwo\r\n\r\n", ["one", "two"]),
        ("one\r\ntwo\r\x1b[1A\x1b[2Kthree\r\n", ["three", "two"]),
        ("50 %\r100 %", ["100 %"]),
        ("\x1b[?25lhidden\x1b[?25h", ["hidden"]),
    ],
)
def test_rows_are_cleared_and_written_again(recording: Any, written: str, rows: list[str]) -> None:
    assert recording.rows_of(written) == rows


def test_what_the_terminal_does_not_know_is_refused(recording: Any) -> None:
    with pytest.raises(ValueError, match="not one of rich's"):
        recording.rows_of("\x1b[5;3Hthere")


def test_screens_are_picked_evenly_and_none_for_the_clock_alone(recording: Any) -> None:
    shown = [[f"step {number}", f"Time {part} s so far"] for number in range(1, 10) for part in (1, 2.5)]
    assert [rows[0] for rows in recording.picked(shown, 3)] == ["step 1", "step 5", "step 9"]
    assert len(recording.picked(shown, 50)) == 9
    assert recording.picked(shown, 1) == [shown[-1]]


def test_a_film_has_a_stop_for_each_screen_and_cuts_what_scrolled_away(recording: Any) -> None:
    long = [f"row {number}" for number in range(recording.HEIGHT + 5)]
    drawn = recording.film([["<first> & \x1b[31mred\x1b[0m"], ["second"], long])
    assert lines_of(drawn) == ["<first> & red", "second", *long[5:]]
    stops = re.findall(r"[\d.]+% \{ transform: translateY\((-?[\d.]+)px\)", drawn)
    screen = recording.HEIGHT * 24.4
    assert [float(stop) for stop in stops] == pytest.approx([0, -screen, -2 * screen])
