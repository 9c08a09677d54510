"""Preflight: each want of the machine is refused with its figures, and what suffices passes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from autoft.errors import DoesNotFit, OutputError, TrainingError
from autoft.profiles.detect import detect
from autoft.profiles.hardware import GpuProcess
from autoft.trainer.doctor import compute
from autoft.trainer.job import Job
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.preflight import check_room, disk_bytes, nccl, preflight
from autoft.trainer.storage.run_folder import SMALL_FILES_BYTES
from autoft.units import GIB, MIB
from tests.trainer.test_doctor import HOST, NO_GPU, machine


def job(device: Any = "cpu", keep: int = 2, **settings: Any) -> Job:
    return Job(model="tiny", recipe=Recipe(**settings), device=device, keep_checkpoints=keep)


@pytest.mark.parametrize("settings", [{}, {"method": "qlora", "quant_type": "nf4"}])
def test_this_machine_passes(settings) -> None:
    assert preflight(job(**settings), predicted_bytes=MIB, hardware=detect()) == []


def test_ram_that_is_not_free_is_refused_or_with_force_told() -> None:
    said = "the plan needs 2.0 GiB of RAM, and 1.0 GiB is free now"
    with pytest.raises(DoesNotFit) as refused:
        preflight(job(), predicted_bytes=2 * GIB, hardware=NO_GPU)
    assert refused.value.what == said
    assert preflight(job(), predicted_bytes=2 * GIB, hardware=NO_GPU, force=True) == [said]
    assert preflight(job(), predicted_bytes=None, hardware=NO_GPU) == []


def test_processes_that_share_a_cpu_share_its_memory() -> None:
    two = replace(job(), num_gpus=2)
    assert preflight(two, predicted_bytes=GIB // 2, hardware=NO_GPU) == []
    with pytest.raises(DoesNotFit, match=r"the plan needs 1.5 GiB of RAM, and 1.0 GiB is free now"):
        preflight(two, predicted_bytes=3 * GIB // 4, hardware=NO_GPU)


def test_several_gpus_need_nccl() -> None:
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        assert nccl().status == "ok"
    else:
        assert (nccl().status, nccl().fix) == ("failed", "plan again with --set num_gpus=1, or train on Linux")


def test_a_card_that_another_process_holds_is_refused_and_the_process_named() -> None:
    here = machine()
    processes = (
        GpuProcess(pid=os.getpid(), name="python", used_bytes=21 * GIB),
        GpuProcess(pid=4711, name="game", used_bytes=18 * GIB),
        GpuProcess(pid=4712, used_bytes=GIB),
    )
    held = replace(here, gpus=(replace(here.gpus[0], free_bytes=5 * GIB, processes=processes),))
    with pytest.raises(DoesNotFit) as refused:
        preflight(job("cuda"), predicted_bytes=20 * GIB, hardware=held)
    assert refused.value.what == (
        "the plan needs 20.0 GiB of NVIDIA GeForce RTX 4090, and 5.0 GiB is free now: game (pid 4711) holds 18.0 GiB"
    )


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(TrainingError) as refused:
        preflight(job("cuda"), predicted_bytes=None, hardware=NO_GPU)
    assert refused.value.what == "the run is for a GPU, and there is none here: no NVIDIA driver found"


def test_what_the_doctor_finds_wrong_with_torch_is_refused() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch is built for CUDA, and right for such a card")
    with pytest.raises(TrainingError) as refused:
        preflight(job("cuda"), predicted_bytes=GIB, hardware=machine())
    assert refused.value.what.startswith(f"torch: {torch.__version__}, built for ")
    assert "pip install" in str(refused.value.fix)


def test_a_4_bit_kernel_that_multiplies_wrongly_is_refused(monkeypatch) -> None:
    """The usual width made one at which bitsandbytes 0.50 is wrong on a CPU."""
    error = compute.four_bit("cpu")["odd_error"]
    if error is not None and error <= compute.TOLERANCE:
        pytest.skip("this bitsandbytes multiplies rows of an odd width right")
    monkeypatch.setattr(compute, "USUAL_WIDTH", compute.ODD_WIDTH)
    with pytest.raises(TrainingError, match=r"4-bit product: on the CPU: \d+% off"):
        preflight(job(method="qlora", quant_type="nf4"), predicted_bytes=None, hardware=replace(NO_GPU, host=HOST))


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        ({"base_dtype": "float32", "rank": 128}, "adamw_torch"),
        ({"base_dtype": "float32", "rank": 128}, "adamw_8bit"),
        ({"adapter_dtype": "bfloat16", "rank": 128}, "adamw_8bit"),
        ({"method": "full"}, "adamw_torch"),
    ],
)
def test_the_room_for_a_checkpoint_is_that_of_a_real_one(tiny_model, settings, optimizer) -> None:
    from transformers import AutoConfig

    work = job(**settings, loss="selected", optimizer=optimizer)
    config = AutoConfig.from_pretrained(tiny_model)
    model = build_model(work.recipe, config=config, weights=tiny_model, device="cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = build_optimizer(trained, work.recipe, learning_rate=1e-3)
    ids = torch.arange(16).view(1, 16)
    torch.autograd.backward(compute_loss(model, {"input_ids": ids, "labels": ids}, work.recipe))
    stepper.step()
    weights = sum(p.nbytes for p in trained)
    # the 8-bit codes are the same for all tensors, 2 KiB of each: among the small things
    kept = [tensors for state in stepper.state.values() for name, tensors in state.items() if "qmap" not in name]
    states = sum(tensor.nbytes for tensor in kept if torch.is_tensor(tensor))
    real = (work.keep_checkpoints + 2) * (weights + states) + weights
    counted = disk_bytes(work, sum(p.numel() for p in trained)) - SMALL_FILES_BYTES
    assert counted == pytest.approx(real, rel=0.05)


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path) -> None:
    folder = tmp_path / "out.unfinished"
    check_room(job(), folder, 1000)
    with pytest.raises(OutputError) as refused:
        check_room(job(keep=3), folder, 2**50)
    assert refused.value.what.startswith(
        f"{folder}: the run with 3 checkpoints needs 68,719,476,800 MiB, its disk has "
    )


def test_checkpoints_that_are_there_already_count(tmp_path) -> None:
    import shutil

    free = shutil.disk_usage(tmp_path).free
    params = (free + 32 * MIB - SMALL_FILES_BYTES) // 52  # 4 x 12 bytes and 4: some 32 MiB more than are free
    with pytest.raises(OutputError):
        check_room(job(), tmp_path, params)
    (tmp_path / "checkpoints").mkdir()
    with (tmp_path / "checkpoints" / "tensors").open("wb") as file:
        file.truncate(GIB)  # takes no room of this disk, but is as long as a gigabyte
    check_room(job(), tmp_path, params)
