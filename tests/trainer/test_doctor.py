"""Each check of the doctor, its failing branch above all: with real folders, sockets, packages and compilers."""

from __future__ import annotations

import http.server
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Gpu, Hardware, Host
from autoft.profiles.host import hub_cache
from autoft.trainer import doctor
from autoft.trainer.compat.tested import TESTED
from autoft.trainer.doctor import compute, cuda, places, versions
from autoft.trainer.doctor.compute import FourBit
from autoft.trainer.doctor.cuda import CudaDevice, TorchFacts, coverage, install_torch
from autoft.trainer.doctor.finding import Finding
from autoft.trainer.doctor.workers import Unanswered, Workers
from autoft.trainer.runtime import environment
from autoft.units import GIB

ROOT = Path(__file__).parents[2]
HOST = Host(cpu="test", cores=2, ram_total_bytes=GIB, ram_available_bytes=GIB, disk_path="/", disk_free_bytes=GIB)
NO_GPU = Hardware(host=HOST, no_gpu_reason="no NVIDIA driver found")
CPU_TORCH = TorchFacts(version="2.13.0+cpu")
KERNELS_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA_13 = TorchFacts(
    version="2.13.0+cu130", cuda="13.0", architectures=KERNELS_13, devices=(CudaDevice(name="NVIDIA GeForce RTX 4090"),)
)


def machine(*cards: str, driver: str | None = "580.65.06", runs: str | None = "13.0") -> Hardware:
    gpus: tuple[Gpu, ...] = tuple(replace(gpu_from_profile(name), origin="nvml") for name in cards or ("rtx-4090",))
    return Hardware(host=HOST, gpus=gpus, driver_version=driver, cuda_version=runs)


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers()
    yield found
    found.close()


# --- driver, torch, card: rules


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["sm_86"], (8, 6), "kernels"),
        (["sm_80"], (8, 9), "kernels"),  # a later minor of the same major
        (["sm_86"], (8, 0), "none"),  # an earlier one
        (["sm_80"], (9, 0), "none"),
        (["sm_80", "compute_80"], (9, 0), "ptx"),
        (["compute_90"], (8, 9), "none"),
        (["compute_120", "sm_120"], (12, 1), "kernels"),
        (["sm_90a"], (9, 0), "kernels"),
        (["sm_120a"], (12, 1), "none"),
        (["compute_90a"], (10, 0), "none"),
        (["sm_100f"], (10, 3), "kernels"),
        (["compute_100f"], (12, 0), "none"),
        (["gfx1100", "sm_"], (8, 6), "none"),
        ([], (8, 6), "none"),
    ],
)
def test_which_kernels_run_on_which_card(architectures, capability, expected) -> None:
    assert coverage(architectures, capability) == expected


def test_a_card_without_kernels_fails_with_the_build_that_has_them() -> None:
    old = cuda.kernels(CUDA_13, machine("v100-16gb"))
    assert old.status == "failed"
    assert "Tesla V100" in old.found
    assert "compute capability 7.0" in old.found
    assert old.fix == "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
    assert cuda.kernels(CUDA_13, machine("t4", "rtx-4090")).status == "ok"
    assert cuda.kernels(CUDA_13, machine("rtx-4090", "v100-16gb")).status == "failed"
    ptx = cuda.kernels(replace(CUDA_13, architectures=("sm_75", "compute_75")), machine())
    assert ptx.status == "warning"
    assert "only PTX" in ptx.found
    mute = replace(machine().gpus[0], compute_capability=None)
    assert cuda.kernels(CUDA_13, replace(machine(), gpus=(mute,))).status == "skipped"
    assert cuda.kernels(CUDA_13, NO_GPU).status == "skipped"
    assert cuda.kernels(CPU_TORCH, machine()).status == "skipped"


