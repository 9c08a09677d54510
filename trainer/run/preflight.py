"""Preflight: does the machine have what the run needs, now? Looked at before anything is loaded, in a second or two.

What can be wrong with driver, card and kernels is the doctor's (trainer/doctor/), asked here in this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autoft.errors import DoesNotFit, TrainingError
from autoft.profiles.hardware import Gpu, Hardware
from autoft.trainer.doctor import compute, cuda
from autoft.trainer.doctor.finding import Finding, one_line
from autoft.trainer.job import Job
from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Dtype
from autoft.trainer.storage.claims import Claim
from autoft.trainer.storage.run_folder import SMALL_FILES_BYTES, check_disk
from autoft.units import size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def preflight(
    job: Job,
    *,
    predicted_bytes: int | None,
    hardware: Hardware,
    host_bytes: int | None = None,
    others: Sequence[Claim] = (),
    force: bool = False,
) -> list[str]:
    """Memory, card, driver and kernels. Returns what the user should know, a sentence each.

    predicted_bytes, host_bytes: the plan's, as trainer/result.py's Predicted has them. others: runs on the same
    device. force: memory that is too small is told, not refused.
    Raises: DoesNotFit when less memory is free than the plan needs; TrainingError when the machine cannot compute.
    """
    if job.device == "cuda" and not hardware.gpus:
        raise TrainingError(
            f"the run is for a GPU, and there is none here: {hardware.no_gpu_reason or 'none found'}",
            fix="run it there, or plan with --gpu cpu",
        )
    shortage = None if predicted_bytes is None else _shortage(job, predicted_bytes, hardware, others)
    if shortage is None and host_bytes is not None:
        shortage = _shortage_of_ram(host_bytes, hardware)
    if shortage is not None and not force:
        way = "plan again for what is free; --force runs it all the same"
        raise DoesNotFit(shortage.what, fix=f"{shortage.fix}, or {way}")
    for finding in _findings(job, hardware):
        if finding.status == "failed":
            raise TrainingError(f"{finding.name}: {finding.found}", fix=finding.fix)
    beside = [f"{_named(other)} uses the same device: both will be slower" for other in others]
    return beside if shortage is None else [shortage.what]


def check_room(job: Job, folder: Path, written_params: int) -> None:
    """The disk has room for all that the run will hold at once. folder: the unfinished one of the run.

    What is there already counts: it goes as other checkpoints come.
    Raises: OutputError.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    check_disk(
        folder,
        disk_bytes(job, written_params) - there,
        f"the run with {job.keep_checkpoints} checkpoints",
        fix="free some room, --set keep_checkpoints=1, or -o a folder on another disk",
    )


def disk_bytes(job: Job, written_params: int) -> int:
    """The most that a run has on its disk: the checkpoints kept, that of the best step, one in the writing, the result.

    A checkpoint holds the trained weights, all of an adapter's, and the optimizer's state.
    """
    recipe = job.recipe
    dtype: Dtype = recipe.weights_dtype if recipe.method == "full" else recipe.adapter_dtype
    weight = BYTES[dtype]
    state = spec_of(recipe.optimizer).state_bytes(weight)
    checkpoints = job.keep_checkpoints + 2
    return int(written_params * (checkpoints * (weight + state) + weight)) + SMALL_FILES_BYTES


class _Shortage(NamedTuple):
    """Of memory: what is missing, and what to do about it."""

    what: str
    fix: str


def _shortage(job: Job, predicted_bytes: int, hardware: Hardware, others: Sequence[Claim]) -> _Shortage | None:
    """What is missing of the memory, the libraries' own needs left out: None where the plan's peak is free.

    Of several GPUs each process sees its own; on a CPU all share one memory.
    """
    if job.device == "cpu":
        predicted_bytes *= job.num_gpus
        gpu, free, what, held, fix = None, hardware.host.ram_available_bytes, "RAM", "", "close other programs"
    else:
        gpu = max(hardware.gpus, key=lambda gpu: gpu.free_bytes)
        free, what, held, fix = gpu.free_bytes, gpu.name, _holder(gpu), "close that"
    expected = {other: other.missing_bytes(gpu) for other in others}
    if free - sum(expected.values()) >= predicted_bytes:
        return None
    if others:
        held = "".join(f"; {_named(other)} will allocate {size(more)} more" for other, more in expected.items())
        fix = "wait until it has finished"
    return _Shortage(f"the plan needs {size(predicted_bytes)} of {what}, and {size(free)} is free now{held}", fix)


def _shortage_of_ram(host_bytes: int, hardware: Hardware) -> _Shortage | None:
    """What is missing of the host's memory, where layers are to wait there."""
    free = hardware.host.ram_available_bytes
    if free >= host_bytes:
        return None
    what = f"streaming layers needs {size(host_bytes)} of RAM, and {size(free)} is free now"
    return _Shortage(what, "close other programs")


def _named(other: Claim) -> str:
    return f"another autoft run (pid {other.pid}, {other.out})"


def _holder(gpu: Gpu) -> str:
    others = [process for process in gpu.processes if process.pid != os.getpid() and process.used_bytes]
    holder = max(others, key=lambda process: process.used_bytes or 0, default=None)
    if holder is None:
        return ""
    return f": {holder.name or 'a process'} (pid {holder.pid}) holds {size(holder.used_bytes or 0)}"


def _findings(job: Job, hardware: Hardware) -> Iterator[Finding]:
    """What the doctor says of all that this job computes with."""
    recipe = job.recipe
    if job.device == "cuda":
        facts = cuda.TorchFacts.from_dict(cuda.torch_facts())
        yield cuda.torch_build(facts, hardware, cuda.cards_on_the_bus())
        yield cuda.driver_for_cuda(facts, hardware)
        yield cuda.kernels(facts, hardware)
        yield cuda.cuda_starts(facts, hardware)
        if recipe.loss == "fused":
            yield _triton()
        if job.num_gpus > 1:
            yield nccl()
    if recipe.quant_type == "int8":
        features = hardware.gpus[0].features if job.device == "cuda" else None
        if features is not None and not features.bitsandbytes_int8:
            reason = f"bitsandbytes has none in 8 bits for {hardware.gpus[0].name}"
            yield Finding(name="kernels", status="failed", found=reason, fix="--method lora, or --set quant_type=nf4")
    elif recipe.quant_type is not None:
        yield compute.usual_width(compute.FourBit.from_dict(compute.four_bit(job.device)))


def nccl() -> Finding:
    """Whether this build of PyTorch can join several GPUs."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_nccl_available():
        return Finding(name="NCCL", status="ok", found="it is there")
    reason = "this build of PyTorch has none, so several GPUs cannot train together"
    return Finding(
        name="NCCL", status="failed", found=reason, fix="plan again with --set num_gpus=1, or train on Linux"
    )


def _triton() -> Finding:
    try:
        version = compute.triton_kernel()
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways; what is asked is whether it works
        reason = one_line(error)
        fix = f"{compute.triton_fix(reason)}; or --set loss=logits"
        return Finding(name="Triton", status="failed", found=reason, fix=fix)
    return Finding(name="Triton", status="ok", found=version)
