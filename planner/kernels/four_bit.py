"""Does bitsandbytes multiply by packed 4-bit weights, or by an unpacked copy of them? Its rule for CUDA, card by card.

Repeats _gemm_4bit_use_custom_cuda of bitsandbytes 0.50.2 (backends/cuda/ops.py; MIT license, Copyright (c) Facebook,
Inc. and its affiliates), which can be imported only where PyTorch is built for CUDA. tests/planner/test_four_bit.py
compares the two, and trainer/compat/bitsandbytes.py has the digest of the original.

Its figures are bitsandbytes' own measurements: the most rows M of x_MK for which its kernel, which reads packed
weight_NK, is quicker than unpacking. A block is 64 columns; a wave is as many blocks as the card has multiprocessors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

ALWAYS_ROWS = 4  # up to this many bitsandbytes asks nothing
MOST_ROWS = 1536  # beyond, it unpacks whatever the shape; _gemm_4bit_custom_max_m
MOST_ROWS_OF_LARGE = 512
SMALL_WEIGHTS = 4 * 1024 * 1024  # below, unpacking takes longer than the product
SIMT_ROWS = 8  # its kernel without tensor cores takes fewer than this


@dataclass(frozen=True, slots=True)
class _Product:
    """capability: of the card. multiprocessors: how many it has. columns: N. inner: K."""

    capability: tuple[int, int]
    multiprocessors: int
    columns: int
    inner: int

    @property
    def blocks(self) -> int:
        return -(-self.columns // 64)

    @property
    def hbm(self) -> bool:
        """A100 and Hopper, whose memory is quick."""
        return self.capability == (8, 0) or self.capability[0] == 9

    @property
    def half_wave(self) -> bool:
        return self.blocks >= self.multiprocessors // 2

    def waves(self, numerator: int, denominator: int = 1) -> bool:
        """Whether there are at least this many waves of blocks."""
        return self.blocks * denominator >= self.multiprocessors * numerator


def is_product_fused(
    capability: tuple[int, int], multiprocessors: int, dtype: torch.dtype, rows: int, columns: int, inner: int
) -> bool:
    """Whether x_MK (rows, inner) of `dtype` is multiplied by packed weights of (columns, inner) as they are.

    capability and multiprocessors: of the card. Leaves out: ROCm.
    """
    if rows <= ALWAYS_ROWS:
        return True
    if rows > MOST_ROWS:
        return False
    major, minor = capability
    if dtype == torch.float32 or major < 7 or (major == 7 and (minor < 5 or dtype != torch.float16)):
        return rows < SIMT_ROWS  # no tensor cores for that dtype
    if capability == (8, 7) or major == 11:
        return False  # not measured
    product = _Product(capability, multiprocessors, columns, inner)
    if major == 10:
        return rows <= _blackwell_server(product)
    if columns * inner < SMALL_WEIGHTS:
        return rows <= _small(product, rows)
    if rows < SIMT_ROWS:
        return not _unpacked_for_few(product, rows)
    return rows <= MOST_ROWS_OF_LARGE and rows <= _ladder(product)(product)


def _first(*tiers: tuple[bool, int]) -> int:
    """Rows of the first tier whose condition holds; 0, which is never, where none does."""
    return next((rows for holds, rows in tiers if holds), 0)


def _blackwell_server(product: _Product) -> int:
    """10.x: unpacking is much quicker."""
    return _first((product.waves(3), 32), (product.waves(1) and product.inner < product.columns, 8))


def _small(product: _Product, rows: int) -> int:
    """Weights below SMALL_WEIGHTS."""
    columns, inner, blocks = product.columns, product.inner, product.blocks
    if inner * 2 < columns:
        return _small_and_short(product)
    quarter_wave = blocks * 4 <= product.multiprocessors
    if product.capability == (8, 0) and quarter_wave:
        return _first((inner < columns, 384), (blocks * 8 <= product.multiprocessors, 32), (True, 128))
    if product.capability == (7, 5) and not product.waves(1) and rows > 8:
        return 64
    return _first(
        (quarter_wave and (inner < columns or product.hbm), 32),
        (quarter_wave, 23),
        (blocks * 2 <= product.multiprocessors, 16),
    )


def _small_and_short(product: _Product) -> int:
    """Small weights with fewer than half as many inner values as columns."""
    inner, low_wave = product.inner, not product.waves(1, 3)
    if product.capability == (8, 0):
        return 1536 if low_wave else 512
    if product.hbm:
        return 512 if low_wave else 320
    if product.capability == (7, 5):
        return _first((product.waves(3), 320), (inner >= 1024, 64), (inner >= 704, 96), (True, 320))
    crowded = product.blocks * inner > product.multiprocessors * 320
    return 192 if not product.waves(1) and crowded else 320


def _unpacked_for_few(product: _Product, rows: int) -> bool:
    """The exceptions among 5 to 7 rows, for which its kernel is quicker but for some shapes on HBM."""
    hopper = product.capability[0] == 9
    if not product.hbm or rows < 6 or product.blocks < (36 if hopper else 48):
        return False
    below_three_quarters, below_three_fifths = not product.waves(3, 4), not product.waves(3, 5)
    if product.inner > product.columns:
        return below_three_quarters
    if product.inner == product.columns:
        return below_three_quarters and not below_three_fifths if hopper else below_three_fifths
    return False


def _ladder(product: _Product) -> Callable[[_Product], int]:
    """The card's own tiers, for 8 to 512 rows of large weights."""
    if product.capability[0] == 9:
        return _hopper
    if product.capability == (12, 1) and product.waves(1):
        return lambda _: 256
    return _LADDERS.get(product.capability, _ada)


