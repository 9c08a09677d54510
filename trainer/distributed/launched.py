"""How was this process started: alone, or as one of several by torchrun, `accelerate launch` or Slurm's srun?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from autoft.errors import OptionError

# What torchrun sets (torch/distributed/run.py, "Environment Variables"); accelerate launches by it
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What srun sets for each task of a step (srun's manual, "OUTPUT ENVIRONMENT VARIABLES"); it names no address
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
SLURM_PORT = 29500  # where MASTER_PORT is not set, as torchrun's
MASTER_OF_SLURM = 'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" before srun'


@dataclass(frozen=True, slots=True)
class Launch:
    """rank of size: this process among all. local_rank of local_size: among those of its host.

    address, port: of the store by which they find each other. hosted: whether the launcher keeps that store; else the
    process of rank 0 does. attempt: how often the launcher has restarted them.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    hosted: bool = False
    attempt: int = 0

    @property
    def hosts(self) -> int:
        return self.size // self.local_size

    @property
    def host(self) -> int:
        """Number of this one, from 0."""
        return self.rank // self.local_size


def launched(environ: Mapping[str, str] | None = None) -> Launch | None:
    """None where this process is alone.

    Raises: OptionError where the launcher's words make no sense, or name no host to meet at.
    """
    environ = os.environ if environ is None else environ
    if all(name in environ for name in TORCHRUN):
        rank, size, local_rank, local_size = (_number(environ, name) for name in TORCHRUN[:4])
        hosted = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    elif all(name in environ for name in SRUN):
        rank, size, local_rank, hosts = (_number(environ, name) for name in SRUN)
        local_size = size // max(1, hosts)
        hosted, attempt = False, int(environ.get("SLURM_RESTART_COUNT") or 0)
        if size > 1 and "MASTER_ADDR" not in environ:
            raise OptionError("srun has started several processes, and MASTER_ADDR is not set", fix=MASTER_OF_SLURM)
    else:
        return None
    if size == 1:
        return None
    if not local_size or size % local_size or not rank < size or rank % local_size != local_rank:
        raise OptionError(
            f"process {rank} of {size} is {local_rank} of {local_size} on its host",
            fix="start as many processes on each host, numbered host by host (srun: --distribution=block)",
        )
    port = _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else SLURM_PORT
    return Launch(rank, size, local_rank, local_size, environ["MASTER_ADDR"], port, hosted, attempt)


def forget_launcher() -> None:
    """transformers and accelerate are not told of the other processes: they would split data and model themselves."""
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith("ACCELERATE_"):
            del os.environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    """Raises: OptionError."""
    if not environ[name].isdecimal():
        raise OptionError(f"{name}={environ[name]} in the environment is not a number", fix="let the launcher set it")
    return int(environ[name])
