"""What commands show, as it looks at 40, 80 and 120 columns: a change of words is a change of these files.

`AUTOFT_GOLDEN=1 python -m pytest tests/cli/test_screens.py` writes golden/screens/*.txt again: look at what git shows.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import write_jsonl

GOLDEN = Path(__file__).parent / "golden" / "screens"
MODEL, CARD = "smollm2-135m", ("--gpu", "rtx-3060", "--seq-len", "256")
COMMANDS: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "help-plan": ("plan", "--help"),
    "help-run": ("run", "--help"),
    "help-fit": ("fit", "--help"),
    "help-export": ("export", "--help"),
    "help-settings": ("plan", "--help-settings"),
    "data-check": ("data", "check", "{data}"),
    "preset": ("profiles", "presets", "show", "edge"),
}
SLOW_COMMANDS = {"estimate": ("estimate", MODEL, *CARD), "compare": ("compare", MODEL, *CARD)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one of several things to say of: an empty answer, a copy, a tag, a row that is long."""
    rows = [{"prompt": f"Where is order {n}?", "completion": f"Order {n} arrives on day {n % 7}."} for n in range(40)]
    rows += [rows[3], {"prompt": "Nothing?", "completion": ""}, {"prompt": "<b>Bold</b>?", "completion": "Yes. " * 300}]
    return write_jsonl(tmp_path_factory.mktemp("data") / "orders.jsonl", rows)


def check(name: str, width: int, text: str) -> None:
    shown = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    file = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("AUTOFT_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_screen_looks_as_it_did(autoft, monkeypatch, data, name: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(data.parent)
    done = autoft(*(word.format(data=data.name) for word in COMMANDS[name]))
    assert done.code in (0, 2), done.err
    check(name, width, done.out)


@pytest.mark.parametrize("name", SLOW_COMMANDS)
def test_the_screen_of_a_rehearsal_looks_as_it_did(autoft, monkeypatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = autoft(*SLOW_COMMANDS[name])
    assert done.code == 0, done.err
    check(name, 80, done.out)
