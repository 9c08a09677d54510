"""planner/four_bit.py against the function of bitsandbytes that it repeats, read from its source."""

from __future__ import annotations

import ast
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.planner.four_bit import ALWAYS_ROWS, MOST_ROWS, is_product_fused
from autoft.trainer.compat.bitsandbytes import FUSED_PRODUCT

CARDS = [
    (6, 1), (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1),
    (13, 0),
]  # fmt: skip
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROWS = [1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 23, 24, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 192, 193, 256,
        257, 320, 321, 384, 385, 512, 513, 1536, 1537, 4096]  # fmt: skip
MULTIPROCESSORS = [1, 8, 14, 20, 28, 40, 46, 58, 60, 68, 72, 82, 84, 108, 114, 128, 132, 142, 148, 170, 188]
WIDTHS = [64, 128, 320, 704, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192, 10240, 11008, 12288, 14336, 16384, 28672]


def original() -> dict[str, Any]:
    """The names of bitsandbytes' module that its rule needs; the module itself is imported only where there is CUDA."""
    spec = importlib.util.find_spec("bitsandbytes.backends.cuda.ops")
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    wanted = ("_gemm_4bit_use_custom_cuda", "_GEMM_4BIT_CUSTOM_FLOOR_M")
    nodes: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            node.decorator_list = []  # a cache
            nodes.append(node)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in wanted:
            nodes.append(node)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(nodes, []), spec.origin, "exec"), names)
    return names


@pytest.fixture(scope="module")
def rule() -> Callable[..., bool]:
    names = original()

    def asked(card: tuple[int, int], multiprocessors: int, *shape: Any) -> bool:
        names["_gpu_dispatch_props"] = lambda _: (multiprocessors, *card)
        return bool(names["_gemm_4bit_use_custom_cuda"](0, *shape))

    return asked


@pytest.mark.parametrize("card", CARDS)
def test_the_rule_is_that_of_bitsandbytes(card: tuple[int, int], rule: Callable[..., bool]) -> None:
    """At the figures that the rule compares with, beside them, and at random."""
    chance = random.Random(f"{card}")
    answers = set()
    for _ in range(6_000):
        multiprocessors = chance.choice(MULTIPROCESSORS)
        waves = chance.choice((1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 5, 3 / 4, 4 / 5, 1, 2, 3))
        near = max(64, 64 * round(multiprocessors * waves) + chance.choice((-64, -1, 0, 1, 64)))
        columns = chance.choice((near, chance.choice(WIDTHS), chance.randrange(1, 30_000)))
        times = chance.choice((1 / 3, 1 / 2, 1, 2, 3))
        inner = chance.choice((max(1, round(columns * times)), chance.choice(WIDTHS), chance.randrange(1, 30_000)))
        rows, dtype = chance.choice(ROWS), chance.choice(DTYPES)
        if chance.random() < 0.3:
            rows = chance.randrange(1, 2000)
        fused = is_product_fused(card, multiprocessors, dtype, rows, columns, inner)
        expected = rows <= MOST_ROWS and rule(card, multiprocessors, dtype, rows, columns, inner)
        assert fused == expected, (card, multiprocessors, dtype, rows, columns, inner)
        answers.add(fused)
    assert answers == {True, False}


def test_so_are_its_limits() -> None:
    assert original()["_GEMM_4BIT_CUSTOM_FLOOR_M"] == ALWAYS_ROWS
    spec = importlib.util.find_spec("bitsandbytes.backends.cuda.ops")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    assert f"    _gemm_4bit_custom_max_m = {MOST_ROWS}\n" in text


def test_the_table_has_the_digest_of_the_original() -> None:
    """A release that changes the rule shows here and in `autoft doctor`, though its module is not imported."""
    from autoft.hooks import source_of

    assert source_of(FUSED_PRODUCT.path) == FUSED_PRODUCT.source


@pytest.mark.skipif(torch.version.cuda is None, reason="bitsandbytes' module is imported where PyTorch has CUDA")
def test_it_is_the_function_that_the_module_has() -> None:
    ops = importlib.import_module("bitsandbytes.backends.cuda.ops")
    assert ops._gemm_4bit_use_custom_fn is ops._gemm_4bit_use_custom_cuda
