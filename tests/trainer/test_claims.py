"""Two runs on one device: the second one knows what the first is still to take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoft.errors import DoesNotFit
from autoft.profiles.hardware import GpuProcess
from autoft.trainer.run.preflight import preflight
from autoft.trainer.storage.claims import CPU, claimed, devices_of
from autoft.units import GIB
from tests.trainer.test_doctor import NO_GPU, machine
from tests.trainer.test_preflight import job

LOADING = """
import sys
from pathlib import Path
from autoft.trainer.storage.claims import claimed
with claimed(Path("/srv/first"), sys.argv[2:], int(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def first() -> Iterator[subprocess.Popen[str]]:
    """Another process whose run is to take 64 GiB of this CPU, and holds little of it so far."""
    words = [sys.executable, "-c", LOADING, str(64 * GIB), CPU]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_run_that_loads_is_counted_with_all_that_it_will_take(first, tmp_path: Path) -> None:
    roomy = replace(NO_GPU, host=replace(NO_GPU.host, ram_available_bytes=80 * GIB))
    with claimed(tmp_path, devices_of(job(), ()), 20 * GIB) as others:
        assert [other.pid for other in others] == [first.pid]
        with pytest.raises(DoesNotFit) as refused:
            preflight(job(), predicted_bytes=20 * GIB, hardware=roomy, others=others)
        assert f"; another autoft run (pid {first.pid}, /srv/first) will allocate 6" in refused.value.what
        assert str(refused.value.fix).startswith("wait until it has finished")
        [note] = preflight(job(), predicted_bytes=10 * GIB, hardware=roomy, others=others)
        assert note == f"another autoft run (pid {first.pid}, /srv/first) uses the same device: both will be slower"
    with claimed(tmp_path, ["GPU-1"], GIB) as elsewhere:
        assert elsewhere == []


def test_a_run_that_has_ended_or_was_killed_is_not_counted(first, own_home: Path, tmp_path: Path) -> None:
    first.kill()
    first.wait()
    left = own_home / "running" / f"{first.pid}.json"
    assert left.is_file()
    (own_home / "running" / "7.json").write_text("[")
    with claimed(tmp_path, [CPU], GIB) as others:
        assert others == []
        assert json.loads(next(left.parent.iterdir()).read_text())["pid"] == psutil.Process().pid
    assert list(left.parent.iterdir()) == []


def test_a_home_that_cannot_be_written_to_ends_no_run(own_home: Path, tmp_path: Path) -> None:
    (own_home / "running").write_text("a file")
    with claimed(tmp_path, [CPU], GIB) as others:
        assert others == []


def test_what_a_run_holds_of_a_gpu_is_not_counted_twice(first, tmp_path: Path) -> None:
    with claimed(tmp_path, [CPU], GIB) as [other]:
        gpu = machine().gpus[0]
        for used, missing in ((60 * GIB, 4 * GIB), (65 * GIB, 0), (None, 0)):
            holding = replace(gpu, processes=(GpuProcess(pid=first.pid, used_bytes=used),))
            assert other.missing_bytes(holding) == missing
        assert other.missing_bytes(gpu) == 64 * GIB
