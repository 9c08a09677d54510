"""events.jsonl: whole lines only, whatever happens to the disk or to the process that writes."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.trainer.events import Evaluated, Event, Note, Progress, Saved, Stage, Step
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation
from autoft.trainer.run.session import _Telling
from autoft.trainer.storage.event_log import EVENTS, KINDS, Recorder, as_line, read_events, read_from

JOB = Job(model="tiny", recipe=Recipe())


def step(number: int, **changes: float) -> Step:
    fields = {
        "loss": 1.0,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        "tokens_per_s": 10.0,
        "trained_tokens_per_s": 5.0,
        "padded_tokens_per_s": 12.0,
        "seconds_left_lower": 1.0,
        "seconds_left_upper": 2.0,
        "next_save_s": 1.0,
        "step_s": 1.0,
        **changes,
    }
    whole = {
        "total_steps": 10,
        "step_trained_tokens": 40,
        "tokens": 100 * number,
        "memory_bytes": 1,
        "peak_bytes": 2,
        "micro_batch": 4,
    }
    return Step(step=number, **whole, **fields)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    events: list[Event] = [
        Stage(name="train"),
        step(1),
        Evaluated(when="during", step=1, evaluation=Evaluation(rows=3, loss=0.5), best=True),
        Note(text="Grüße\nin two lines"),
    ]
    record = Recorder(path)
    for event in [*events, Progress(done=1, total=2)]:
        record(event)
    found = list(read_events(path))
    assert [each.event for each in found] == events
    assert [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        "stage",
        "step",
        "evaluated",
        "note",
    ]
    assert sorted(each.at for each in found) == [each.at for each in found]
    assert set(KINDS) >= {"stage", "step", "saved", "finished", "resumed"}


def test_lines_of_later_versions_and_half_ones_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    known = json.loads(as_line(Evaluated(when="after", step=2, evaluation=Evaluation(rows=1))))
    known["colour"] = "blue"
    known["evaluation"]["taste"] = 0.5
    later = json.dumps({"event": "teleported", "at": "2030-01-01T00:00:00+00:00", "where": "Mars"})
    wrong = json.dumps({"event": "saved", "at": "2030-01-01T00:00:00+00:00", "step": "three"})
    lines = [json.dumps(known), later, wrong, "no JSON", "[1]", "\udcff", as_line(Saved(step=1, bytes=2, seconds=0.5))]
    path.write_bytes("\n".join([*lines, '{"event": "st']).encode(errors="surrogateescape"))
    found = list(read_events(path))
    assert [type(each.event).__name__ for each in found] == ["Evaluated", "NoneType", "NoneType", "Saved"]
    _, offset = read_from(path, 0)
    with path.open("ab") as file:
        file.write(b"\n")
    assert read_from(path, offset)[0] == []  # the half line is whole now, and still none
    assert [each.line for each in found][1:3] == [later, wrong]


def test_a_run_that_goes_on_cuts_off_what_a_kill_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    Recorder(path)(step(1))
    whole = path.read_bytes()
    for torn in (b'{"event": "step", "at"', b"x" * 200_000):
        path.write_bytes(whole + torn)
        Recorder(path)(step(2))
        assert path.read_bytes().startswith(whole)
        assert [each.event for each in read_events(path)] == [step(1), step(2)]
    path.write_bytes(b"torn in its first line")
    Recorder(path)(step(3))
    assert [each.event for each in read_events(path)] == [step(3)]


def test_a_record_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    for number in range(3):
        Recorder(path)(step(number))
    _, offset = read_from(path, 0)
    path.unlink()
    Recorder(path)(step(7))
    assert [each.event for each in read_from(path, offset)[0]] == [step(7)]


def test_figures_that_are_no_numbers_stay_json() -> None:
    line = as_line(step(1, loss=float("nan"), next_save_s=float("inf")))
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["next_save_s"] is None


def test_a_folder_that_is_gone_for_a_while_is_told_once_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    said: list[str] = []
    record = Recorder(folder / EVENTS, said.append)
    record(step(1))
    folder.rename(tmp_path / "away")
    record(step(2))
    record(step(3))
    assert said == [f"{folder / EVENTS}: not written from here on: No such file or directory; the run goes on"]
    (tmp_path / "away").rename(folder)
    record(step(4))
    assert said[1:] == [f"{folder / EVENTS}: written again, 2 events left out"]
    assert [each.event for each in read_events(folder / EVENTS)] == [step(1), step(4)]


FULL = """
import resource, signal, sys
from pathlib import Path
from autoft.trainer.events import Note
from autoft.trainer.storage.event_log import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
record = Recorder(Path(sys.argv[1]), lambda text: print(text, flush=True))
record(Note(text="first"))
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size + 20, limits[1]))
for number in range(3):
    record(Note(text="no room"))
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
record(Note(text="last"))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit of a file's size")
def test_a_full_disk_leaves_whole_lines_and_a_run_that_goes_on(tmp_path: Path) -> None:
    """The system writes twenty bytes of a line and no more, as a disk does that gets full."""
    path = tmp_path / EVENTS
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert "not written from here on" in first
    assert second.endswith("written again, 3 events left out")
    assert [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()] == ["first", "last"]


KILLED = """
import sys
from pathlib import Path
from autoft.trainer.events import Note
from autoft.trainer.storage.event_log import Recorder
record = Recorder(Path(sys.argv[1]))
for number in range(10**9):
    record(Note(text=str(number) * 50))
    if number == 20: print("going", flush=True)
"""


def test_a_killed_writer_leaves_lines_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    texts = [each.event.text for each in read_events(path) if isinstance(each.event, Note)]
    assert texts == [str(number) * 50 for number in range(len(texts))]
    assert len(texts) > 20


def test_what_a_run_warns_of_is_shown_and_recorded(tmp_path: Path) -> None:
    seen: list[Event] = []
    tell = _Telling(tmp_path, JOB, seen.append)
    tell.warn("wandb is not told of the run any more")
    assert [each.event for each in read_events(tmp_path / EVENTS)] == seen
    assert seen == [Note(text="wandb is not told of the run any more", warning=True)]


def test_a_record_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    seen: list[Event] = []
    tell = _Telling(tmp_path / "gone", JOB, seen.append)
    tell.warn("one")
    tell.warn("two")
    assert [event.text.partition(":")[2][:12] or event.text for event in seen if isinstance(event, Note)] == [
        " not written", "one", "two",
    ]  # fmt: skip
