"""A machine without a GPU, described: plans for it, or for a card that is named, are the same wherever tests run."""

from __future__ import annotations

from autoft.profiles.hardware import Hardware, Host
from autoft.units import GIB

HOST = Host(
    cpu="test",
    cores=2,
    ram_total_bytes=16 * GIB,
    ram_available_bytes=8 * GIB,
    disk_path="/",
    disk_free_bytes=GIB,
    bf16=True,
)
NO_GPU = Hardware(host=HOST, no_gpu_reason="none")
