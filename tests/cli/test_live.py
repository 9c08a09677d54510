"""What a run shows while it goes: on real terminals of several widths, on pipes, and where nobody can read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from autoft.cli import live
from autoft.cli.event_words import fitted, gpu_parts, lines, step_parts, wrapped
from autoft.cli.live import Display
from autoft.cli.sparkline import Curve
from autoft.trainer.events import Evaluated, Event, Finished, Note, Progress, Recovered, Rehearsed, Resumed, Stage
from autoft.trainer.result import Evaluation
from tests.cli.runner import events, step
from tests.cli.terminal import plain, read_terminal, terminal
from tests.profiles.conftest import FakeDriver, compiled

GIB = 2**30


def shown(width: int, act: Callable[[Display], None], **changes: int) -> str:
    """What a real terminal of that width gets to see."""
    with terminal(width) as (ours, theirs):
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(read_terminal(ours)))
        reader.start()
        with os.fdopen(os.dup(theirs), "w", encoding="utf-8") as file:
            os.close(theirs)
            with Display(Console(file=file, width=width, highlight=False), 10 * GIB, **changes) as display:
                act(display)
        reader.join()
    return seen[0]


@pytest.fixture(autouse=True)
def a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("width", [40, 70, 100, 200])
def test_all_of_a_step_is_there_and_fits(width: int) -> None:
    def act(display: Display) -> None:
        for event in [*events("begin"), *map(step, range(1, 8))]:
            display(event)

    text = shown(width, act, total_tokens=40_960)
    found = plain(text)
    assert max(map(len, found)) <= width
    words = " ".join(" ".join(found).split())
    for part in ("70%", "28,672 of 40,960 tokens", "step 7 of 10", "this step 0.286"):
        assert part in words
    for part in ("learning rate 0.0002", "gradient norm 0.83", "1,234 tokens/s", "812 trained", "1,500 with padding"):
        assert part in words
    for part in ("8.0 GiB now", "peak 9.0 GiB", "10.0 GiB predicted", "12 min to 15 min left", "in 3 min", "█▅▄▃▂▁▁"):
        assert part in words
    assert "GPU" not in words


def test_the_picture_is_drawn_a_few_times_a_second_however_many_steps_there_are() -> None:
    def act(display: Display) -> None:
        for number in range(1, 3001):
            if number == 1:
                display(Stage(name="train"))
            display(step(number, total=5000))

    text = shown(100, act)
    assert "step 3,000 of 5,000" in text
    assert text.count("Memory") < 30


def test_a_cursor_is_always_left_and_what_was_shown_last_stays_after_ctrl_c() -> None:
    def act(display: Display) -> None:
        for event in [Stage(name="train"), step(4)]:
            display(event)
        raise KeyboardInterrupt

    seen: list[str] = []

    def interrupted() -> None:
        with terminal(80) as (ours, theirs), os.fdopen(os.dup(theirs), "w", encoding="utf-8") as file:
            with pytest.raises(KeyboardInterrupt), Display(Console(file=file, width=80)) as display:
                act(display)
            file.close()
            os.close(theirs)
            seen.append(read_terminal(ours))

    interrupted()
    after_the_last_picture = seen[0][seen[0].rindex("Training") :]
    assert "step 4 of 10" in after_the_last_picture
    assert "\x1b[2K" not in after_the_last_picture  # nothing of it is wiped
    assert seen[0].rindex("\x1b[?25h") > seen[0].rindex("\x1b[?25l")


def test_without_color_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(80, lambda display: [display(event) for event in (Stage(name="train"), step(1))] and None)
    assert not [code for code in ("\x1b[3", "\x1b[9", "\x1b[4") if code in text]


def test_a_terminal_that_takes_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-S: nobody reads, its buffer is full after a few pictures."""
    monkeypatch.setattr(live, "PATIENCE_S", 0.1)
    with terminal(100) as (_, theirs), os.fdopen(os.dup(theirs), "w", encoding="utf-8") as file:
        with Display(Console(file=file, width=100, highlight=False)) as display:
            display(Stage(name="train"))
            for number in range(live.MOST_WAITING + 100):
                display(Note(text=f"{number} and some more words"))
                display(step(1 + number % 9))
        assert display._painter.is_alive()
        assert len(display._lines) <= live.MOST_WAITING
        os.set_blocking(theirs, False)  # so that closing it holds up nobody either


