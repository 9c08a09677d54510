"""Small limits of the shell and names that are no UTF-8: a clear line or a finished run, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Done
from tests.hostile.answers import assert_refused

SETTINGS = ("--gpu", "cpu", "--set", "max_steps=1", "--set", "max_new_tokens=2")


def limited(limit: int, size: int, *words: object, cwd: Path) -> Done:
    """A command in a process of its own with one of its limits (resource.RLIMIT_*) at `size`."""
    done = subprocess.run(
        [sys.executable, "-m", "autoft", *map(os.fsencode, words)],
        capture_output=True, check=False, cwd=cwd,
        preexec_fn=lambda: resource.setrlimit(limit, (size, size)),
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@pytest.mark.parametrize("num_bytes", [50_000, 1_500_000])
def test_a_limit_on_the_size_of_files_is_told_as_the_disk_s(tiny_model, data_file, tmp_path, num_bytes: int) -> None:
    words = ("run", tiny_model, "--data", data_file, *SETTINGS, "--set", "rank=256", "-o", "out")
    done = limited(resource.RLIMIT_FSIZE, num_bytes, *words, cwd=tmp_path)
    assert_refused(done, code=done.code)
    assert done.code in (1, 2, 4)
    assert "File too large" in done.err
    assert not (tmp_path / "out").exists()


def test_a_limit_on_open_files_is_told_or_is_enough(tiny_model, data_file, tmp_path) -> None:
    for most in (24, 64):
        words = ("run", tiny_model, "--data", data_file, *SETTINGS, "-o", f"out{most}")
        done = limited(resource.RLIMIT_NOFILE, most, *words, cwd=tmp_path)
        if done.code:
            assert_refused(done, code=done.code)
        assert (tmp_path / f"out{most}").exists() == (done.code == 0)


def test_a_limit_on_memory_is_told(tiny_model, data_file, tmp_path) -> None:
    words = ("run", tiny_model, "--data", data_file, *SETTINGS, "-o", "out")
    done = limited(resource.RLIMIT_AS, 1_500_000_000, *words, cwd=tmp_path)
    if done.code not in (0, -signal.SIGSEGV):  # oneDNN on a CPU with AMX does not look at what malloc gave it
        assert_refused(done, code=done.code)
    assert (tmp_path / "out").exists() == (done.code == 0)


def test_names_that_are_no_utf8_work_or_are_refused(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    model, data, out = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/m\xff", b"/d\xff.jsonl", b"/o\xff"))
    shutil.copytree(tiny_model, model)
    shutil.copy(data_file, data)
    for words, written in (
        (("run", model, "--data", data_file, *SETTINGS, "-o", tmp_path / "one"), tmp_path / "one"),
        (("run", tiny_model, "--data", data, *SETTINGS, "-o", tmp_path / "two"), tmp_path / "two"),
        (("run", tiny_model, "--data", data_file, *SETTINGS, "-o", out), Path(out)),
    ):
        done = limited(resource.RLIMIT_CORE, 0, *words, cwd=tmp_path)
        if done.code:
            assert_refused(done)
            assert not written.exists()
        else:
            json.loads((written / "result.json").read_text())
