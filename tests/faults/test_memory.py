"""Memory that runs out in the midst of a step costs time and nothing else: the weights are those of a quiet run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from autoft.errors import OutOfMemory, Resumable
from autoft.trainer.events import Recovered
from autoft.trainer.loop.engine import Engine
from autoft.trainer.objectives import OBJECTIVES
from autoft.trainer.run.session import resume, run
from autoft.trainer.runtime.peak_memory import is_out_of_memory
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.conftest import STEPS, minimise

FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        'NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp"'
    ),
    MemoryError(),
]


class MemoryEnds:
    """The loss, which runs out of memory for any micro-batch of more rows or tokens from the backward `first` on."""

    def __init__(self, monkeypatch, *, rows, tokens=10_000, first=0, error=FORMS[0]):
        self.rows, self.tokens, self.first, self.error, self.calls = rows, tokens, first, error, 0
        self.real = OBJECTIVES["sft"].loss
        minimise(self, monkeypatch)

    def __call__(self, model, batch, recipe, *, num_trained_tokens=None):
        self.calls += 1
        loss = self.real(model, batch, recipe, num_trained_tokens=num_trained_tokens)
        ids = batch["input_ids"]
        if self.calls > self.first and (ids.size(0) > self.rows or ids.numel() > self.tokens):
            # in the midst of the backward: what the later layers have is in their gradients already
            parameter = next(p for name, p in reversed(list(model.named_parameters())) if p.requires_grad)
            loss.register_hook(lambda gradient: None)
            parameter.grad = torch.full_like(parameter, 1e3)
            raise self.error
        return loss


def learnt(folder):
    return load_file(next(folder.glob("*model.safetensors")))


@pytest.mark.parametrize("kind", ["lora", "packed", "qlora", "full"])
def test_at_whatever_step_it_ends_the_weights_are_the_same(make_job, tmp_path, monkeypatch, kind):
    """The rehearsal has two backwards and every step two."""
    job = make_job(kind, recipe={"dropout": 0.0})
    with monkeypatch.context() as patch:
        calls = MemoryEnds(patch, rows=4)
        run(job, tmp_path / "quiet", plan_toml="")
    quiet = learnt(tmp_path / "quiet")
    for first, steps in ((2, {1}), (3, {1}), (2 + 2 * 3, {4, 5}), (calls.calls - 1, {STEPS})):
        out = tmp_path / f"out{first}"
        with monkeypatch.context() as patch:
            MemoryEnds(patch, rows=2, first=first)
            result = run(job, out, plan_toml="")
        assert [(e["change"], e["micro_batch"]) for e in result.events] == [("micro_batch", 2)]
        assert result.events[0]["step"] in steps
        for name, value in learnt(out).items():
            torch.testing.assert_close(value, quiet[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("error", FORMS, ids=lambda error: type(error).__name__)
def test_every_form_is_known_and_the_smaller_size_stays(make_job, tmp_path, monkeypatch, error):
    losses = MemoryEnds(monkeypatch, rows=1, first=4, error=error)
    result = run(make_job(), tmp_path / "out", plan_toml="")
    assert [event["micro_batch"] for event in result.events] == [2, 1]
    # after the two that failed and one that had gone well, every backward has one row
    assert losses.calls > 4 * (2 * STEPS - 3)
    told = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    reason = next(event["reason"] for event in told if event["event"] == "recovered")
    assert reason == (str(error) or "MemoryError").splitlines()[0]


def test_in_the_rehearsal_nothing_is_lost_at_all(make_job, tmp_path, monkeypatch):
    MemoryEnds(monkeypatch, rows=2)
    events = []
    result = run(make_job(recipe={"dropout": 0.0}), tmp_path / "out", plan_toml="", listener=events.append)
    assert [event.step for event in events if isinstance(event, Recovered)] == [0]
    assert result.steps == STEPS


def test_at_one_row_layers_are_checkpointed_and_then_it_is_a_clear_end(make_job, tmp_path, monkeypatch):
    job = make_job(recipe={"dropout": 0.0}, save_steps=None)
    run(job, tmp_path / "quiet", plan_toml="")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        MemoryEnds(patch, rows=0, first=2 + 2 * 2)
        with pytest.raises(Resumable, match="out of memory at step 3") as ended:
            run(job, out, plan_toml="")
    assert isinstance(ended.value.__cause__, OutOfMemory)
    assert "step 2" in ended.value.what
    result = resume(out, job)
    changes = [event["change"] for event in result.events if event["event"] == "recovered"]
    assert changes == ["micro_batch", "micro_batch", "gradient_checkpointing"]
    quiet = learnt(tmp_path / "quiet")
    for name, value in learnt(out).items():
        torch.testing.assert_close(value, quiet[name], rtol=1e-3, atol=1e-5)


def test_packed_rows_are_cut_between_their_examples_when_nothing_else_is_left(make_job, tmp_path, monkeypatch):
    job = make_job("packed", recipe={"dropout": 0.0})
    run(job, tmp_path / "quiet", plan_toml="")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        MemoryEnds(patch, rows=1, tokens=64, first=2 + 2 * 2)
        result = run(job, out, plan_toml="")
    changes = [event["change"] for event in result.events]
    assert changes == ["micro_batch", "micro_batch", "gradient_checkpointing", "row_tokens"]
    assert result.events[-1]["step"] == 3
    quiet = learnt(tmp_path / "quiet")
    for name, value in learnt(out).items():
        torch.testing.assert_close(value, quiet[name], rtol=1e-3, atol=1e-5)


def test_checkpointing_is_really_on_once_it_was_fallen_back_on(make_job, tmp_path, monkeypatch):
    job = make_job(recipe={"micro_batch": 1, "dropout": 0.0})
    ends = MemoryEnds(monkeypatch, rows=0, first=4)
    seen = []

    def loss(model, batch, recipe, *, num_trained_tokens=None):
        on = [m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        seen.append(any(on))
        ends.rows = 1 if any(on) else 0
        return ends(model, batch, recipe, num_trained_tokens=num_trained_tokens)

    minimise(loss, monkeypatch)
    result = run(job, tmp_path / "out", plan_toml="")
    assert [event["change"] for event in result.events] == ["gradient_checkpointing"]
    assert seen[-1]
    assert not seen[0]


def test_another_error_is_not_taken_for_it(make_job, tmp_path, monkeypatch):
    MemoryEnds(monkeypatch, rows=0, first=4, error=RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(Resumable, match="does not answer"):
        run(make_job(), tmp_path / "out", plan_toml="")
    assert unfinished(tmp_path / "out").exists()
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Operations(TorchDispatchMode):
    """The names of all that PyTorch computes while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "scaled"), [("float16", True), ("bfloat16", False)])
def test_the_rehearsal_scales_gradients_where_training_does(make_job, tmp_path, monkeypatch, dtype, scaled):
    operations = Operations()
    step = Engine._rehearse_step

    def recorded(engine):
        with operations:
            return step(engine)

    monkeypatch.setattr(Engine, "_rehearse_step", recorded)
    recipe = {"dropout": 0.0, "base_dtype": dtype, "autocast": True}
    result = run(make_job(recipe=recipe, max_steps=1), tmp_path / "out", plan_toml="")
    assert result.steps == 1
    assert ("aten::_amp_foreach_non_finite_check_and_unscale_" in operations.names) == scaled
