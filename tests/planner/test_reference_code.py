"""Hybrids are rehearsed in PyTorch's own code, whatever kernels are installed, and the estimate says so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.rehearsal.loop import OURS
from autoft.planner.tracing.reference_code import _as_kernel, kernel_packages
from autoft.trainer.model.build import base_of
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config
from tests.planner.test_several_gpus import NOWHERE

TARGET = target_of(NOWHERE, gpu_name="rtx-4090", vram_gib=None, cpu_flops_per_s=lambda: 1e9)
LFM2 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "layer_types": ["conv", "full_attention"] * 2,
}
# A package whose kernels take no tensor without storage, as compiled ones do not
INSTALLED = """
import sys, types
package = types.ModuleType("causal_conv1d")
def kernel(*args, **named): raise RuntimeError("a kernel was run")
package.causal_conv1d_fn = package.causal_conv1d_update = kernel
sys.modules["causal_conv1d"] = package
from tests.planner.test_reference_code import estimate
estimate()
from transformers.models.lfm2 import modeling_lfm2
assert modeling_lfm2.causal_conv1d_fn.__wrapped__ is not None  # put back
try: modeling_lfm2.causal_conv1d_fn(x=None, weight=None)
except RuntimeError as error: assert str(error) == "a kernel was run"
else: raise SystemExit("the stand-in is not used")
"""


def estimate() -> tuple[str, ...]:
    estimator = Estimator("tiny", AutoConfig.for_model("lfm2", **LFM2), TARGET)
    return estimator.estimate(Recipe(seq_len=64, base_dtype="bfloat16")).assumptions


def test_kernels_that_are_installed_are_not_rehearsed() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INSTALLED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_estimate_of_a_hybrid_says_what_was_rehearsed() -> None:
    said = "memory and time: some layers are rehearsed in PyTorch's code; with causal_conv1d installed they take less"
    assert said in estimate()


def test_a_hybrid_has_a_range_from_what_its_kernels_must_keep_to_the_reference() -> None:
    """The reference of the gated delta rule builds matrices of chunk x chunk a head, which its kernel never holds."""
    estimator = Estimator("tiny", family_config("qwen3_next"), TARGET)
    recipe = Recipe(seq_len=512, base_dtype="bfloat16", attention=estimator.attention)
    whole = estimator.estimate(recipe)
    ranged = estimator.with_kernels(recipe, whole)
    (record,) = [record for record in ranged.assumption_records if "packages" in record.figures]
    figures = record.figures
    assert figures["device_bytes_lower"] < figures["device_bytes_upper"] == whole.device_bytes
    assert figures["step_time_s_lower"] < whole.step_time_s.lower
    assert figures["step_time_s_upper"] == whole.step_time_s.upper
    assert "causal_conv1d and flash-linear-attention installed expect " in record.text
    assert replace(ranged, assumptions=(), assumption_records=()) == replace(
        whole, assumptions=(), assumption_records=()
    )


def test_a_model_without_such_layers_is_the_same_with_kernels() -> None:
    estimator = Estimator("tiny", family_config("llama3"), TARGET)
    recipe = Recipe(seq_len=64, base_dtype="bfloat16")
    plain = estimator.estimate(recipe)
    assert estimator.with_kernels(recipe, plain) is plain
    assert estimator.estimate(recipe, loop=replace(OURS, layer_kernels=True)) == plain


def test_what_stands_for_a_kernel_gives_the_reference_s_shapes_and_every_gradient() -> None:
    def reference(x, weight, bias=None, *, both=False):
        wide = (x[..., None] * weight).sum(-1)
        return (wide.float(), None if bias is None else bias + 1) if both else wide

    x = torch.randn(2, 3, requires_grad=True)
    weight = torch.randn(3, 4)
    stands_in = _as_kernel(reference)
    result, nothing = stands_in(x, weight, both=True)
    assert (result.shape, result.dtype, nothing) == ((2, 3), torch.float32, None)
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert weight.grad is None
    assert stands_in(x.detach(), weight).requires_grad is False


@pytest.mark.parametrize(
    ("family", "packages"), [("llama3", ()), ("qwen3_next", ("causal_conv1d", "flash-linear-attention"))]
)
def test_packages_are_those_of_the_model_s_own_code(family, packages) -> None:
    assert kernel_packages(base_of(family_config(family))[1]) == packages
