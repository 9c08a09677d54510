"""Regenerate the output blocks of README.md: what stands between `<!-- output of: NAME -->` and the block's end.

    python docs/readme_blocks.py            rewrites README.md
    python docs/readme_blocks.py --check    exits with 1 where README.md is not what the commands print

Every block is made from facts in the repository, so it is the same on every machine.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

os.environ.update({"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"})

from autoft.cli.main import main as autoft

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- output of: (?P<name>.+?) -->\n```text\n)(?P<text>.*?)(```\n)", re.DOTALL)


def command(line: str) -> str:
    """What `autoft ...` prints on stdout."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        autoft(line.split()[1:])
    return printed.getvalue()


def starter_result() -> str:
    """The end of the starter's run, as benchmarks/starter.py measured it."""
    from rich.console import Console

    from autoft.cli.show import show_result
    from autoft.trainer.result import RunResult

    record = json.loads((ROOT / "benchmarks/results/starter.json").read_text(encoding="utf-8"))
    printed = io.StringIO()
    show_result(RunResult.from_dict(record["result"]), "runs/starter", Console(file=printed, width=100))
    machine, seconds = record["machine"], record["seconds"]
    return f"{printed.getvalue()}The whole command: {seconds:.0f} s on {machine['cores']} cores ({machine['cpu']})\n"


OTHERS: dict[str, Callable[[], str]] = {"benchmarks/results/starter.json": starter_result}


def regenerated(text: str) -> str:
    """README.md with every block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        made = OTHERS[name]() if name in OTHERS else command(name)
        lines = "\n".join(line.rstrip() for line in made.rstrip().splitlines())
        return f"{match[1]}{lines}\n{match[4]}"

    return BLOCK.sub(block, text)


def main() -> None:
    old = README.read_text(encoding="utf-8")
    new = regenerated(old)
    if "--check" in sys.argv:
        sys.exit(0 if new == old else "README.md is not what the commands print: make readme")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