@pytest.mark.parametrize(
    ("driver_cuda", "capability", "label", "driver"),
    [
        ((13, 0), (8, 9), "cu130", None),
        (None, None, "cu130", None),
        ((12, 4), (8, 9), "cu126", None),
        ((13, 0), (7, 0), "cu126", None),
        ((12, 8), (12, 0), "cu130", "580"),
        ((11, 4), (8, 6), "cu126", "525"),
    ],
)
def test_the_build_that_a_driver_runs_and_a_card_needs(driver_cuda, capability, label, driver) -> None:
    fix = install_torch(driver_cuda, capability)
    assert fix.endswith(f"/whl/{label}")
    assert fix.startswith(f"update the NVIDIA driver to {driver} or later" if driver else "pip install")


def test_a_torch_for_the_cpu_on_a_machine_with_a_gpu_fails() -> None:
    found = cuda.torch_build(CPU_TORCH, machine(driver="550.54.14", runs="12.4"), 1)
    assert found.status == "failed"
    assert found.found == "2.13.0+cpu, built for the CPU alone, on a machine with NVIDIA GeForce RTX 4090"
    assert found.fix is not None
    assert found.fix.endswith("/whl/cu126")
    # a card whose driver does not answer counts too
    assert cuda.torch_build(CPU_TORCH, NO_GPU, 1).status == "failed"
    assert cuda.torch_build(CPU_TORCH, NO_GPU, 0).status == "ok"
    assert cuda.torch_build(CUDA_13, machine(), 1).status == "ok"
    rocm = TorchFacts(version="2.13.0+rocm7", hip="7.0")
    assert cuda.torch_build(rocm, NO_GPU, 0).status == "warning"
    assert cuda.torch_build(rocm, machine(), 1).status == "failed"


def test_a_driver_too_old_for_the_build_fails() -> None:
    old = cuda.driver_for_cuda(CUDA_13, machine(driver="550.54.14", runs="12.4"))
    assert old.status == "failed"
    assert old.found == "driver 550.54.14 runs CUDA up to 12.4, torch was built for 13.0"
    assert old.fix is not None
    assert "update the NVIDIA driver" in old.fix
    assert cuda.driver_for_cuda(CUDA_13, machine()).status == "ok"
    assert cuda.driver_for_cuda(CUDA_13, machine(runs="14.1")).status == "ok"
    # within a major version only PTX needs a driver as new as the build
    newer = replace(CUDA_13, cuda="13.2")
    assert cuda.driver_for_cuda(newer, machine()).status == "ok"
    assert cuda.driver_for_cuda(replace(newer, architectures=("compute_75",)), machine()).status == "failed"
    assert cuda.driver_for_cuda(CUDA_13, machine(runs=None)).status == "warning"
    assert cuda.driver_for_cuda(CUDA_13, NO_GPU).status == "skipped"


def test_cuda_that_does_not_start_or_multiplies_wrongly_fails() -> None:
    broken = cuda.cuda_starts(replace(CUDA_13, devices=(), error="RuntimeError: unknown error"), machine())
    assert (broken.status, broken.found) == ("failed", "does not start: RuntimeError: unknown error")
    assert cuda.cuda_starts(replace(CUDA_13, devices=()), machine()).status == "failed"
    two = (CudaDevice(name="A"), CudaDevice(name="B", error="a product of ones came out as 0 instead of 262144"))
    assert cuda.cuda_starts(replace(CUDA_13, devices=two), machine()).found.startswith("B: a product of ones")
    assert cuda.cuda_starts(CUDA_13, machine()).status == "ok"
    assert cuda.cuda_starts(CUDA_13, NO_GPU).status == "skipped"


