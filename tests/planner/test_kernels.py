"""What CUDA's kernels do that shapes do not tell: each rule with bytes counted by hand from the source it names."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.nn import functional

from autoft.planner.kernels.attention import EFFICIENT_TAKES_GROUPS, flash_splits
from autoft.planner.kernels.dispatch import Kernels, fused_4bit_product, scratch
from autoft.planner.kernels.rules import INSTALLED_TORCH, Device
from autoft.planner.rehearsal.loop import OURS
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.planner.rehearsal.step import _backward
from autoft.planner.tracing.trace import KIND, Trace
from autoft.trainer.model.experts import pack_on_meta
from autoft.trainer.recipe import Recipe
from autoft.units import MIB
from tests.planner.families import family_config

CPU, TURING, ADA, HOPPER = Device(None), Device((7, 5)), Device((8, 9), 128), Device((9, 0), 132)
OLD, NEW = Device((7, 5), torch=(2, 13)), Device((7, 5), torch=(2, 14))  # of PyTorch
B, H, S, D = 2, 4, 96, 64
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tensor(*shape: int, dtype: torch.dtype = BF16, trained: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=trained)


def taken(device: Device, function: Callable[..., Any], *inputs: Any, backend: Any = None) -> list[int]:
    """Bytes of every storage that `function` takes, in order; its inputs are there before."""
    trace = Trace(scratch(device))
    for value in inputs:
        trace.ignore(value)
    with trace, Kernels(device, backend):
        kept = function(*inputs)
        sizes = [size for section in trace.sections for _, size in section.events if size > 0]
    del kept
    return sizes


def heads(dim: int = D, count: int = H, dtype: torch.dtype = BF16, trained: bool = False) -> torch.Tensor:
    return tensor(B, count, S, dim, dtype=dtype, trained=trained)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, **settings)


# --- attention


def test_flash_keeps_output_logsumexp_and_the_generator_s_state() -> None:
    out, logsumexp = 2 * B * H * S * D, 4 * B * H * S
    assert taken(TURING, attend, *(heads(dtype=FP16) for _ in range(3)), backend="flash") == [out, logsumexp, 16, 8]


def test_flash_pads_heads_to_a_multiple_of_eight() -> None:
    padded, logsumexp = 2 * B * H * S * 88, 4 * B * H * S
    assert taken(ADA, attend, *(heads(dim=84) for _ in range(3)))[:5] == [padded] * 3 + [padded, logsumexp]


def test_flash_splits_the_keys_of_a_small_grid_and_sums_their_parts_in_float32() -> None:
    # 1 x 4 heads x 1 tile of 64 queries on 2 x 128 places; 4096 keys are 16 blocks of 256: any number of splits is one
    # wave, so the most efficient are the most splits; 85 % of 64/256 is reached by 14 of 16
    assert flash_splits(ADA, 1, 4, 64, 4096, 64) == 16
    assert flash_splits(ADA, 8, 32, 2048, 2048, 64) == 1
    assert flash_splits(TURING, 1, 4, 64, 4096, 64) == 1  # how many multiprocessors it has is not known
    q, kv = tensor(1, 4, 64, 64), tensor(1, 4, 4096, 64)
    out, logsumexp = 2 * 4 * 64 * 64, 4 * 4 * 64
    assert taken(ADA, attend, q, kv, kv)[:4] == [out, logsumexp, 16 * logsumexp, 16 * 2 * out]


def test_flash_backward_takes_a_float32_gradient_and_all_heads_of_grouped_keys() -> None:
    q, k, v = heads(trained=True), heads(count=2, trained=True), heads(count=2, trained=True)
    sizes = taken(ADA, lambda q, k, v: _backward(attend(q, k, v, enable_gqa=True).sum()), q, k, v)
    rounded = 128  # of 96 queries
    of_query, of_keys = 2 * B * H * S * D, 2 * B * 2 * S * D
    delta, accumulator = 4 * B * H * rounded, 4 * B * rounded * H * D
    assert sizes[-7:] == [of_query, of_keys, of_keys, delta, accumulator, of_query, of_query]


def test_the_efficient_kernel_rounds_logsumexp_up_to_32_queries() -> None:
    q, k, v = (tensor(B, H, 70, D, dtype=FP16, trained=True) for _ in range(3))
    assert taken(OLD, attend, q, k, v) == [2 * B * H * 70 * D, 4 * B * H * 96]
    assert taken(OLD, torch.no_grad()(attend), *(t.detach() for t in (q, k, v))) == [2 * B * H * 70 * D]


def test_the_efficient_kernel_keeps_the_generator_s_state_on_the_device_from_torch_2_14_on() -> None:
    q, k, v = (heads(dtype=FP16) for _ in range(3))
    assert taken(NEW, attend, q, k, v) == [8, 8, *taken(OLD, attend, q, k, v)]


def test_the_efficient_backward_takes_the_gradients_of_grouped_keys_for_all_heads() -> None:
    q, k, v = heads(dtype=FP16, trained=True), *(heads(count=2, dtype=FP16, trained=True) for _ in range(2))
    sizes = taken(NEW, lambda q, k, v: _backward(attend(q, k, v, enable_gqa=True).sum()), q, k, v)
    of_query, of_keys = 2 * B * H * S * D, 2 * B * 2 * S * D
    delta, workspace = 4 * B * H * S, 4 * B * H * 2 * (4 + 64 * 64)
    assert _until(workspace, sizes, 7) == [of_query, of_keys, of_keys, of_query, of_query, delta, workspace]


def test_the_efficient_backward_of_float32_sums_a_product_for_its_delta() -> None:
    q, k, v = (heads(dtype=FP32, trained=True) for _ in range(3))
    sizes = taken(NEW, lambda q, k, v: _backward(attend(q, k, v).sum()), q, k, v)
    delta, workspace = 4 * B * H * S, 4 * B * H * 2 * (4 + 64 * 64)
    assert _until(workspace, sizes, 4) == [4 * B * H * S * D, delta, delta, workspace]


def _until(last: int, sizes: list[int], count: int) -> list[int]:
    """The `count` sizes that end with `last`."""
    end = sizes.index(last) + 1
    return sizes[end - count : end]


def test_the_installed_torch_has_the_efficient_backward_that_is_planned_for() -> None:
    """Its own shapes for meta: the gradient of keys has their heads where grouped ones are taken, and all otherwise."""
    q, out = heads(dtype=FP16), heads(dtype=FP16)
    k, v = (heads(count=2, dtype=FP16) for _ in range(2))
    state = torch.empty((), dtype=torch.int64, device="meta")
    logsumexp = tensor(B, H, S, dtype=FP32)
    backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    grads = backward(out, q, k, v, None, out, logsumexp, state, state, 0.0, [True, True, True, False])
    assert grads[1].size(1) == (2 if INSTALLED_TORCH >= EFFICIENT_TAKES_GROUPS else H)


def test_the_efficient_kernel_sums_wide_heads_in_float32() -> None:
    q, k, v = (tensor(B, H, 64, 160, dtype=FP16) for _ in range(3))
    assert 4 * B * H * 64 * 160 in taken(TURING, attend, q, k, v)
    assert 4 * B * H * 64 * D not in taken(TURING, attend, *(tensor(B, H, 64, D, dtype=FP16) for _ in range(3)))


def test_the_efficient_backward_takes_a_workspace_by_its_blocks() -> None:
    q, k, v = (heads(dtype=FP16, trained=True) for _ in range(3))
    sizes = taken(TURING, lambda q, k, v: _backward(attend(q, k, v).sum()), q, k, v)
    # 96 queries and 64 wide: 2 x 1 blocks of (4 + 64 * 64) float32 a head; keys' sums fit the registers
    assert (4 * B * H * S, 4 * B * H * 2 * (4 + 64 * 64)) in itertools.pairwise(sizes)


def test_math_holds_a_square_of_scores_in_float32_for_grouped_heads() -> None:
    q, k, v = heads(dtype=FP32), heads(count=2, dtype=FP32), heads(count=2, dtype=FP32)
    square = 4 * B * H * S * S
    sizes = taken(OLD, lambda q, k, v: attend(q, k, v, enable_gqa=True), q, k, v)
    assert sizes.count(square) == 2  # scores and weights; the causal mask is S x S
    assert 4 * S * S in sizes


def test_a_boolean_mask_is_made_into_numbers_for_every_layer() -> None:
    q, k, v = (heads(dtype=FP16) for _ in range(3))
    mask = torch.empty(B, 1, S, S, dtype=torch.bool, device="meta")
    sizes = taken(TURING, lambda *qkvm: functional.scaled_dot_product_attention(*qkvm), q, k, v, mask)
    assert 2 * B * S * S in sizes


# --- other kernels


def test_softmax_of_float16_into_float32_makes_no_copy_of_its_input_and_bfloat16_does() -> None:
    numbers = B * S * S
    assert taken(ADA, lambda x: x.softmax(-1, dtype=FP32), tensor(B, S, S, dtype=FP16)) == [4 * numbers]
    assert taken(ADA, lambda x: x.softmax(-1, dtype=FP32), tensor(B, S, S)) == [4 * numbers, 4 * numbers]


@pytest.mark.parametrize(("dtype", "result"), [(FP16, 2), (FP32, 4)])
def test_softmax_backward_makes_a_temporary_as_large_as_its_gradient(dtype: torch.dtype, result: int) -> None:
    numbers = B * S * S
    cpu, cuda = (
        taken(device, lambda x: _backward(x.softmax(-1, dtype=FP32).sum()), tensor(B, S, S, dtype=dtype, trained=True))
        for device in (CPU, ADA)
    )
    assert cuda[-2:] == [result * numbers, 4 * numbers]
    assert len(cuda) == len(cpu) + (1 if dtype == FP32 else -1)  # the CPU copies float16 forth and back


def test_dropout_keeps_a_byte_a_value_and_makes_it_first() -> None:
    assert taken(ADA, lambda x: functional.dropout(x, 0.1), tensor(B, S, D)) == [B * S * D, 2 * B * S * D]


def test_rms_norm_is_one_kernel_that_keeps_a_float32_a_row() -> None:
    x, weight, numbers = tensor(B, S, D, trained=True), tensor(D), B * S * D
    assert taken(ADA, lambda x, w: functional.rms_norm(x, (D,), w), x, weight) == [2 * numbers, 4 * B * S]
    made = taken(ADA, lambda x, w: _backward(functional.rms_norm(x, (D,), w).sum()), x, weight)
    assert made[:2] == [2 * numbers, 4 * B * S]
    assert made[-1] == 2 * numbers  # the gradient, and nothing beside it


def test_the_norm_of_all_gradients_takes_a_float32_for_65536_values_of_the_longest() -> None:
    gradients = [tensor(65536 * 2 + 1, dtype=FP32), tensor(8, dtype=FP32)]
    assert taken(ADA, lambda *g: torch._foreach_norm(list(g)), *gradients)[0] == 4 * 2 * 3
    assert 4 * 2 * 3 not in taken(CPU, lambda *g: torch._foreach_norm(list(g)), *gradients)


@pytest.mark.parametrize(
    ("capability", "workspace"),
    [((7, 5), 8.125 * MIB), ((8, 6), 8.125 * MIB), ((8, 9), 8.125 * MIB), ((9, 0), 32 * MIB), ((12, 0), 32 * MIB)],
)
def test_a_cublas_handle_has_its_workspace_one_a_thread(capability: tuple[int, int], workspace: float) -> None:
    assert Device(capability).cublas_workspace_bytes == workspace
    found = step_of(Recipe(micro_batch=1, seq_len=32, loss="logits"), Device(capability))
    kinds = found.kinds[found.phases[-1].events[:0, 0]]  # none is made after the first step
    assert not len(kinds)
    made = [size for phase in found.phases for key, size in phase.events if found.kinds[key] == KIND["workspaces"]]
    assert made == [workspace, workspace]


def test_four_bit_weights_are_unpacked_for_many_rows_and_not_for_few() -> None:
    assert not fused_4bit_product(ADA, BF16, 4096, 4096, 4096)
    assert fused_4bit_product(ADA, BF16, 1, 4096, 4096)
    assert not fused_4bit_product(TURING, FP16, 1, 4096, 4096)  # how many multiprocessors it has is not known
    config = family_config("llama3", num_hidden_layers=2)
    recipe = Recipe(method="qlora", quant_type="nf4", micro_batch=64, seq_len=32, autocast=True)
    unpacked = 2 * config.hidden_size * config.intermediate_size
    found = step_of(recipe, ADA)
    forward = next(phase for phase in found.phases if phase.name == "forward")
    assert sum(size == unpacked for _, size in forward.events) >= 3 * 2  # gate, up and down of each layer


@pytest.mark.parametrize("device", [CPU, ADA])
@pytest.mark.parametrize("nested", [False, True])
def test_scales_that_are_packed_too_are_unpacked_with_the_weight(device: Device, nested: bool) -> None:
    rows, inner, columns = 4096, 128, 256
    packed, state = pack_on_meta(tensor(columns, inner), "nf4", nested)
    weight, scales = 2 * columns * inner, 4 * columns * inner // 64
    found = taken(device, lambda x: bitsandbytes.matmul_4bit(x, packed, quant_state=state), tensor(rows, inner))
    before = [scales, scales, weight] if device.cuda else [weight, scales]
    assert found == [*(size for size in before if nested or size != scales), 2 * rows * columns]


# --- autocast


def test_autocast_casts_trained_float32_weights_once_and_frozen_ones_every_time() -> None:
    x, weight = tensor(8, D), tensor(D, D, dtype=FP32)

    def twice(x: torch.Tensor, weight: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return functional.linear(x, weight), functional.linear(x, weight)

    cast = 2 * D * D
    assert taken(ADA, twice, x, weight).count(cast) == 2
    assert taken(ADA, twice, x, tensor(D, D, dtype=FP32, trained=True)).count(cast) == 1


def test_autocast_goes_by_cuda_s_lists() -> None:
    def power(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return x.pow(2)

    assert taken(ADA, power, tensor(S, D)) == [4 * S * D, 4 * S * D]
    assert taken(CPU, power, tensor(S, D)) == [2 * S * D]


def test_norms_of_rows_are_float32_under_cuda_s_autocast_without_a_copy_of_the_rows() -> None:
    def norm(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return torch.linalg.norm(x, dim=1)

    assert taken(ADA, norm, tensor(S, D)) == [4 * S]
    assert taken(CPU, norm, tensor(S, D)) == [2 * S]


def test_sums_of_16_bits_are_float32_under_cuda_s_autocast_without_a_copy_of_what_is_added() -> None:
    def total(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return x.sum(dim=1)

    assert taken(ADA, total, tensor(S, D)) == [4 * S]
    assert taken(CPU, total, tensor(S, D)) == [2 * S]


def test_blocks_that_share_an_output_add_their_parts_in_global_memory() -> None:
    # seen on described cards: 170 multiprocessors of 1536 threads, 54 blocks of 32 x 4 outputs each, so 38 share one
    blackwell = Device((12, 0), 170)
    rows = tensor(4, 2048, 6912)
    assert taken(blackwell, lambda x: x.sum(dim=(0, 1)), rows) == [2 * 6912, 134_479_872, 4 * 54]
    assert taken(blackwell, lambda x: x.sum(dim=-1), rows) == [2 * 4 * 2048]  # a warp has an output of its own
    assert taken(Device((12, 0)), lambda x: x.sum(dim=(0, 1)), rows) == [2 * 6912]  # how many it has is not known


def test_gradients_of_an_embedding_are_added_by_parts_of_ten_tokens() -> None:
    # seen on a described RTX 4090: 4,096 tokens of a vocabulary of 256,000, 2,048 wide
    words, width, tokens = 256_000, 2048, 4096
    ids = torch.empty(4, 1024, dtype=torch.long, device="meta")
    grad = tensor(4, 1024, width, dtype=FP32)
    back = torch.ops.aten.embedding_dense_backward.default
    found = taken(ADA, lambda ids, grad: back(grad, ids, words, -1, False), ids, grad)
    assert found == [4 * words * width, *[8 * tokens] * 3, 8, *[8 * tokens] * 2, 8, 36_040, 36_904_960]


def test_the_gradient_of_chosen_columns_is_written_into_zeros_in_place() -> None:
    picked, columns = torch.zeros(7, dtype=torch.long, device="meta"), 12
    rows = tensor(S, columns, dtype=FP32, trained=True)
    trace = Trace(scratch(ADA))
    trace.ignore(picked)
    trace.ignore(rows)
    with trace, trace.autograd():
        _backward(rows[:, picked].sum())
    found = [size for section in trace.sections for _, size in section.events]
    assert found.count(4 * S * columns) == 1  # the gradient
    assert found.count(8 * 7) == 4  # where to write


def test_a_cpu_copies_the_narrower_input_into_the_wider_dtype() -> None:
    inputs = (tensor(S, D), tensor(S, D, dtype=FP32))
    assert taken(CPU, torch.mul, *inputs) == [4 * S * D, 4 * S * D]
    assert taken(ADA, torch.mul, *inputs) == [4 * S * D]


# --- head and optimizer


def step_of(recipe: Recipe, device: Device) -> Any:
    return rehearse(recipe, family_config("llama3", num_hidden_layers=2), device, depth=None, loop=OURS)


def test_the_fused_head_never_holds_all_logits() -> None:
    config = family_config("llama3", num_hidden_layers=2, vocab_size=50_000)
    recipe = Recipe(micro_batch=4, seq_len=256, autocast=True)
    logits = 2 * 4 * 256 * 50_000

    def largest(loss: str, device: Device) -> int:
        found = rehearse(Recipe.from_dict({**recipe.to_dict(), "loss": loss}), config, device, depth=None)
        return max(size for phase in found.phases if phase.name == "forward" for _, size in phase.events)

    assert largest("logits", ADA) >= logits
    assert largest("fused", ADA) < logits


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("adamw_torch", 8), ("adamw_8bit", 2), ("paged_adamw_8bit", 0)])
def test_optimizer_state_is_on_the_device_but_where_it_is_paged(optimizer: Any, bytes_each: int) -> None:
    config = family_config(
        "llama3", num_hidden_layers=2, hidden_size=512, intermediate_size=1024, num_key_value_heads=4
    )
    recipe = Recipe(rank=256, optimizer=optimizer, micro_batch=1, seq_len=16)  # no weight has fewer than 100,000 values
    found = rehearse(recipe, config, ADA, depth=None)
    first = next(phase for phase in found.phases if phase.name == "optimizer")
    steps = {key: size for key, size in first.events if found.kinds[key] == KIND["optimizer"]}
    extra = 0.01 if optimizer == "adamw_torch" else 0.2  # step counts; a float32 scale for 256 values, and the codes
    assert bytes_each <= sum(steps.values()) / found.trainable_params <= bytes_each + extra
    assert found.managed_bytes == (2 * found.trainable_params if optimizer == "paged_adamw_8bit" else 0)
