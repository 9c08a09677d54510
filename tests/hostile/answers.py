"""What is expected of a refusal, and what was answered, by test, for the page that `make hostile` writes."""

from __future__ import annotations

import os

from tests.conftest import Done

ANSWERS: dict[str, str] = {}


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    """One Error line with all of `words`, one To fix line, no byte that would steer a terminal."""
    assert done.code == code, done.err[-2000:]
    lines = [line for line in done.err.splitlines() if line.startswith(("Error:", "To fix:"))]
    assert [line.split(":")[0] for line in lines] == ["Error", "To fix"], done.err
    assert "unexpected" not in done.err
    assert "Traceback" not in done.err
    assert "\x1b" not in done.out + done.err
    for word in words:
        assert word in " ".join(lines), done.err
    ANSWERS[os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")] = (
        f"{lines[0].removeprefix('Error: ')} (exit {code})"
    )