def test_a_card_on_the_bus_without_a_driver_fails(tmp_path) -> None:
    for slot, vendor, kind in (("0", "0x10de", "0x030000"), ("1", "0x10de", "0x040300"), ("2", "0x8086", "0x030000")):
        device = tmp_path / "sys/bus/pci/devices" / slot
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    (tmp_path / "sys/bus/pci/devices/3").mkdir()
    on_bus = cuda.cards_on_the_bus(tmp_path)
    assert on_bus == 1
    found = cuda.driver(NO_GPU, on_bus)
    assert (found.status, found.found) == ("failed", "1 NVIDIA card on the PCI bus, but no NVIDIA driver found")
    assert cuda.driver(NO_GPU, 0).status == "skipped"
    assert cuda.driver(machine(), 1).status == "ok"
    hidden = replace(NO_GPU, no_gpu_reason="CUDA_VISIBLE_DEVICES='' leaves none of the 1 GPUs here visible")
    assert cuda.driver(hidden, 1).status == "warning"
    assert cuda.torch_build(CPU_TORCH, hidden, 1).status == "ok"


# --- arithmetic


def test_four_bit_products_on_this_machine_are_right_at_a_usual_width() -> None:
    facts = FourBit.from_dict(compute.four_bit())
    assert compute.usual_width(facts).status == "ok"
    # the trap of bitsandbytes 0.50.2 on a CPU; another version, or another CPU, may be right
    wrong = facts.odd_error is None or facts.odd_error > compute.TOLERANCE
    odd = compute.odd_width(facts)
    assert odd.status == ("warning" if wrong else "ok")
    if wrong:
        assert "rows of 96 weights on the CPU" in odd.found


def test_a_wrong_kernel_is_found(monkeypatch) -> None:
    import bitsandbytes as bnb

    right = bnb.matmul_4bit
    monkeypatch.setattr(bnb, "matmul_4bit", lambda *args, **kwargs: 1.1 * right(*args, **kwargs))
    facts = FourBit.from_dict(compute.four_bit())
    found = compute.usual_width(facts)
    assert found.status == "failed"
    assert "10% off" in found.found
    monkeypatch.setattr(bnb, "matmul_4bit", lambda *args, **kwargs: float("nan") * right(*args, **kwargs))
    facts = FourBit.from_dict(compute.four_bit())
    assert facts.usual_error is None
    assert compute.usual_width(facts).status == "failed"
    assert compute.odd_width(facts).status == "warning"
    assert compute.odd_width(FourBit(device="cuda", usual_error=0.004, odd_error=0.004)).status == "ok"


