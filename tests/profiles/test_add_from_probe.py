"""`autoft profiles gpus add --from-probe`, over the real NVML binding and a stand-in driver."""

from __future__ import annotations

import json
from typing import Any

from autoft.profiles.gpu_catalogue import GpuProfile


def test_a_file_for_the_gpu_of_this_machine(driver: Any, own_home: Any) -> None:
    done = driver.autoft("two", "profiles", "gpus", "add", "--from-probe", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    path = own_home / "profiles" / "gpus" / "rtx-4090.toml"
    assert told == {"kind": "gpus", "name": "rtx-4090", "file": str(path)}
    profile = GpuProfile.from_toml(path.read_text(encoding="utf-8"))
    assert profile.total_bytes is not None
    assert profile.total_bytes.value == 24564 * 2**20
    assert profile.total_bytes.source.startswith("NVML on this machine, 2")


def test_without_a_gpu_there_is_nothing_to_write(driver: Any, own_home: Any) -> None:
    done = driver.autoft("none", "profiles", "gpus", "add", "--from-probe")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: no GPU to profile: the driver reports no GPU\nTo fix: autoft profiles gpus add FILE\n"
    )
    assert not (own_home / "profiles").exists()
