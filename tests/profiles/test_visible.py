"""CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as CUDA reads them."""

from __future__ import annotations

import pytest

from autoft.profiles.visible import Card, Instance, cuda_order, visible

CARDS = [Card(key="0", uuid="GPU-aa"), Card(key="1", uuid="GPU-ab"), Card(key="2")]
PARTS = (
    Instance(key="0.0", uuid="MIG-11", gpu_instance=7, compute_instance=0),
    Instance(key="0.2", uuid="MIG-22", gpu_instance=5, compute_instance=0),
    Instance(key="0.3", uuid="MIG-23", gpu_instance=5, compute_instance=1),
)
SPLIT = [Card(key="0", uuid="GPU-dd", instances=PARTS), Card(key="1", uuid="GPU-ee")]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "0 1 2"),
        ("", ""),
        (" 2 , 0 ", "2 0"),
        ("0,-1,2", "0"),
        ("0,7,1", "0"),
        ("0,0", ""),  # twice the same: none, as torch.cuda reads it
        ("GPU-a", ""),  # the beginning of two UUIDs
        ("GPU-ab,1", ""),  # the same by UUID and by index
        ("GPU-ab,GPU-aa", "1 0"),
        ("GPU-ab,GPU-ffff,GPU-aa", "1"),
        ("MIG-11", ""),
        ("1gpu", "1"),
        ("+1", "1"),
        ("x,0", ""),
    ],
)
def test_indices_and_uuids(setting: str | None, expected: str) -> None:
    assert visible(setting, CARDS) == expected.split()


@pytest.mark.parametrize(
    ("setting", "old", "new"),
    [
        (None, "0.0", "0.0 0.2 1"),  # one of each GPU instance, and whole GPUs, since R570; one instance alone before
        ("MIG-22", "0.2", "0.2"),
        ("MIG-2", "", ""),  # the beginning of two
        ("MIG-23,MIG-11", "0.3", "0.3 0.0"),
        ("MIG-22,MIG-23", "0.2", "0.2"),  # both of one GPU instance
        ("MIG-GPU-dd/5/1", "0.3", "0.3"),
        ("MIG-GPU-dd/5/2", "", ""),
        ("GPU-dd", "0.0", "0.0"),
        ("GPU-ee", "1", "1"),
        ("GPU-ee,MIG-11", "0.0", "1 0.0"),
        ("1", "1", "0.2"),
        ("0", "0.0", "0.0"),
        ("MIG-11,MIG-11", "", ""),
    ],
)
def test_mig(setting: str | None, old: str, new: str) -> None:
    assert visible(setting, SPLIT, many_mig=False) == old.split()
    assert visible(setting, SPLIT, many_mig=True) == new.split()


def test_a_gpu_in_mig_mode_without_an_instance_is_none() -> None:
    cards = [Card(key="0", uuid="GPU-dd", instances=()), Card(key="1", uuid="GPU-ee")]
    assert visible(None, cards) == ["1"]
    assert visible("0", cards) == ["1"]
    assert visible("GPU-dd,GPU-ee", cards) == []


@pytest.mark.parametrize(
    ("order", "speeds", "expected"),
    [
        (None, (2, 3, 3), ("2 0 1", False)),  # the fastest first, equal ones by the bus
        ("FASTEST_FIRST", (2, 3, 1), ("2 1 0", False)),
        ("PCI_BUS_ID", (2, 3, 1), ("1 2 0", True)),
        (None, (2, 2, 2), ("1 2 0", True)),
        (None, (2, None, 2), ("1 2 0", False)),
        (None, (None, None, None), ("1 2 0", True)),
    ],
)
def test_the_order_that_cuda_numbers_in(
    order: str | None, speeds: tuple[int | None, ...], expected: tuple[str, bool]
) -> None:
    buses = ("00000000:0B:00.0", "00000000:01:00.0", "00000000:02:00.0")
    speed_of = dict(zip((1, 2, 0), speeds, strict=True))  # by place on the bus
    cards = [Card(key=str(i), bus_id=bus, speed=speed_of[i]) for i, bus in enumerate(buses)]
    found, certain = cuda_order(cards, order)
    assert (" ".join(card.key for card in found), certain) == expected


def test_without_a_bus_the_drivers_order_stays() -> None:
    found, _ = cuda_order(CARDS, None)
    assert found == CARDS
