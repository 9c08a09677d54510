"""A catalogue file for the GPU that is here: the catalogue's figures where it knows the card, NVML's in any case."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from autoft.errors import OptionError
from autoft.profiles.catalogue import Figure
from autoft.profiles.gpu_catalogue import GpuProfile, gpu_for
from autoft.profiles.hardware import Gpu
from autoft.units import GIB


def profile_of(gpu: Gpu, *, date: str) -> GpuProfile:
    """The profile of a card that NVML told of on `date`.

    A card of the catalogue keeps its name, so that the new file overrides it. Of others only memory and capability are
    known. Raises: OptionError where the driver does not tell the compute capability of a card that is not known.
    """
    source = f"NVML on this machine, {date}"
    total = Figure(value=gpu.total_bytes, basis="total that NVML reports", source=source)
    known = gpu_for(gpu.name, gpu.total_bytes)
    if known is not None:
        return replace(known, total_bytes=total)
    if gpu.compute_capability is None:
        raise OptionError(
            f"{gpu.name}: the driver does not report its compute capability", fix="write the file by hand: copy one"
        )
    return GpuProfile(
        name=_slug(gpu.name),
        product=gpu.name,
        compute_capability=gpu.compute_capability,
        memory_gib=Figure(
            value=math.ceil(gpu.total_bytes / GIB), basis="NVML's total, rounded up to whole GiB", source=source
        ),
        total_bytes=total,
    )


def _slug(product: str) -> str:
    """A name for the catalogue: that of "NVIDIA GeForce RTX 4090 D" is "rtx-4090-d"."""
    words = re.findall(r"[a-z0-9]+", product.casefold())
    kept = [word for word in words if word not in ("nvidia", "geforce", "gpu")]
    return "-".join(kept or words) or "gpu"
