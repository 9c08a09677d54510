"""The output folder: whole or unfinished, never half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.errors import DataError, OutputError, Resumable, TrainingError
from autoft.trainer.storage.checkpoint import digest_of_values
from autoft.trainer.storage.ownership import CHECKPOINTS, RESULT, RUN
from autoft.trainer.storage.run_folder import (
    check_disk,
    check_output,
    find_unfinished,
    free_name,
    output_folder,
    unfinished,
)

OLD = json.dumps({"autoft_version": "0.1.0", "artifacts": {"adapter_model.safetensors": "00"}})


def finished_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(OLD)
    (folder / "adapter_model.safetensors").touch()
    return folder


def about(folder: Path) -> None:
    """As `run` writes it first of all."""
    kept = {"run_id": "1", "started_in": "/", "predicted": None}
    (folder / RUN).write_text(json.dumps({**kept, "sha256": digest_of_values(kept)}))


def run_that_fails(out: Path, error: BaseException, *, force: bool = False, first: str = "") -> None:
    with output_folder(out, force=force) as folder:
        (folder / first).mkdir(parents=True, exist_ok=True)
        raise error


def test_a_run_becomes_the_folder_only_when_it_ends_well(tmp_path):
    out = tmp_path / "runs" / "one"
    with output_folder(out, force=False) as folder:
        assert folder == unfinished(out) == tmp_path / "runs" / "one.unfinished"
        (folder / RESULT).write_text("new")
        assert not out.exists()
    assert (out / RESULT).read_text() == "new"
    assert [p.name for p in out.parent.iterdir()] == ["one"]


FAILURES = [TrainingError("it diverged"), KeyboardInterrupt(), OSError("disk gone"), DataError("a row is empty")]


@pytest.mark.parametrize("error", FAILURES)
def test_a_run_that_fails_after_its_first_checkpoint_stays_and_is_not_started_over(tmp_path, error):
    out = tmp_path / "out"
    with pytest.raises(type(error)):
        run_that_fails(out, error, first=f"{CHECKPOINTS}/step-00000000")
    assert [p.name for p in tmp_path.iterdir()] == ["out.unfinished"]
    assert {find_unfinished(out), find_unfinished(unfinished(out))} == {out}
    with pytest.raises(OutputError, match="holds an unfinished run") as refused:
        check_output(out, force=False)
    assert f"autoft resume {out}" in str(refused.value.fix)
    with output_folder(out, force=True) as folder:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", FAILURES)
def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        run_that_fails(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_only_an_unfinished_run_is_resumed(tmp_path):
    with pytest.raises(OutputError, match="nothing to resume"):
        find_unfinished(finished_run(tmp_path / "done"))
    with pytest.raises(OutputError, match="no unfinished run"):
        find_unfinished(tmp_path / "none")
    unfinished(tmp_path / "early").mkdir()
    with pytest.raises(OutputError, match="no checkpoint"):
        find_unfinished(tmp_path / "early")


def test_a_stale_unfinished_folder_is_cleared(tmp_path):
    unfinished(tmp_path / "out").mkdir()
    about(unfinished(tmp_path / "out"))
    (unfinished(tmp_path / "out") / "plan.toml").touch()
    with output_folder(tmp_path / "out", force=False) as folder:
        assert list(folder.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out", force=False) as folder:
        (folder / RESULT).touch()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / RESULT).exists()


def test_a_finished_run_is_kept_without_force(tmp_path):
    out = finished_run(tmp_path / "out")
    with pytest.raises(OutputError, match="holds a finished run") as refused, output_folder(out, force=False):
        pass
    assert "--force" in str(refused.value.fix)
    assert (out / RESULT).read_text() == OLD


def test_force_replaces_a_finished_run_at_the_end_and_not_before(tmp_path):
    out = finished_run(tmp_path / "out")
    with output_folder(out, force=True) as folder:
        (folder / RESULT).write_text("new")
        assert (out / RESULT).read_text() == OLD
    assert (out / RESULT).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_forced_run_that_fails_leaves_the_finished_one(tmp_path):
    out = finished_run(tmp_path / "out")
    with pytest.raises(TrainingError):
        run_that_fails(out, TrainingError("it diverged"), force=True)
    assert (out / RESULT).read_text() == OLD


def test_force_does_not_replace_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="a folder with other files in it"):
        check_output(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", [".", "", "..", "../.."])
def test_the_current_folder_and_those_around_it_are_refused(tmp_path, monkeypatch, name):
    """Even with a result.json and --force: the shell stands in it."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    for folder in (inside, inside.parent, tmp_path):
        (folder / RESULT).touch()
    monkeypatch.chdir(inside)
    with pytest.raises(OutputError, match="the folder that you are in"):
        check_output(Path(name), force=True)


def test_a_file_and_a_dangling_link_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="a file, not a folder"):
            check_output(tmp_path / name, force=True)


def test_a_folder_that_cannot_be_written_is_refused():
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, the one place that even root cannot write to")
    with pytest.raises(OutputError) as refused:
        check_output(Path("/proc/run"), force=False)
    assert refused.value.what == "/proc/run: /proc cannot be written to"


