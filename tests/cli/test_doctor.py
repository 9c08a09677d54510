"""`autoft doctor` as a user runs it: lines, JSON, exit codes, and the real command beside a stand-in NVIDIA driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.cli.doctor import STYLES, line
from autoft.trainer.doctor.finding import Finding

FAKE_DRIVER = Path(__file__).parents[1] / "profiles" / "fake_nvml.c"
NAMES = ["driver", "torch", "driver for this CUDA", "kernels for the card", "CUDA", "4-bit product",
         "4-bit, odd widths", "Triton", "NCCL", "training step", "tested versions", "internals", "requirements",
         "companions", "AUTOFT_HOME", "HF_HOME", "hub", "token"]  # fmt: skip


def doctor(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(
        [sys.executable, "-m", "autoft", "doctor", *words],
        env={name: value for name, value in settings.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_json_is_one_object_with_every_check(tmp_path) -> None:
    done = doctor("--json", HF_HOME=str(tmp_path), HF_TOKEN="hf_abcdefgh")
    told = json.loads(done.stdout)
    found = {each["name"]: Finding.from_dict(each) for each in told["findings"]}
    assert list(found) == NAMES
    failed = [finding for finding in found.values() if finding.status == "failed"]
    assert not failed, failed
    assert done.returncode == 0
    assert told["healthy"] is True
    assert sum(told["counts"].values()) == len(NAMES)
    assert found["training step"].status == "ok"
    assert "abcdefgh" not in done.stdout + done.stderr
    assert all(finding.fix for finding in found.values() if finding.status == "warning")


def test_beside_a_gpu_a_torch_for_the_cpu_is_named_and_the_exit_code_is_1(tmp_path) -> None:
    import torch

    compiler = shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in NVIDIA driver needs gcc on Linux")
    if torch.version.cuda is not None:
        pytest.skip("torch here is built for CUDA")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, FAKE_DRIVER], check=True, timeout=60)
    done = doctor(LD_LIBRARY_PATH=str(tmp_path), FAKE_NVML="laptop", CUDA_VISIBLE_DEVICES="0", COLUMNS="200")
    assert done.returncode == 1
    assert "ok       driver: 550.54.14: NVIDIA GeForce RTX 3060 Laptop GPU" in done.stdout
    assert "failed   torch: " in done.stdout
    assert "built for the CPU alone, on a machine with NVIDIA GeForce RTX 3060 Laptop GPU" in done.stdout
    assert "To fix: pip install --force-reinstall torch --index-url" in done.stdout
    assert "Something failed: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("status", STYLES)
def test_a_line_fits_and_its_words_tell_the_status(status, width) -> None:
    from rich.console import Console

    finding = Finding(name="kernels for the card", status=status, found="/a/long/path" * 12, fix="do this " * 20)
    console = Console(width=width, no_color=True, force_terminal=False, record=True)
    with console.capture() as captured:
        console.print(line(finding))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(f"{status} ")
    assert "To fix: do this" in captured.get()


def test_colors_are_the_statuses_and_go_with_no_color() -> None:
    assert {status: style.split()[-1] for status, style in STYLES.items()} == {
        "ok": "green",
        "warning": "yellow",
        "failed": "red",
        "skipped": "dim",
    }
