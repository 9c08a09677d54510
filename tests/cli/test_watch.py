"""`autoft probe --watch` as a user runs it: on the stand-in driver of tests/profiles, or with no GPU."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.profiles.conftest import FakeDriver, compiled

AUTOFT = [sys.executable, "-m", "autoft", "probe"]
MIB = 2**20


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return compiled(tmp_path_factory.mktemp("driver"))


def samples(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_a_line_a_look(driver: FakeDriver) -> None:
    done = driver.autoft("two", "probe", "--watch", "--count", "3", "--interval", "0.2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = samples(done.stdout)
    assert len(found) == 3
    assert [gpu["index"] for gpu in found[0]["gpus"]] == [0, 1]
    first = found[2]["gpus"][0]
    assert first.pop("energy_j") > found[1]["gpus"][0]["energy_j"]
    assert first == {
        "index": 0,
        "uuid": "GPU-aabb2222-0000-0000-0000-000000000002",
        "name": "NVIDIA GeForce RTX 4090",
        "total_bytes": 24564 * MIB,
        "free_bytes": 24081 * MIB,
        "used_bytes": 483 * MIB,
        "power_w": 35.25,
        "power_limit_w": 115.0,
        "temperature_c": 61,
        "busy_percent": 12,
        "sm_clock_mhz": 1425,
        "memory_clock_mhz": 7001,
        "throttle": ["power limit", "heat (software)"],
    }
    assert found[0]["at"] < found[1]["at"] < found[2]["at"]
    assert 0 < found[0]["host"]["ram_available_bytes"] <= found[0]["host"]["ram_total_bytes"]
    assert driver.log.read_text() == "shutdown\n"


def test_without_a_terminal_it_is_a_line_of_text_a_look(driver: FakeDriver) -> None:
    done = driver.autoft("laptop", "probe", "--watch", "--count", "2", "--interval", "0.1")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "GPU 0, 1.1 GiB of 6.0 GiB, 35 of 115 W, 61 C, busy 12%, 1425 MHz, power limit/heat (software)" in lines[0]


@pytest.mark.parametrize("scenario", ["none", "stuck", "hang"])
def test_it_goes_on_without_answers(driver: FakeDriver, scenario: str) -> None:
    words = ("probe", "--watch", "--count", "2", "--interval", "0.1", "--json")
    done = driver.autoft(scenario, *words, AUTOFT_DRIVER_TIMEOUT_S="0.5")
    assert done.returncode == 0
    first, second = samples(done.stdout)
    assert first["no_gpu_reason"]
    assert second["host"]["ram_available_bytes"] > 0


@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_is_how_it_ends(driver: FakeDriver, as_json: bool) -> None:
    words = [*AUTOFT, "--watch", "--interval", "0.1", *(["--json"] if as_json else [])]
    with subprocess.Popen(
        words, env=driver.environment("laptop"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert rest == "" or rest.endswith("\n")


def test_a_reader_that_has_seen_enough(driver: FakeDriver) -> None:
    words = [*AUTOFT, "--watch", "--interval", "0.1", "--json"]
    with subprocess.Popen(
        words, env=driver.environment("laptop"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("width", [40, 100])
def test_on_a_terminal_it_stays_in_its_place_and_fits(driver: FakeDriver, width: int) -> None:
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", str(width), "rows", "40"], stdin=theirs, check=True)
    env = {**driver.environment("two"), "TERM": "xterm"}
    words = [*AUTOFT, "--watch", "--count", "2", "--interval", "0.1"]
    with subprocess.Popen(words, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = read_all(ours)
        assert process.wait(timeout=20) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "483 MiB" in plain
    assert "61 C" in plain
    assert ("Slowed by" in plain) == (width == 100)
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= width
    assert "\x1b[?25h" in text  # the cursor is shown again


def read_all(terminal: int) -> str:
    parts = []
    end = time.monotonic() + 30
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 1)
        try:
            part = os.read(terminal, 65536) if ready else None
        except OSError:  # the other end is closed
            break
        if part == b"":
            break
        parts.append(part or b"")
    os.close(terminal)
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--interval", "2"), "--interval and --count go with --watch"),
        (("--count", "2"), "--interval and --count go with --watch"),
        (("--watch", "--bench"), "--watch does not go with --bench"),
        (("--watch", "--interval", "0"), "--interval 0 is not a valid interval"),
        (("--watch", "--interval", "nan"), "--interval nan is not a valid interval"),
        (("--watch", "--count", "0"), "Invalid value for '--count'"),
    ],
)
def test_options_that_make_no_sense(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = subprocess.run([*AUTOFT, *words], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "To fix: " in done.stderr
