"""planner/kernels/four_bit.py against the function of bitsandbytes that it repeats, read from its source."""

from __future__ import annotations

import ast
import importlib.util
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.planner.kernels.four_bit import ALWAYS_ROWS, MOST_ROWS, is_product_fused
from autoft.trainer.compat.bitsandbytes import FUSED_PRODUCT

CARDS = [
    (6, 1), (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1),
    (13, 0),
]  # fmt: skip
TIERED = {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# The figures that the rule compares with
CAPS = (4, 5, 6, 7, 8, 10, 12, 16, 23, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 1536)
ROWS = sorted({rows for cap in CAPS for rows in (cap, cap + 1)})
WAVES = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 5, 3 / 4, 4 / 5, 1, 2, 3)
BLOCKS = (36, 48, 64, 128, 200)
TIMES = (1 / 3, 1 / 2, 1, 2, 3)
INNER = (320, 704, 1024)
SMALL = 4 * 1024 * 1024
MULTIPROCESSORS = (8, 40, 59, 60, 108, 132, 188)
AT_RANDOM = 600


def shapes(card: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Multiprocessors, columns and inner: where the rule compares, beside it, and at random."""
    chance = random.Random(f"{card}")
    for _ in range(AT_RANDOM):
        yield chance.randrange(1, 200), chance.randrange(1, 30_000), chance.randrange(1, 30_000)
    for multiprocessors in MULTIPROCESSORS if card in TIERED else ():
        at = {round(multiprocessors * waves) for waves in WAVES}
        near = {blocks + beside for blocks in (*at, *BLOCKS) for beside in (-1, 0, 1)}
        for blocks in near - {-1, 0}:
            columns = 64 * blocks
            compared = [SMALL // columns, multiprocessors * 320 // blocks, *INNER]
            compared += [round(columns * times) for times in TIMES]
            for inner in {value + beside for value in compared for beside in (-1, 0, 1)}:
                yield multiprocessors, columns, max(1, inner)


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
    """At the figures that the rule compares with, and beside them."""
    answers = set()
    for number, (multiprocessors, columns, inner) in enumerate(shapes(card)):
        dtype = DTYPES[number % len(DTYPES)] if number < AT_RANDOM else torch.float16
        for rows in ROWS:
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
