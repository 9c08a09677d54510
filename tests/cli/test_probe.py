"""`autoft probe` and `autoft profiles` as a user runs them, GPUs hidden: tests/profiles/test_detect.py has those."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from autoft.profiles.hardware import Hardware


def run(*args: str, width: int = 100) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": str(width)}
    return subprocess.run(args, env=env, capture_output=True, text=True, timeout=60, check=False)


def autoft(*args: str, width: int = 100) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "autoft", *args, width=width)


def imported(*args: str) -> set[str]:
    """The heavy modules that `autoft ARGS` imports."""
    code = (
        "import sys\nfrom autoft.cli.main import main\n"
        f"try: main({list(args)!r})\nexcept SystemExit as end: assert end.code == 0\n"
        "print(*{'torch', 'transformers', 'pydantic'} & set(sys.modules), file=sys.stderr)"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_and_probe_start_light() -> None:
    assert imported("--help") == set()
    assert imported("probe") == set()
    assert imported("probe", "--json") == set()
    assert imported("profiles") == {"pydantic"}


def test_json_is_the_hardware() -> None:
    done = autoft("probe", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    hardware = Hardware.from_dict(json.loads(done.stdout))
    assert hardware.gpus == ()
    assert hardware.no_gpu_reason


def test_without_a_gpu_it_says_why_and_what_happens_then() -> None:
    done = autoft("probe")
    assert done.returncode == 0
    reason = json.loads(autoft("probe", "--json").stdout)["no_gpu_reason"]
    assert "No GPU" in done.stdout
    assert reason in done.stdout
    assert "training runs on the CPU" in done.stdout
    for name in ("CPU", "Memory", "Disk", "System", "Python"):
        assert name in done.stdout


@pytest.mark.parametrize("command", ["probe", "profiles"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit(command: str, width: int) -> None:
    done = autoft(command, width=width)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= width


def test_profiles_lists_one_kind_or_all() -> None:
    assert "rtx-4090" in autoft("profiles", "gpus").stdout
    assert "Qwen" not in autoft("profiles", "gpus").stdout
    assert "Qwen/Qwen2.5-3B-Instruct" in autoft("profiles", "models").stdout
    data = json.loads(autoft("profiles", "--json").stdout)
    assert set(data) == {"gpus", "models", "presets"}
    assert next(g for g in data["gpus"] if g["name"] == "rtx-4090")["half_flops_per_s"]["source"]


def test_profiles_of_an_unknown_kind() -> None:
    done = autoft("profiles", "gpu")
    assert done.returncode == 2
    assert "Did you mean gpus?" in done.stderr
