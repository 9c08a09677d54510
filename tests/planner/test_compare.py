"""The three methods side by side, and measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autoft.errors import OptionError, TrainingError
from autoft.planner.request import Request
from autoft.planner.what_if import compare_measured as planner_measured
from autoft.planner.what_if.compare import Comparison, compare
from autoft.planner.what_if.compare_measured import measured
from autoft.planner.what_if.context import make_frame
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.measure import Task, measure, random_weights, run, weights_at_hand
from autoft.trainer.sources.resolve import resolve
from tests.support.machines import NO_GPU as CPU
from tests.support.shapes import WIDE_LLAMA

LAYERS, HIDDEN, INNER, VOCAB = (
    WIDE_LLAMA[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
)
KV = WIDE_LLAMA["num_key_value_heads"] * HIDDEN // WIDE_LLAMA["num_attention_heads"]


def test_sizes_are_what_the_shapes_say(wide_shape) -> None:
    found = compare(make_frame(Request(model=wide_shape, gpu="rtx-3060", seq_len=256), CPU))
    assert Comparison.from_dict(found.to_dict()) == found
    lora, int8, qlora = found.sides
    assert [side.fits for side in found.sides] == ["yes"] * 3
    assert found.plan_takes == "lora"
    linear = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * INNER)
    whole = linear + VOCAB * HIDDEN + (2 * LAYERS + 1) * HIDDEN
    adapter = 16 * LAYERS * (2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KV) + 3 * (HIDDEN + INNER))
    for side in found.sides:
        assert side.estimate is not None
        assert side.deployment_bytes is not None
        assert side.estimate.trainable_params == adapter
        assert side.adapter_bytes == 4 * adapter
        assert side.deployment_bytes["merged"] == 2 * whole
        assert side.deployment_bytes["on_16-bit_base"] == 2 * whole + 4 * adapter
        assert side.smallest_gib == 6
        assert side.sources
    assert lora.base_bytes is not None
    assert int8.base_bytes is not None
    assert qlora.base_bytes is not None
    assert lora.base_bytes == pytest.approx(2 * whole, rel=0.001)  # and the rotary frequencies
    rows = LAYERS * (2 * HIDDEN + 2 * KV + 2 * INNER + HIDDEN)  # of the layers' weights: a float32 scale each
    assert int8.base_bytes - lora.base_bytes == 4 * rows - linear
    # NF4 with double quantization: half a byte a weight, a byte a block of 64, a float32 for 256 of these, and two
    # tables of 16 and 256 values with an offset (arXiv:2305.14314, section 3)
    weights = [HIDDEN * HIDDEN] * 2 + [HIDDEN * KV] * 2 + [HIDDEN * INNER] * 3
    packed = sum(w // 2 + w // 64 + 4 * -(-w // (64 * 256)) + 4 * (16 + 256 + 1) for w in weights)
    assert lora.base_bytes - qlora.base_bytes == 2 * linear - LAYERS * packed


def test_a_card_without_the_kernels_and_a_pinned_method_are_told(wide_shape) -> None:
    frame = make_frame(Request(model=wide_shape, gpu="v100-16gb", seq_len=64), CPU)
    sides = {side.name: side for side in compare(frame).sides}
    assert sides["int8"].fits == "refused"
    assert str(sides["int8"].reason).startswith("bitsandbytes has no 8-bit kernels for ")
    assert sides["qlora"].fits == "yes"
    with pytest.raises(OptionError, match="--set quant_type: a comparison is of all methods"):
        compare(replace(frame, request=replace(frame.request, settings=("quant_type=nf4",))))


def test_real_steps_stand_beside_the_prediction(tiny_model, data_file, monkeypatch) -> None:
    # in this process: starting three takes most of a minute, and one is started below
    monkeypatch.setattr(planner_measured, "measure", lambda task, _: run(task))
    frame = make_frame(Request(model=str(tiny_model), data=str(data_file), gpu="cpu"), CPU)
    said: list[str] = []
    found = measured(compare(frame), frame, steps=2, say=said.append)
    assert said == [f"measuring {label}: 2 steps" for label in ("LoRA", "LoRA, 8-bit", "QLoRA")]
    losses = []
    for side in found.sides:
        assert side.measured is not None
        steps = side.measured.steps
        assert steps is not None, side.measured.failed
        assert len(steps.step_times_s) == len(steps.losses) == 2
        assert steps.losses[1] < steps.losses[0]
        assert steps.heldout_loss is not None
        assert side.measured.perplexity == math.exp(steps.heldout_loss)
        assert side.measured.heldout_rows == 4
        losses.append(steps.heldout_loss)
    # random weights answer at random, and rounding them changes that a little
    assert losses[0] != losses[1] != losses[2]
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)
    assert Comparison.from_dict(found.to_dict()) == found
    assert any("4 held-out rows" in note for note in found.notes)


def test_a_process_of_its_own_measures_and_its_failure_is_one_line(tiny_model, tmp_path) -> None:
    ref = resolve(str(tiny_model))
    folder = weights_at_hand(ref)
    assert folder == tiny_model
    recipe = Recipe(base_dtype="float32", micro_batch=2, seq_len=32, loss="selected")
    task = Task(model=str(tiny_model), weights=str(folder), recipe=recipe, device="cpu", steps=1)
    steps = measure(task)
    assert steps.step_time_s == steps.step_times_s[0] > 0
    assert steps.heldout_loss is None
    # any tokens, from weights at random: the loss is that of a guess
    assert steps.losses[0] == pytest.approx(math.log(259), rel=0.1)
    with pytest.raises(TrainingError) as error:
        measure(replace(task, weights=str(tmp_path / "none")))
    assert error.value.what.startswith("measuring lora failed: ")
    assert "\n" not in error.value.what


def test_weights_that_are_not_here_are_made_up_for_the_steps_alone(tiny_model, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    ref = resolve(str(tmp_path))
    assert weights_at_hand(ref) is None
    assert weights_at_hand(resolve("qwen2.5-0.5b-instruct")) is None
    with random_weights(ref, 100_000) as folder:
        assert weights_at_hand(resolve(str(folder))) == folder
    assert not folder.exists()