def test_what_triton_builds_with_is_tried(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install a C compiler" in str(compute.c_toolchain())
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert "repair the C compiler" in str(compute.c_toolchain())
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    assert "repair the C compiler" in str(compute.c_toolchain())
    # a compiler that knows no Python.h
    broken.write_text('#!/bin/sh\nfor word; do case "$word" in *.c) ! grep -q Python.h "$word"; exit;; esac; done\n')
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    assert "python3-dev" in str(compute.c_toolchain())
    assert compute.triton_fix("ModuleNotFoundError: No module named 'triton'").startswith("pip install triton")
    assert "python3-dev" in compute.triton_fix("CalledProcessError")


def test_triton_and_nccl_are_not_needed_without_gpus_and_told_of_with(workers) -> None:
    assert doctor.triton(NO_GPU, workers).found == "not needed here: training runs on the CPU"
    assert doctor.nccl(machine("rtx-4090"), workers).status == "skipped"
    if importlib.util.find_spec("triton") is None:
        missing = doctor.triton(machine(), workers)
        assert missing.status == "failed"
        assert str(missing.fix).startswith("pip install triton")
        assert doctor.nccl(machine("rtx-4090", "rtx-4090"), workers).status == "warning"


def test_the_triton_kernel_doubles_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")
    code = (
        "import torch\nfrom autoft.trainer.doctor.triton_kernel import double\n"
        "source = torch.arange(1000.0)\ntarget = torch.empty_like(source)\n"
        "double[(1,)](source, target, 1000, BLOCK=1024)\nassert torch.equal(target, 2 * source)\n"
    )
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- folders


def test_a_folder_is_written_to_and_left_as_it_was(tmp_path) -> None:
    found = places.folder("HF_HOME", tmp_path / "a" / "b", 1)
    assert found.status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").touch()
    assert places.folder("HF_HOME", tmp_path, 1).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_to_fails(tmp_path) -> None:
    (tmp_path / "file").touch()
    found = places.folder("AUTOFT_HOME", tmp_path / "file" / "home", 1)
    assert found.status == "failed"
    assert "Not a directory" in found.found
    assert found.fix == "make it writable, or set AUTOFT_HOME to a folder that is"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, which takes no files even from root")
def test_a_read_only_folder_fails() -> None:
    assert places.folder("HF_HOME", Path("/proc"), 1).status == "failed"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs Unix permissions")
def test_a_folder_without_permission_fails() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        if user == 0:  # root may write anywhere
            os.seteuid(65534)
        found = places.folder("HF_HOME", Path(name), 1)
        os.seteuid(user)
        Path(name).chmod(0o755)
    assert found.status == "failed"
    assert "Permission denied" in found.found


def test_a_disk_with_little_room_warns_and_a_full_one_fails(tmp_path) -> None:
    little = places.folder("HF_HOME", tmp_path, 2**80)
    assert little.status == "warning"
    assert "another" in str(little.fix)
    assert "set HF_HOME to" in str(little.fix)
    moved = places.folder("HF_HOME", tmp_path, 2**80, setting="HF_HUB_CACHE")
    assert (moved.name, "set HF_HUB_CACHE to" in str(moved.fix)) == ("HF_HOME", True)
    assert places.room("HF_HOME", "HF_HOME", tmp_path, places.LEAST_BYTES - 1, 20 * GIB).status == "failed"
    assert places.room("HF_HOME", "HF_HOME", tmp_path, 20 * GIB, 20 * GIB).status == "ok"


def test_folders_are_where_huggingface_hub_has_them(tmp_path, monkeypatch, workers) -> None:
    for settings in ({}, {"HF_HOME": str(tmp_path)}, {"XDG_CACHE_HOME": "~/x"}, {"HF_HUB_CACHE": "~/y"}):
        for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        theirs = workers.ask("huggingface_hub.constants:__getattribute__", "HF_HUB_CACHE", timeout_s=60)
        assert str(hub_cache()[0]) == theirs


# --- hub and token


class _Hub(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        assert "authorization" not in self.headers
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("status", "expected"), [(200, "ok"), (401, "warning"), (404, "failed"), (503, "failed")])
def test_a_hub_that_answers(hub_server, monkeypatch, workers, status, expected) -> None:
    monkeypatch.setattr(_Hub, "status", status)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"{hub_server}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    found = doctor.hub(workers)
    assert found.status == expected
    assert hub_server in found.found


def test_a_hub_that_is_not_there_fails(monkeypatch, workers) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listened on: refused
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
        found = doctor.hub(workers)
    assert found.status == "failed"
    assert "does not answer" in found.found
    assert "secret" not in str(found.to_dict())
    assert "--offline" in str(found.fix)


def test_a_hub_that_is_silent_fails_in_time(monkeypatch, workers) -> None:
    monkeypatch.setattr(places, "HUB_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = doctor.hub(workers)
    assert found.status == "failed"


def test_a_hub_that_is_not_wanted_is_not_asked(workers) -> None:
    assert "offline" in doctor.hub(workers).found  # tests/conftest.py sets it
    assert not environment.is_offline({"HF_HUB_OFFLINE": "0"})
    assert environment.is_offline({"TRANSFORMERS_OFFLINE": "yes"})


def test_a_token_is_told_of_and_never_shown(tmp_path) -> None:
    secret = "hf_abcdefghijklmnopqrstuvwxyz"
    (tmp_path / "token").write_text(f"{secret}\n")
    for settings, status in (
        ({"HF_TOKEN": secret}, "ok"),
        ({"HF_TOKEN": f" {secret}\n"}, "ok"),  # huggingface_hub strips it
        ({"HF_TOKEN": f'"{secret}"'}, "failed"),
        ({"HF_TOKEN": f"{secret} {secret}"}, "failed"),
        ({"HF_HOME": str(tmp_path)}, "ok"),
        ({"HF_TOKEN": "", "HF_HOME": str(tmp_path)}, "ok"),
        ({"HF_TOKEN_PATH": str(tmp_path / "token")}, "ok"),
        ({"HF_HOME": str(tmp_path / "empty")}, "warning"),
    ):
        found = places.token(settings)
        assert found.status == status, settings
        shown = str(found.to_dict())
        assert not any(secret[n : n + 5] in shown for n in range(len(secret) - 5)), shown
        assert not re.search(r"\b\d+ (characters|letters)", shown)


# --- versions


def test_the_tested_set_is_that_of_the_constraints() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert {name: pinned[name] for name in TESTED} == TESTED
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "gguf", "pyarrow"}
    assert heavy <= {re.split(r"[<>=]", line)[0] for line in needed} & set(TESTED)


def test_versions_against_the_tested_set() -> None:
    assert versions.tested_set({**TESTED, "torch": f"{TESTED['torch']}+cu130"}, TESTED).status == "ok"
    other = versions.tested_set({**TESTED, "peft": "0.99.0"}, TESTED)
    assert (other.status, other.found) == ("warning", f"peft 0.99.0 ({TESTED['peft']} was tested)")
    assert other.fix == f"if something breaks: pip install peft=={TESTED['peft']}"
    missing = versions.tested_set({**TESTED, "trl": None}, TESTED)
    assert (missing.status, missing.found) == ("failed", "not installed: trl")
    assert missing.fix == f"pip install trl=={TESTED['trl']}"
    assert versions.tested_set({**TESTED, "trl": "not a version"}, TESTED).status == "warning"
    assert versions.installed({"pytest": "", "surely-not-installed": ""}) == {
        "pytest": importlib.metadata.version("pytest"),
        "surely-not-installed": None,
    }


def package(site: Path, name: str, version: str, *needs: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {n}\n" for n in needs)]
    (folder / "METADATA").write_text("".join(lines))


def test_requirements_are_followed_to_the_end(tmp_path, monkeypatch) -> None:
    package(tmp_path, "doctor_a", "1.0", "doctor_b[extra]>=1", "doctor_z; python_version < '3'", "not a requirement!")
    package(tmp_path, "doctor_b", "1.2", "doctor_c>=2; extra == 'extra'", "doctor_d; extra == 'other'", "doctor_a")
    package(tmp_path, "doctor_c", "2.1.dev0")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.requirements("doctor_a").status == "ok"
    package(tmp_path, "doctor_e", "1.0", "doctor_a", "doctor_c<2", "doctor_missing>3")
    monkeypatch.syspath_prepend(tmp_path)
    found = versions.requirements("doctor_e", "not-installed-root")
    assert found.status == "failed"
    assert found.found == "doctor_e wants doctor_c<2, found 2.1.dev0; doctor_e wants doctor_missing>3, found none"
    assert found.fix == "pip install 'doctor_c<2' 'doctor_missing>3'"


def test_the_libraries_here_go_together() -> None:
    assert versions.requirements("autoft", *TESTED).status == "ok"


def test_a_companion_that_cannot_be_imported_fails(tmp_path, monkeypatch, workers) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn/__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    (tmp_path / "torchaudio.py").write_text("print('noise on stdout')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = versions.companions(workers.ask("autoft.trainer.doctor.versions:import_companions", timeout_s=60))
    assert found.status == "failed"
    assert found.found == "flash_attn: ImportError: undefined symbol: _ZN3c10"
    assert str(found.fix).startswith("pip uninstall flash_attn ")
    (tmp_path / "flash_attn/__init__.py").write_text("import os\nos.abort()\n")
    with pytest.raises(Unanswered, match=r"crashed \(SIGABRT\).*while importing flash_attn"):
        workers.ask("autoft.trainer.doctor.versions:import_companions", timeout_s=60)
    assert versions.companions({"torchaudio": None}).status == "ok"
    assert versions.companions({}).status == "skipped"


# --- workers


def test_a_worker_that_hangs_is_ended_with_what_it_started(workers, tmp_path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(Unanswered, match="no answer within 2 s"):
        workers.ask("os:system", f"echo $$ > {pid}; exec sleep 100", timeout_s=2)
    for _ in range(100):
        try:
            os.kill(int(pid.read_text()), 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{int(pid.read_text())}/stat")
        if stat.exists() and stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("what the worker started is still there")


def test_a_worker_s_errors_crashes_and_chatter(workers) -> None:
    assert workers.ask("os.path:join", "a", "b", timeout_s=60) == str(Path("a") / "b")
    assert workers.ask("os:system", "echo noise", timeout_s=60) == 0
    with pytest.raises(Unanswered, match="ModuleNotFoundError: No module named 'no_such_module'"):
        workers.ask("no_such_module:f", timeout_s=60)
    with pytest.raises(Unanswered, match="ZeroDivisionError"):
        workers.ask("operator:truediv", 1, 0, timeout_s=60)
    with pytest.raises(Unanswered, match="ended with code 3: it said nothing"):
        workers.ask("os:_exit", 3, timeout_s=60)
    if sys.platform != "win32":
        with pytest.raises(Unanswered, match="crashed"):
            workers.ask("signal:raise_signal", int(signal.SIGKILL), timeout_s=60)


def test_closing_ends_what_still_runs() -> None:
    workers = Workers()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(workers.ask, "time:sleep", 100, timeout_s=100)
        while not workers._running:
            time.sleep(0.01)
        workers.close()
        with pytest.raises(Unanswered):
            asked.result(timeout=20)
    with pytest.raises(Unanswered, match="stopped"):
        workers.ask("time:sleep", 0, timeout_s=1)


def test_an_examination_that_is_broken_off_leaves_nothing_running() -> None:
    examination = doctor.examine(NO_GPU)
    assert next(examination).name == "driver"
    examination.close()
    for _ in range(200):
        if not [child for child in psutil.Process().children() if "doctor.worker" in " ".join(_words(child))]:
            return
        time.sleep(0.05)
    pytest.fail("a worker is still there")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_check_that_crashes_is_a_failed_line() -> None:
    def crash() -> Finding:
        raise KeyError("x")

    found = doctor.guarded("a check", crash, "do this")
    assert found == Finding(name="a check", status="failed", found="the check crashed: KeyError: 'x'", fix="do this")


def test_without_torch_the_rest_is_still_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {finding.name: finding for finding in doctor.examine(NO_GPU)}
    assert found["torch"].status == "failed"
    assert "libcudart.so.13" in found["torch"].found
    assert found["torch"].fix == f"pip install --force-reinstall torch=={TESTED['torch']}"
    assert found["CUDA"].status == found["4-bit, odd widths"].status == "skipped"
    assert found["4-bit product"].status == found["training step"].status == "failed"
    assert found["AUTOFT_HOME"].status == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="PATH has another form")
def test_a_training_step_that_learns_nothing_fails(monkeypatch) -> None:
    import autoft.trainer.loop.engine  # noqa: F401 - imported while the optimizer is replaced, it would keep the other one
    from autoft.trainer.optimizers import optim

    class Idle:
        def step(self) -> None:
            pass

    monkeypatch.setattr(optim, "build_optimizer", lambda *_, **__: Idle())
    with pytest.raises(RuntimeError, match="left the adapter as it was"):
        compute.training_step()
