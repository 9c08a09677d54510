"""The rules of attention hold for the installed CUDA build of PyTorch: its choice of kernel, its blocks of memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda.card import Card

SCRIPT = Path(__file__).with_name("attention_rules.py")


@pytest.mark.parametrize(
    ("card", "kernels"),
    [
        ("t4", ["efficient"]),
        ("rtx3060", ["efficient", "flash"]),
        ("a100", ["efficient", "flash"]),
        ("rtx5090", ["efficient", "flash"]),
    ],
)
def test_kernels_and_their_blocks_are_those_that_are_foreseen(
    card: str, kernels: list[str], on_card: Callable[..., Card]
) -> None:
    done = on_card(card).python(SCRIPT)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1]) == {"kernels": [], "blocks": [], "compared": kernels}
