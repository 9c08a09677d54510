"""`autoft watch` beside a process that takes the lock, writes the record and renames the folder as a run does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoft.cli.follow import Run, find
from autoft.errors import OptionError
from autoft.trainer.storage.event_log import EVENTS, Recorder
from autoft.trainer.storage.ownership import RESULT
from tests.cli.runner import events, step
from tests.cli.terminal import plain, read_terminal, terminal

RUNNER = Path(__file__).with_name("runner.py")
WATCH = [sys.executable, "-m", "autoft", "watch"]


class Told:
    """The process, and how it is told what happens next."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for word in words:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n"

    def end(self) -> int:
        """No more words: the folder gets its name."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)


@contextmanager
def running(out: Path) -> Iterator[Told]:
    words = [sys.executable, str(RUNNER), str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Told(process)
        finally:
            process.kill()


@contextmanager
def watching(*words: object) -> Iterator[subprocess.Popen[str]]:
    said = [*WATCH, *map(str, words)]
    with subprocess.Popen(said, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["event"])


def test_it_catches_up_follows_and_ends_with_the_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1")
        with watching(out, "--json") as watch:
            assert [next_event(watch) for _ in range(5)] == ["stage", "rehearsed", "evaluated", "stage", "step"]
            run.tell("2")
            assert next_event(watch) == "step"
            run.tell("3", "10")
            assert run.end() == 0
            assert not (tmp_path / "out.unfinished").exists()
            rest, errors = watch.communicate(timeout=60)
            assert (watch.returncode, errors) == (0, "")
    assert [json.loads(line)["step"] for line in rest.splitlines()] == [3, 10]


def test_a_finished_run_is_told_at_once(autoft, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1", "note", "10", "finish")
        assert run.end() == 0
    done = autoft("watch", tmp_path)  # the newest run of a folder
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "Loading tiny",
        "Probe step, 4 rows, 2,048 tokens: 9.0 GiB, predicted 10.0 GiB (-10.0%), took 2.0 s",
        "Evaluated before training: loss 2.500 (3 held-out rows, 0 ms)",
        "Training 40 rows",
        "Note: here is a note",
        "step 10/10, loss 0.200, 1,234 tokens/s, 8.0 GiB, peak 9.0 GiB of 10.0 GiB predicted",
        "Finished: 10 steps in 30 s",
    ]
    lines = autoft("watch", out, "--json").out
    assert lines == (out / EVENTS).read_text(encoding="utf-8")


def test_a_killed_run_is_told_with_the_way_to_go_on(autoft, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1", "2", "save")
        run.process.send_signal(signal.SIGKILL)
        run.process.wait(timeout=60)
        done = autoft("watch", tmp_path / "out.unfinished")
    assert done.code == 1
    assert done.err == (
        f"Error: {out}: the run ended at step 2 and did not say why: killed, or failed with an error in its own "
        f"terminal\nTo fix: autoft resume {out}\n"
    )
    assert "Checkpoint at step 3" in done.out


def test_a_stopped_run_is_told_when_it_is_over(autoft, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1", "save", "stop")
        run.process.wait(timeout=60)
        done = autoft("watch", out)
    assert done.code == 4
    assert "Stopped by SIGTERM, at step 3" in done.out
    assert done.out.endswith(f"Go on with: autoft resume {out}\n")


def test_a_run_that_replaces_another_is_not_taken_for_it(tmp_path: Path) -> None:
    out, anew = tmp_path / "out", tmp_path / "out.unfinished"
    out.mkdir()
    (out / RESULT).write_text("{}")
    Recorder(out / EVENTS)(events("finish")[0])
    assert [each.event for each in Run(out).news()] == events("finish")
    anew.mkdir()
    run = Run(out)
    assert (run.news(), run.is_finished()) == ([], False)
    Recorder(anew / EVENTS)(step(1))
    assert [each.event for each in run.news()] == [step(1)]


def test_ctrl_c_leaves_the_run_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1")
        with watching(out, "--json") as watch:
            next_event(watch)
            watch.send_signal(signal.SIGINT)
            _, errors = watch.communicate(timeout=60)
            assert (watch.returncode, errors) == (0, "")
        run.tell("2", "10", "finish")
        assert run.end() == 0


@pytest.mark.parametrize("words", [("--json",), ()])
def test_a_reader_that_has_seen_enough_ends_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    with running(out) as run:
        run.tell("begin", "1")
        with watching(out, *words) as watch:
            assert watch.stdout is not None
            assert watch.stderr is not None
            watch.stdout.readline()
            watch.stdout.close()
            run.tell("2", "note")
            assert watch.wait(timeout=60) == 0
            assert watch.stderr.read() == ""
        run.tell("10", "finish")


@pytest.mark.parametrize("width", [40, 100])
def test_on_a_terminal_it_fits(tmp_path: Path, width: int) -> None:
    out = tmp_path / "out"
    with running(out) as run, terminal(width) as (ours, theirs):
        run.tell("begin", *map(str, range(1, 6)))
        env = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen([*WATCH, str(out)], env=env, stdin=theirs, stdout=theirs, stderr=theirs) as watch:
            os.close(theirs)
            seen = read_terminal(ours, until="next checkpoint in 3 min")
            run.tell("finish")
            seen += read_terminal(ours)
            assert watch.wait(timeout=60) == 0
        lines = plain(seen)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for part in ("step 5 of 10", "learning rate 0.0002", "gradient norm 0.83", "812 trained", "1,500 with padding"):
        assert part in text
    for part in ("8.0 GiB now", "peak 9.0 GiB", "10.0 GiB predicted", "12 min to 15 min left", "█"):
        assert part in text


def test_which_run_is_meant(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, name in enumerate(("old", "new.unfinished", "older")):
        (runs / name).mkdir(parents=True)
        (runs / name / EVENTS).write_text("")
        age = (20, 10, 30)[number]
        os.utime(runs / name / EVENTS, (1_000_000 - age, 1_000_000 - age))
        os.utime(runs / name, (1_000_000 - age, 1_000_000 - age))
    (runs / "notes").mkdir()
    assert find(runs) == runs / "new"
    assert find(runs / "new") == runs / "new"
    assert find(runs / "new.unfinished") == runs / "new"
    assert find(runs / "old") == runs / "old"
    with pytest.raises(OptionError, match=r"odl: no such run\. Did you mean old, older\?"):
        find(runs / "odl")
    with pytest.raises(OptionError, match="notes: no run in it"):
        find(runs / "notes")


def test_where_no_run_is(autoft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = autoft("watch")
    assert (done.code, done.out) == (2, "")
    assert done.err == "Error: runs: no such run.\nTo fix: the folder that autoft run names\n"
    (tmp_path / "a file").write_text("")
    assert autoft("watch", "a file").code == 2
    for folder in (".", ".."):
        done = autoft("watch", folder)
        assert (done.code, "no run in it" in done.err) == (2, True)
    assert autoft("watch", "/").code == 2
