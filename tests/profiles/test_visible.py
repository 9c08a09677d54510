"""CUDA_VISIBLE_DEVICES as CUDA reads it."""

from __future__ import annotations

import pytest

from autoft.profiles.visible import Card, Instance, cuda_order, visible

CARDS = [Card(key="0", uuid="GPU-aa"), Card(key="1", uuid="GPU-ab"), Card(key="2")]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["0", "1", "2"]),
        (" 2 , 0 ", ["2", "0"]),
        ("0,-1,2", ["0"]),
        ("0,0", []),  # twice the same: none, as torch.cuda reads it
        ("GPU-a", []),  # the beginning of two UUIDs
        ("GPU-ab,1", []),  # the same by UUID and by index
        ("GPU-ab,GPU-aa", ["1", "0"]),
        ("1gpu", ["1"]),
        ("x,0", []),
    ],
)
def test_indices_and_uuids(setting: str | None, expected: list[str]) -> None:
    assert visible(setting, CARDS) == expected


SPLIT = Card(
    key="0",
    uuid="GPU-aa",
    instances=(
        Instance(key="0.0", uuid="MIG-11", gpu_instance=1, compute_instance=0),
        Instance(key="0.1", uuid="MIG-12", gpu_instance=1, compute_instance=1),
        Instance(key="0.2", uuid="MIG-21", gpu_instance=2, compute_instance=0),
    ),
)
WHOLE = Card(key="1", uuid="GPU-bb")


@pytest.mark.parametrize(
    ("setting", "many", "expected"),
    [
        (None, True, ["0.0", "0.2", "1"]),
        (None, False, ["0.0"]),
        ("MIG-12", True, ["0.1"]),
        ("MIG-1", True, []),  # the beginning of two
        ("MIG-GPU-aa/2/0", True, ["0.2"]),
        ("MIG-11,MIG-12", True, ["0.0"]),  # one of each GPU instance
        ("MIG-21,GPU-bb", False, ["0.2"]),  # an instance, and no other device beside it
        ("GPU-aa", True, ["0.0"]),
        ("2,0", True, ["1", "0.0"]),
    ],
)
def test_mig(setting: str | None, many: bool, expected: list[str]) -> None:
    assert visible(setting, [SPLIT, WHOLE], many_mig=many) == expected


def test_a_card_in_mig_mode_without_instances_is_none() -> None:
    assert visible(None, [Card(key="0", instances=()), WHOLE]) == ["1"]


def test_the_order_of_cuda() -> None:
    slow, fast = Card(key="0", bus_id="01", speed=10), Card(key="1", bus_id="02", speed=20)
    assert cuda_order([slow, fast], None) == ([fast, slow], False)
    assert cuda_order([fast, slow], "PCI_BUS_ID") == ([slow, fast], True)
    unknown = Card(key="2", bus_id="00")
    assert cuda_order([fast, unknown], None) == ([unknown, fast], False)
    twins = [Card(key="1", bus_id="02", speed=10), slow]
    assert cuda_order(twins, None) == ([slow, twins[0]], True)
