"""`autoft probe --bench` as a user runs it, on this CPU: measured, kept, shown again, used by a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from autoft.cli.bench import rate, show_bench
from autoft.errors import AutoftError
from autoft.profiles import bench_store
from autoft.profiles.bench_store import BYTES, FLOPS, Bench, Reading, gpu_key
from autoft.profiles.detect import gpu_from_profile


def autoft(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **env}
    return subprocess.run(
        [sys.executable, "-m", "autoft", *words], env=settings, capture_output=True, text=True, timeout=120, check=False
    )


def test_measured_kept_shown_and_used() -> None:
    done = autoft("probe", "--bench", "--seconds", "12", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (bench,) = told["bench"]
    assert bench["key"]["device"].startswith("cpu ")
    assert {"product", "memory"} <= {reading["what"] for reading in bench["readings"]}
    assert len(list(bench_store.folder().glob("*.json"))) == 1

    again = autoft("probe", COLUMNS="40")
    assert again.returncode == 0
    assert f"measured on {bench['date']}" in " ".join(again.stdout.split())
    assert max(map(len, again.stdout.splitlines())) <= 40
    assert json.loads(autoft("probe", "--json").stdout)["bench"] == [bench]

    used = autoft("estimate", "tinyllama-1.1b-chat-v1.0", "--gpu", "cpu", "--seq-len", "64", "--json")
    notes = " ".join(json.loads(used.stdout)["assumptions"])
    assert f"measured on {bench['date']}, of which a step is taken to get 50% to 110%" in notes

    # to show it takes no torch
    code = (
        "import sys\nfrom autoft.cli.main import main\n"
        "try: main(['probe'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Bench of CPU" in done.stdout


def test_no_bench_no_word_of_it() -> None:
    done = autoft("probe")
    assert "Bench" not in done.stdout
    assert "bench" not in json.loads(autoft("probe", "--json").stdout)


def test_too_little_time_and_a_home_that_takes_nothing(tmp_path) -> None:
    short = autoft("probe", "--bench", "--seconds", "0.5")
    assert (short.returncode, short.stdout) == (2, "")
    assert "too short" in short.stderr
    alone = autoft("probe", "--seconds", "5")
    assert (alone.returncode, "--seconds goes with --bench" in alone.stderr) == (2, True)
    nothing = autoft(
        "probe", "--bench", "--seconds", "1", PYTHONPATH=os.pathsep.join([_slow_torch(tmp_path), *sys.path])
    )
    assert nothing.returncode == AutoftError.exit_code
    assert "nothing could be measured within 1 s" in nothing.stderr
    (tmp_path / "file").touch()
    full = autoft("probe", "--bench", AUTOFT_HOME=str(tmp_path / "file" / "home"))
    assert full.returncode == 2
    assert "Not a directory" in full.stderr
    assert "set AUTOFT_HOME" in full.stderr


def _slow_torch(folder) -> str:
    (folder / "slow").mkdir()
    (folder / "slow" / "torch.py").write_text("import time\ntime.sleep(60)\n")
    return str(folder / "slow")


def reading(what: str, median: float, dtype: str = "", unit: str = FLOPS, **changes: object) -> Reading:
    figures = {"median": median, "least": median, "most": median}
    return Reading(**{"what": what, "unit": unit, "repeats": 9, "dtype": dtype, **figures, **changes})


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_card_s_bench_stands_beside_its_data_sheet(width) -> None:
    card = replace(gpu_from_profile("rtx-4090"), origin="nvml", index=0, uuid="GPU-1")
    key = gpu_key(replace(card, half_flops_per_s=None, memory_bytes_per_s=None, float32_flops_per_s=None), "580")
    assert key is not None
    assert card.half_flops_per_s is not None
    bench = Bench(
        key=key,
        date="2026-11-25",
        readings=(
            reading("product", card.half_flops_per_s / 4, "bfloat16"),
            reading("product", card.half_flops_per_s / 2, "bfloat16"),
            reading("attention", 1e13, "bfloat16", most=9e13),
            reading("copy", 5e11, unit=BYTES),
            reading("disk read", 4e8, unit=BYTES, note="page cache dropped before"),
        ),
        left_out=("adamw: out of time",),
    )
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        show_bench([(card, bench)], console)
    text = " ".join(captured.get().split())
    assert "Bench of GPU 0, measured on 2026-11-25" in text
    assert "(50%)" in text
    assert "data sheet" in text
    assert "adamw: out of time" in text
    assert "Unsteady attention" in text
    assert max(map(len, captured.get().splitlines())) <= width


def test_rates_in_a_person_s_units() -> None:
    assert [rate(x, FLOPS) for x in (3.12e14, 8.4e10, 1e6)] == ["312 TFLOP/s", "84 GFLOP/s", "1 MFLOP/s"]
    assert [rate(x, BYTES) for x in (3.35e12, 9.4e11, 4.02e8)] == ["3.35 TB/s", "940 GB/s", "402 MB/s"]