GONE = """
import os, signal, sys, time
from pathlib import Path
from autoft import render
from autoft.cli.live import Display
from tests.cli.runner import events, step
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Display(render.console(stderr=True), 10 * 2**30) as display:
    for event in events("begin"):
        display(event)
    number = 0
    while not display.broken:
        number += 1
        display(step(number % 10 + 1))
        time.sleep(0.01)
    display(events("note")[0])
render.console(stderr=True).print("a word to stderr")
print("a word to stdout", flush=True)
Path(sys.argv[1]).write_text("the run went on")
sys.exit(4)
"""


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_a_terminal_that_is_closed_does_not_end_the_run(tmp_path: Path, where: str) -> None:
    ours, theirs = os.openpty() if where == "terminal" else os.pipe()
    words = [sys.executable, "-c", GONE, str(tmp_path / "out")]
    stdin = theirs if where == "terminal" else subprocess.DEVNULL
    with subprocess.Popen(words, stdin=stdin, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        os.read(ours, 100)
        os.close(ours)
        assert process.wait(timeout=60) == 4  # not the 120 of output that could not be flushed
    assert (tmp_path / "out").read_text() == "the run went on"


PLAIN = """
import faulthandler, sys, time
faulthandler.dump_traceback_later(50)
from autoft import render
from autoft.cli.live import Display
from autoft.trainer.events import Progress
from tests.cli.runner import events, step
with Display(render.console(stderr=True), as_json="json" in sys.argv, gpu="gpu" in sys.argv) as display:
    for event in [*events("begin"), Progress(done=1, total=2), Progress(done=2, total=2)]:
        display(event)
    while "gpu" in sys.argv and display._gpu is None:
        time.sleep(0.01)
    for number in range(1, 11):
        display(step(number))
    for word in ("save", "finish"):
        display(events(word)[0])
"""


def run_plain(*words: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


def test_without_a_terminal_it_is_a_line_a_while() -> None:
    found = run_plain(FORCE_COLOR="1")
    assert found[3:] == [
        "Training 40 rows",
        "2/2 answers",
        "step 10/10, loss 0.200, 1,234 tokens/s, 8.0 GiB, peak 9.0 GiB of 10.0 GiB predicted",
        "Checkpoint at step 3: 12 MiB in 0.5 s",
        "Finished: 10 steps in 30 s",
    ]


def test_json_is_the_lines_of_the_record() -> None:
    found = [json.loads(line) for line in run_plain("json")]
    names = ["stage", "rehearsed", "evaluated", "stage", *["step"] * 10, "saved", "finished"]
    assert [each["event"] for each in found] == names


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    with Display(Console(file=sys.stderr, width=40)) as display:
        display(Stage(name="train"))
        for number in range(1, 9):
            clock[0] += 4
            display(step(number))
    assert capsys.readouterr().err.splitlines() == [
        "Training",
        "step 3/10, loss 0.667",
        "step 6/10, loss 0.333",
    ]


def test_the_gpu_is_looked_at_beside_the_run(tmp_path: Path) -> None:
    driver: FakeDriver = compiled(tmp_path)
    env = driver.environment("laptop", COLUMNS="300", AUTOFT_DRIVER_TIMEOUT_S="40")
    line = next(line for line in run_plain("gpu", **env) if line.startswith("step 10"))
    assert "GPU busy 12%, 35 of 115 W, 61 C, slowed by power limit, heat (software)" in line


def test_a_driver_that_was_too_slow_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in compiled(tmp_path).environment("laptop", AUTOFT_DRIVER_TIMEOUT_S="0.001").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(live, "ASK_AGAIN_AFTER_S", (0.1,) * 600)
    with Display(Console(file=sys.stderr, width=40), gpu=True) as display:
        time.sleep(0.5)
        assert display._gpu is None
        monkeypatch.setenv("AUTOFT_DRIVER_TIMEOUT_S", "30")
        last = time.monotonic() + 60
        while display._gpu is None and time.monotonic() < last:
            time.sleep(0.01)
        assert display._gpu is not None
        assert display._gpu["busy_percent"] == 12


def test_without_a_gpu_there_is_nothing_of_it() -> None:
    assert gpu_parts(None) == []
    unknown = dict.fromkeys(("power_w", "power_limit_w", "busy_percent", "temperature_c", "throttle"))
    assert gpu_parts(unknown) == []
    assert gpu_parts({**unknown, "power_w": 35.0, "throttle": ("idle",)}) == ["35 W"]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Note(text="so it is", warning=True), "Warning: so it is"),
        (
            Rehearsed(micro_batch=1, tokens=512, peak_bytes=GIB, predicted_bytes=None, seconds=1.0),
            "Probe step, 1 row, 512 tokens: 1.0 GiB, took 1.0 s",
        ),
        (
            Recovered(step=0, change="micro_batch", micro_batch=2, reason="CUDA out of memory"),
            "Out of memory in the probe step (CUDA out of memory): going on with micro-batches of 2 rows",
        ),
        (
            Recovered(step=12, change="gradient_checkpointing", micro_batch=1, reason="CUDA out of memory"),
            "Out of memory at step 12 (CUDA out of memory): going on with gradient checkpointing, "
            "micro-batches of 1 row",
        ),
        (
            Evaluated(when="during", step=50, evaluation=Evaluation(rows=1, loss=0.5, number_match=0.25), best=True),
            "Evaluated at step 50: loss 0.500, last number right 25.0%, the best so far (1 held-out row, 0 ms)",
        ),
        (Finished(steps=1200, seconds=7200), "Finished: 1,200 steps in 2.0 h"),
    ],
)
def test_what_happens_is_a_line(event: Event, line: str) -> None:
    assert lines(event) == [line]


