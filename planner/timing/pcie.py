"""What does a card's PCIe link carry in a second?"""

from __future__ import annotations

from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.profiles.hardware import Gpu

# Bytes/s of a PCIe lane, one direction: 8, 16 and 32 GT/s, 128/130 encoded (PCI-SIG). Later ones double it.
LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.56e9}


def pcie_of(gpu: Gpu) -> tuple[float, str] | None:
    """(bytes/s of one direction, its name) as the driver tells it, else as the card is built; None where not known."""
    profile = gpu_profiles().get(gpu.profile or "")
    status, built = gpu.status, profile.pcie if profile else None
    generation = (status and status.pcie_max_generation) or (built and built.generation)
    lanes = (status and status.pcie_max_width) or (built and built.lanes)
    per_lane = LANE_BYTES_PER_S.get(generation or 0)
    return (per_lane * lanes, f"PCIe {generation}.0 x{lanes}") if per_lane and lanes else None