def _turing(product: _Product) -> int:
    """7.5"""
    short = product.inner < product.columns
    return _first((product.waves(3), 128 if short else 64), (product.half_wave, 64), (True, 32))


def _a100(product: _Product) -> int:
    """8.0"""
    columns, inner = product.columns, product.inner
    square_at_half_a_wave = inner == columns and product.blocks >= 48 and not product.waves(3, 5)
    below_half = product.blocks * 2 < product.multiprocessors
    return _first(
        (product.waves(3), 128),
        (product.waves(1), 64 if inner < columns else 32),
        (inner >= columns * 3 and product.blocks * 4 > product.multiprocessors, 0),
        (square_at_half_a_wave, 0),
        (below_half and inner <= columns, 128),
        (below_half and product.waves(1, 3), 0),
        (product.half_wave and inner < columns, 128),
        (True, 16),
    )


def _ampere(product: _Product) -> int:
    """8.6"""
    return _first((product.waves(1), 128), (product.half_wave, 64), (True, 16))


def _hopper(product: _Product) -> int:
    """9.x"""
    tall = product.inner >= product.columns and not product.waves(3, 4)
    return _first(
        (product.waves(3), 64),
        (product.waves(2), 48),
        (product.waves(1), 32),
        (product.half_wave and not tall, 16),
    )


def _blackwell(product: _Product) -> int:
    """12.0"""
    columns, inner = product.columns, product.inner
    return _first(
        (product.waves(3), 256),
        (product.waves(2), 128),
        (product.waves(4, 5), 96 if inner >= columns else 64),
        (product.half_wave and inner * 2 >= columns and product.blocks >= 128, 64),
        (not product.half_wave and inner > columns * 2 and product.blocks > 64, 16),
        (True, 8),
    )


def _ada(product: _Product) -> int:
    """8.9, 12.1 below one wave, and every card that has no tiers of its own."""
    columns, inner, blocks = product.columns, product.inner, product.blocks
    tall = inner > columns * 2
    near_a_wave = product.waves(4, 5)
    return _first(
        (product.waves(3), 256),
        (product.waves(2), 128),
        (near_a_wave and (tall or blocks >= 200), 128),
        (near_a_wave and inner >= columns, 128 if product.multiprocessors >= 60 else 32),
        (near_a_wave, 64),
        (product.half_wave and tall, 64),
        (product.half_wave, 8 if blocks >= 64 else 32),
        (inner > columns and blocks <= 48, 12 if inner >= columns * 3 else 10),
        (True, 16 if tall or blocks < 48 else 8),
    )


_LADDERS: dict[tuple[int, int], Callable[[_Product], int]] = {
    (7, 5): _turing,
    (8, 0): _a100,
    (8, 6): _ampere,
    (12, 0): _blackwell,
}