def test_an_unwritable_folder_of_somebody_else_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            check_output(tmp_path / "out", force=False)
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_without_room_is_refused(tmp_path):
    check_disk(tmp_path / "not" / "yet", 0, "the run")
    with pytest.raises(OutputError) as refused:
        check_output(tmp_path / "out", force=False, needed_bytes=2**60)
    needed = "the run needs 1,099,511,627,776 MiB, its disk has"
    assert needed in refused.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "README.md", "checkpoints/step-00000001/state.json", "a/b/c"])
@pytest.mark.parametrize("folder", ["notes.unfinished", ".notes.replaced"])
def test_a_folder_under_such_a_name_that_no_run_has_made_is_left_alone(tmp_path, folder, name, force):
    kept = tmp_path / folder / name
    kept.parent.mkdir(parents=True)
    kept.write_text("years")
    with pytest.raises(OutputError, match=f"did not write {name}|unfinished run") as refused:
        check_output(tmp_path / "notes", force=force)
    assert folder in refused.value.what or "unfinished run" in refused.value.what
    assert kept.read_text() == "years"


def test_force_leaves_a_folder_with_the_result_of_another_tool(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / RESULT).write_text('{"accuracy": 0.9}')
    with pytest.raises(OutputError, match="a folder with other files in it"):
        check_output(tmp_path, force=True)
    assert {p.name for p in tmp_path.iterdir()} == {"src", RESULT}


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/notes.txt", "tensorboard/notes.txt", "sub/notes.txt"])
def test_what_a_user_has_put_into_a_finished_run_stops_its_replacement(tmp_path, name):
    out = finished_run(tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).touch()
    with pytest.raises(OutputError, match=f"did not write {name}"):
        check_output(out, force=True)
    assert (out / name).exists()


def test_what_a_user_puts_there_meanwhile_stays_and_the_run_is_kept_beside_it(tmp_path):
    out = finished_run(tmp_path / "out")

    def run_while_somebody_writes() -> None:
        with output_folder(out, force=True) as folder:
            about(folder)
            (folder / RESULT).write_text(OLD)
            (out / "notes.txt").touch()

    with pytest.raises(Resumable, match=r"did not write notes\.txt"):
        run_while_somebody_writes()
    assert (out / "notes.txt").exists()
    assert (unfinished(out) / RESULT).exists()


def test_what_a_user_puts_into_a_run_that_fails_stays(tmp_path):
    def run_that_somebody_writes_into() -> None:
        with output_folder(tmp_path / "out", force=False) as folder:
            about(folder)
            (folder / "plan.toml").touch()
            (folder / "notes.txt").touch()
            raise DataError("a row is empty")

    with pytest.raises(DataError):
        run_that_somebody_writes_into()
    assert [p.name for p in unfinished(tmp_path / "out").iterdir()] == ["notes.txt"]


def test_what_a_link_leads_to_is_not_removed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "plan.toml").touch()
    (tmp_path / "out.unfinished").mkdir()
    about(tmp_path / "out.unfinished")
    (tmp_path / "out.unfinished" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="did not write checkpoints"):
        check_output(tmp_path / "out", force=True)
    assert (tmp_path / "elsewhere" / "plan.toml").exists()


def test_files_that_systems_leave_everywhere_do_not_stop_a_replacement(tmp_path):
    out = finished_run(tmp_path / "out")
    (out / ".DS_Store").touch()
    (out / "Thumbs.db").touch()
    with output_folder(out, force=True) as folder:
        (folder / RESULT).write_text("new")
    assert [p.name for p in out.iterdir()] == [RESULT]


def test_a_file_under_the_name_of_the_lock_is_left_alone(tmp_path):
    (tmp_path / ".out.lock").write_text("versions")
    with pytest.raises(OutputError, match=r"\.out\.lock"):
        check_output(tmp_path / "out", force=True)
    assert (tmp_path / ".out.lock").read_text() == "versions"


def test_two_runs_do_not_write_one_folder(tmp_path):
    """The lock is held by a real other process, and goes with it."""
    out = tmp_path / "out"
    code = (
        "import pathlib, sys\n"
        "from autoft.trainer.storage.run_folder import output_folder\n"
        "from tests.trainer.test_output import about\n"
        "with output_folder(pathlib.Path(sys.argv[1]), force=False) as folder:\n"
        "    about(folder)\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another autoft run is writing there"), output_folder(out, force=False):
            pass
        assert (unfinished(out) / RUN).exists()
        other.kill()
    with output_folder(out, force=False) as folder:
        assert list(folder.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_free_name_passes_over_finished_and_unfinished_runs(tmp_path):
    assert free_name(tmp_path, "tiny") == tmp_path / "tiny"
    finished_run(tmp_path / "tiny")
    assert free_name(tmp_path, "tiny") == tmp_path / "tiny-2"
    (tmp_path / "tiny-2.unfinished").mkdir()
    assert free_name(tmp_path, "tiny") == tmp_path / "tiny-3"
