"""What does a compute capability mean for fine-tuning? The rules, each with its source, in one place."""

from __future__ import annotations

from autoft.profiles.hardware import Features

Capability = tuple[int, int]

# CUDA C programming guide, "Arithmetic Instructions": bfloat16 products of 8.0 and later. Transformer Engine's support
# matrix says the same.
BF16_SINCE: Capability = (8, 0)
# PyTorch converts to float32 and back below it: torch.cuda.is_bf16_supported(including_emulation=True) asks no more
# than that a bfloat16 tensor can be made. Its wheels hold kernels of 5.0 and later at the least.
BF16_EMULATED_SINCE: Capability = (5, 0)
# Transformer Engine, "Datatype and hardware support matrix": FP8 per tensor from 8.9 (Ada) on.
FP8_SINCE: Capability = (8, 9)
# flash-attn's README: "Ampere, Ada, or Hopper GPUs"; its kernels are built for sm80 and run on all later ones.
FLASH_ATTENTION_2_SINCE: Capability = (8, 0)
# bitsandbytes 0.50, "Installation Guide", NVIDIA CUDA: NF4/FP4 need 6.0, LLM.int8() needs 7.5.
BITSANDBYTES_4BIT_SINCE: Capability = (6, 0)
BITSANDBYTES_INT8_SINCE: Capability = (7, 5)
# developer.nvidia.com/cuda-gpus: where each generation begins, latest first.
ARCHITECTURES: tuple[tuple[Capability, str], ...] = (
    ((10, 0), "Blackwell"),
    ((9, 0), "Hopper"),
    ((8, 9), "Ada Lovelace"),
    ((8, 0), "Ampere"),
    ((7, 5), "Turing"),
    ((7, 0), "Volta"),
    ((6, 0), "Pascal"),
    ((5, 0), "Maxwell"),
    ((3, 0), "Kepler"),
)


def features_of(capability: Capability) -> Features:
    """What a card of that compute capability can do."""
    emulated = capability >= BF16_EMULATED_SINCE
    return Features(
        architecture=_architecture(capability),
        bf16="native" if capability >= BF16_SINCE else "emulated" if emulated else "no",
        fp8=capability >= FP8_SINCE,
        flash_attention_2=capability >= FLASH_ATTENTION_2_SINCE,
        bitsandbytes_4bit=capability >= BITSANDBYTES_4BIT_SINCE,
        bitsandbytes_int8=capability >= BITSANDBYTES_INT8_SINCE,
    )


def _architecture(capability: Capability) -> str:
    return next((name for since, name in ARCHITECTURES if capability >= since), "before Kepler")
