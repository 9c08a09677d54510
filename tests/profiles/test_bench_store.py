"""Kept benches: found again for the same device and software alone, never trusted when damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.profiles import bench_store
from autoft.profiles.bench_store import BYTES, FLOPS, Bench, BenchKey, Reading, check, cpu_key, gpu_key, keep, kept
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Host

HOST = Host(cpu="Test CPU", cores=2, ram_total_bytes=1, ram_available_bytes=1, disk_path="/", disk_free_bytes=1)
CARD = replace(gpu_from_profile("rtx-4090"), origin="nvml", index=0, uuid="GPU-1")
READING = Reading(
    what="product", unit=FLOPS, median=2e11, least=1e11, most=2.5e11, repeats=9, dtype="float32", shape=(512, 576, 1536)
)
MEMORY = Reading(what="memory", unit=BYTES, median=1e10, least=1e10, most=1e10, repeats=3)


def bench(key: BenchKey) -> Bench:
    return Bench(key=key, date="2026-11-25", readings=(READING, MEMORY), left_out=("adamw: out of time",))


@pytest.mark.parametrize("key", [cpu_key(HOST), gpu_key(CARD, "580.65.06")])
def test_a_bench_is_found_again_as_it_was(key) -> None:
    assert kept(key) is None
    path = keep(bench(key))
    assert kept(key) == bench(key)
    assert list(bench_store.folder().iterdir()) == [path]
    keep(replace(bench(key), date="2026-11-26"))
    assert kept(key) == replace(bench(key), date="2026-11-26")
    assert list(bench_store.folder().iterdir()) == [path]


def test_another_card_or_other_software_has_none(tmp_path, monkeypatch) -> None:
    keep(bench(gpu_key(CARD, "580.65.06")))
    keep(bench(cpu_key(HOST)))
    assert kept(gpu_key(replace(CARD, uuid="GPU-2"), "580.65.06")) is None
    assert kept(gpu_key(CARD, "581.0")) is None
    assert kept(gpu_key(CARD, None)) is None
    assert kept(gpu_key(replace(CARD, uuid=None), "580.65.06")) is None
    assert gpu_key(gpu_from_profile("rtx-4090"), "580.65.06") is None
    assert kept(None) is None
    assert kept(cpu_key(replace(HOST, cpu="Other CPU"))) is None
    assert kept(cpu_key(replace(HOST, cores=4))) is None
    # the same card and driver with another torch
    found = tmp_path / "torch-99.0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert kept(gpu_key(CARD, "580.65.06")) is None
    assert kept(cpu_key(HOST)) is None
    monkeypatch.undo()


def test_other_threads_or_another_way_of_measuring_have_none(monkeypatch) -> None:
    keep(bench(cpu_key(HOST)))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert kept(cpu_key(HOST)) is None
    monkeypatch.undo()
    monkeypatch.setattr(bench_store, "EDITION", "0")
    assert kept(cpu_key(HOST)) is None


def test_no_damaged_or_foreign_file_is_trusted() -> None:
    key = cpu_key(HOST)
    path = keep(bench(key))
    whole = path.read_bytes()
    broken = [whole[:n] for n in range(0, len(whole), 61)]
    broken += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(0, len(whole), 13)]
    other = keep(bench(cpu_key(replace(HOST, cpu="Other CPU"))))
    broken += [other.read_bytes(), b"null", b"[]", b"{}", b"\xff", b"[" * 100_000]
    for changed in (
        {"median": -1.0},
        {"median": 1e99},
        {"median": "fast"},
        {"most": float("inf")},
        {"least": 0.0},
        {"unit": "furlongs"},
        {"shape": ["wide"]},
        {"repeats": 0},
        {"extra": 1},
    ):
        data = json.loads(whole)["bench"]
        data["readings"][0].update(changed)
        broken.append(json.dumps({"sha256": bench_store._digest(data), "bench": data}).encode())
    for changed in ({"readings": []}, {"date": "yesterday"}, {"date": 20261125}, {"key": {}}):
        data = {**json.loads(whole)["bench"], **changed}
        broken.append(json.dumps({"sha256": bench_store._digest(data), "bench": data}).encode())
    for content in broken:
        path.write_bytes(content)
        assert kept(key) is None, content
    path.unlink()
    path.mkdir()
    assert kept(key) is None


def test_figures_that_none_can_be() -> None:
    assert check(READING) is READING
    for changed in ({"median": float("nan")}, {"least": 3e11}, {"most": 1.0}, {"repeats": 0}):
        with pytest.raises(ValueError, match="product"):
            check(replace(READING, **changed))
    assert not READING.unsteady
    assert replace(READING, most=4e11).unsteady


def test_names_of_devices_stay_inside_the_folder() -> None:
    for name in ("../../etc/passwd", "x" * 500, "", "Ünïcode / \\ : *"):
        path = keep(bench(cpu_key(replace(HOST, cpu=name))))
        assert path.parent == bench_store.folder()
        assert len(path.name) < 80


def test_a_home_that_cannot_be_written_to_is_an_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OSError, match="Not a directory"):
        keep(bench(cpu_key(HOST)))
    assert kept(cpu_key(HOST)) is None


def test_reading_a_kept_bench_imports_neither_torch_nor_pydantic() -> None:
    keep(bench(cpu_key(HOST)))
    code = (
        "import sys\nfrom autoft.profiles.bench_store import cpu_key, kept\nfrom autoft.profiles.hardware import Host\n"
        f"host = {HOST!r}\nassert kept(cpu_key(host)) is not None\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(bench_store.folder()).is_dir()
