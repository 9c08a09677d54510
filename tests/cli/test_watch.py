"""`autoft probe --watch`, over the stand-in driver where there is a compiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest


def watch(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "autoft", "probe", *args]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_json_line_a_look() -> None:
    done = watch("--watch", "--interval", "0.1", "--count", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["at"] < second["at"]
    assert first["gpus"] == []
    assert first["no_gpu_reason"]
    assert 0 < first["host"]["ram_available_bytes"] <= first["host"]["ram_total_bytes"]


def test_a_line_of_text_where_there_is_no_terminal() -> None:
    done = watch("--watch", "--count", "1")
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line.rstrip().endswith("available")


def test_ctrl_c_is_how_it_ends() -> None:
    words = [sys.executable, "-m", "autoft", "probe", "--watch", "--interval", "0.1", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["host"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_reader_that_has_seen_enough() -> None:
    words = [sys.executable, "-m", "autoft", "probe", "--watch", "--interval", "0.1", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, "")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--watch", "--interval", "0"), "Error: --interval 0 is no time to wait"),
        (("--watch", "--interval", "nan"), "Error: --interval nan is no time to wait"),
        (("--count", "2"), "Error: --interval and --count go with --watch"),
        (("--watch", "--bench"), "Error: --watch does not go with --bench"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], error: str) -> None:
    done = watch(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(error)