def test_checkpoints_that_were_skipped_are_named() -> None:
    assert lines(Resumed(step=1000, skipped=("step-00001100: a file is cut short",))) == [
        "Going on from step 1,000",
        "Skipped: step-00001100: a file is cut short",
    ]
    assert lines(Progress(done=1, total=2)) == []


def test_a_gradient_that_overflowed_has_no_norm() -> None:
    from dataclasses import replace

    assert "gradient overflowed" in step_parts(replace(step(1), grad_norm=None), None, None)


def test_parts_are_left_out_or_wrapped_whole() -> None:
    parts = ["one", "two", "three"]
    assert fitted(parts, 8) == "one, two"
    assert fitted(parts, 2) == "one"
    assert wrapped(parts, 8) == ["one, two", "three"]
    assert wrapped(parts, 100) == ["one, two, three"]


def test_the_curve_is_of_the_whole_run_and_of_bounded_size() -> None:
    curve = Curve()
    assert (curve.now, curve.line(10)) == (None, "")
    for number in range(5000):
        curve.add(5000.0 - number)
        curve.add(float("nan"))
    assert curve.line(8) == "█▇▆▅▄▃▂▁"
    assert curve.line(8, ascii_only=True) == "#%*+=-._"
    assert curve.now == pytest.approx(1 + 19, rel=1e-3)  # a mean that is twenty steps behind
    assert len(curve._points) < 512
    flat = Curve()
    for _ in range(3):
        flat.add(0.5)
    assert (flat.now, flat.line(8)) == (pytest.approx(0.5), "▁▁▁")
