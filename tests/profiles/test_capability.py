"""What follows from a compute capability, by cards that everybody knows."""

from __future__ import annotations

import pytest

from autoft.profiles.capability import features_of


@pytest.mark.parametrize(
    ("capability", "architecture", "bf16", "fp8", "flash", "four_bit", "int8"),
    [
        ((3, 7), "Kepler", "no", False, False, False, False),  # K80
        ((5, 2), "Maxwell", "emulated", False, False, False, False),  # GTX 980
        ((6, 1), "Pascal", "emulated", False, False, True, False),  # GTX 1080 Ti
        ((7, 0), "Volta", "emulated", False, False, True, False),  # V100
        ((7, 5), "Turing", "emulated", False, False, True, True),  # T4
        ((8, 0), "Ampere", "native", False, True, True, True),  # A100
        ((8, 6), "Ampere", "native", False, True, True, True),  # RTX 3060
        ((8, 9), "Ada Lovelace", "native", True, True, True, True),  # RTX 4090
        ((9, 0), "Hopper", "native", True, True, True, True),  # H100
        ((12, 0), "Blackwell", "native", True, True, True, True),  # RTX 5090
    ],
)
def test_features(
    capability: tuple[int, int], architecture: str, bf16: str, fp8: bool, flash: bool, four_bit: bool, int8: bool
) -> None:
    found = features_of(capability)
    assert (found.architecture, found.bf16, found.fp8) == (architecture, bf16, fp8)
    assert (found.flash_attention_2, found.bitsandbytes_4bit, found.bitsandbytes_int8) == (flash, four_bit, int8)
