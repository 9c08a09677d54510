"""Processes that a launcher starts, on one host and several: what they learn, and that no end of one goes unseen.

Two hosts are two network namespaces where the tests may make them, else this one over its loopback device.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from autoft.errors import OptionError, Resumable
from autoft.trainer.distributed.launched import Launch, launched
from autoft.trainer.runtime import environment
from tests.conftest import write_forty_rows, write_jsonl
from tests.faults.conftest import weights_of

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")
NAMESPACES = ("autoft-a", "autoft-b")
ENDS_WITHIN_S = 120


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the data, where both hosts begin."""
    write_forty_rows(tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def words(tiny_model):
    def of(*more: str) -> list[str]:
        return ["run", str(tiny_model), "--data", "data.jsonl", "--gpu", "cpu", "-o", "out", *more]

    return of


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


class Hosts:
    """Two hosts, each with one process of the run. address: of the first."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", inside: tuple[str, ...] | None = None) -> None:
        self.folder, self.address, self.inside = folder, address, inside
        self.port = free_port()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, words, *, size: int = 2, code: str = "", cwds=(None, None)) -> None:
        """code: what the second runs before anything else; the silence after which one is lost is short in both."""
        for rank in range(2):
            place = self.folder / f"python-{rank}"
            place.mkdir(exist_ok=True)
            (place / "sitecustomize.py").write_text(
                "from autoft.trainer.distributed import meeting\nmeeting.SILENT_S = 5.0\n" + (code if rank else "")
            )
            env = environment.of_child() | {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            env["PYTHONPATH"] = os.pathsep.join((str(place), env["PYTHONPATH"]))
            prefix = ["ip", "netns", "exec", self.inside[rank]] if self.inside else []
            with (self.folder / f"{rank}.log").open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [*prefix, sys.executable, "-m", "autoft", *words],
                        cwd=cwds[rank] or self.folder,
                        env=env,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + ENDS_WITHIN_S
        while text not in self.said(0):
            assert self.processes[0].poll() is None, self.said(0) + self.said(1)
            assert time.monotonic() < end, self.said(0) + self.said(1)
            time.sleep(0.1)

    def end(self) -> list[int]:
        """Exit codes."""
        codes = [process.wait(ENDS_WITHIN_S) for process in self.processes]
        self.processes.clear()
        return codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def hosts(here):
    two = Hosts(here)
    yield two
    two.kill()


@pytest.fixture
def apart(here):
    """Two network namespaces with a link between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces are made by root with ip")

    def ip(*words: str, check: bool = True) -> int:
        return subprocess.run(["ip", *words], check=check, capture_output=True).returncode

    if ip("netns", "add", NAMESPACES[0], check=False):
        pytest.skip("no network namespaces may be made here")
    try:
        ip("netns", "add", NAMESPACES[1])
        ip(
            "link",
            "add",
            "autoft-va",
            "netns",
            NAMESPACES[0],
            "type",
            "veth",
            "peer",
            "name",
            "autoft-vb",
            "netns",
            NAMESPACES[1],
        )
        for number, (name, device) in enumerate(zip(NAMESPACES, ("autoft-va", "autoft-vb"), strict=True), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", device)
            for each in ("lo", device):
                ip("-n", name, "link", "set", each, "up")
        two = Hosts(here, "10.77.0.1", NAMESPACES)
        yield two
        two.kill()
    finally:
        for name in NAMESPACES:
            ip("netns", "del", name, check=False)


def link(state: str) -> None:
    subprocess.run(["ip", "-n", NAMESPACES[1], "link", "set", "autoft-vb", state], check=True)


# What is learnt


def test_two_hosts_learn_what_two_processes_of_one_do(here, hosts, words, autoft):
    hosts.start(words("--set", "max_steps=6"))
    assert hosts.end() == [0, 0], hosts.said(0) + hosts.said(1)
    assert "2 hosts with CPU" in hosts.said(0)
    assert "process" not in hosts.said(1)
    done = autoft(
        *words("--set", "max_steps=6", "--set", "num_gpus=2")[:-6],
        "-o",
        "beside",
        "--set",
        "max_steps=6",
        "--set",
        "num_gpus=2",
    )
    assert done.code == 0, done.err
    assert weights_of(here / "out") == weights_of(here / "beside")


@pytest.mark.usefixtures("here")
def test_torchrun_starts_both_processes_of_a_host(words):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*run, "-m", "autoft", *words("--set", "max_steps=2", "--json")],
        env=environment.of_child() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=ENDS_WITHIN_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"num_gpus": 2' in done.stdout
    again = subprocess.run(
        [*run, "-m", "autoft", *words("--hosts", "2")],
        env=environment.of_child(), capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "out: holds a finished run" in again.stderr
    assert "exitcode  : 2" in again.stderr


# How it ends


def test_a_host_that_is_cut_off_is_noticed_on_both_sides_and_the_run_goes_on_later(here, apart, words, autoft):
    settings = ("--set", "max_steps=200", "--set", "save_steps=20")
    apart.start(words(*settings))
    apart.wait_for("Checkpoint at step 20")
    link("down")
    assert apart.end() == [Resumable.exit_code, Resumable.exit_code], apart.said(0) + apart.said(1)
    assert "has not answered for 5 s: it has ended, or its host is cut off" in apart.said(0)
    assert "the first process has not answered for 5 s" in apart.said(1)
    link("up")
    apart.start(("resume", "out"))
    assert apart.end() == [0, 0], apart.said(0) + apart.said(1)
    quiet = autoft(
        "run", words()[1], "--data", "data.jsonl", "--gpu", "cpu", *settings, "--set", "num_gpus=2", "-o", "quiet"
    )
    assert quiet.code == 0, quiet.err
    assert weights_of(here / "out") == weights_of(here / "quiet")


@pytest.mark.parametrize(
    ("rank", "number", "codes", "said"),
    [
        (1, signal.SIGTERM, [4, 4], "stopped by SIGTERM; the state after step"),
        (0, signal.SIGTERM, [4, 4], "stopped by SIGTERM; the state after step"),
        (1, signal.SIGKILL, [4, -9], "the connection to another process broke"),
    ],
)
def test_what_ends_one_host_s_process_ends_the_run_with_what_is_trained(hosts, words, rank, number, codes, said):
    hosts.start(words("--set", "max_steps=4000", "--set", "save_steps=20"))
    hosts.wait_for("Checkpoint at step 20")
    hosts.processes[rank].send_signal(number)
    assert hosts.end() == codes, hosts.said(0) + hosts.said(1)
    assert said in hosts.said(0)
    assert "To fix: autoft resume out" in hosts.said(0)


def test_the_end_of_the_first_ends_the_others(hosts, words):
    hosts.start(words("--set", "max_steps=4000"))
    hosts.wait_for("Training")
    hosts.processes[0].kill()
    assert hosts.end() == [-9, Resumable.exit_code]
    assert "process 2 of 2: the " in hosts.said(1)


# Bad input


def test_other_versions_other_rows_and_other_counts_are_named(here, hosts, words):
    change = (
        "from autoft.trainer.run import fingerprint\n"
        "real = fingerprint.versions\n"
        "fingerprint.versions = lambda: real() | {'peft': '0.1'}\n"
    )
    hosts.start(words(), code=change)
    assert hosts.end() == [Resumable.exit_code, 1], hosts.said(0) + hosts.said(1)
    assert "process 2 of 2 has ended: peft is 0.1 on" in hosts.said(0)
    assert not (here / "out").exists()

    there = here / "there"
    there.mkdir()
    write_jsonl(there / "data.jsonl", [{"prompt": f"other {n}", "completion": str(n)} for n in range(40)])
    hosts.start(words("--force"), cwds=(None, there))
    assert hosts.end()[0] == OptionError.exit_code, hosts.said(0) + hosts.said(1)
    assert "data.jsonl: not the same rows for process 2 of 2, on its host" in hosts.said(0)

    hosts.start(words("--force", "--hosts", "3"))
    assert hosts.end()[0] == OptionError.exit_code
    assert "--hosts 3, and the launcher has started 2 processes on 2" in hosts.said(0)


def test_a_plan_for_several_hosts_wants_a_launcher(here, words, autoft):
    refused = autoft(*words("--hosts", "2"))
    assert refused.code == OptionError.exit_code
    assert "the plan is for 2 hosts, and a launcher has to start it on each" in refused.err
    assert not list(here.glob("out*"))


TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7",
}  # fmt: skip
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"}


def test_what_launchers_say_of_a_process():
    assert launched({}) is None
    assert launched(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}) is None
    torchrun = launched(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert torchrun == Launch(3, 4, 1, 2, "a", 7, hosted=True, attempt=2)
    assert (torchrun.hosts, torchrun.host) == (2, 1)
    assert launched(SRUN | {"MASTER_ADDR": "b"}) == Launch(3, 4, 1, 2, "b", 29500)
    # a batch script is no task of a step
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        (SRUN, "srun has started several processes, and MASTER_ADDR is not set"),
        (TORCHRUN | {"RANK": "x"}, "RANK=x in the environment is not a number"),
        (TORCHRUN | {"LOCAL_RANK": "0"}, "process 3 of 4 is 0 of 2 on its host"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "process 3 of 4 is 1 of 3 on its host"),
        (TORCHRUN | {"RANK": "4"}, "process 4 of 4"),
    ],
)
def test_what_makes_no_sense_of_it_is_refused(environ, what):
    with pytest.raises(OptionError, match=what):
        launched(environ)
