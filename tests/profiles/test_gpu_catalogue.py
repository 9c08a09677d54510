from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from autoft.errors import FileFormatError, OptionError
from autoft.profiles.catalogue import Figure
from autoft.profiles.gpu_catalogue import GpuProfile, find_gpu, gpu_profiles

GPUS = [
    *(
        "rtx-3060",
        "rtx-3080",
        "rtx-3090",
        "rtx-4060",
        "rtx-4060-ti-16gb",
        "rtx-4070",
        "rtx-4080",
        "rtx-4090",
        "rtx-5090",
    ),
    *("rtx-2080-ti", "gtx-1080-ti", "t4", "l4", "l40s", "a10", "a100-40gb", "a100-80gb", "h100-80gb", "v100-16gb"),
]
FIGURES = ("memory_gib", "total_bytes", "half_flops_per_s", "float32_flops_per_s", "memory_bytes_per_s", "tdp_w")


def test_the_promised_cards_are_there() -> None:
    assert set(GPUS) <= set(gpu_profiles())


@pytest.mark.parametrize("gpu", gpu_profiles().values(), ids=lambda gpu: gpu.name)
def test_every_figure_has_basis_and_source(gpu: GpuProfile) -> None:
    figures = [figure for name in FIGURES if (figure := getattr(gpu, name)) is not None]
    assert figures
    assert all(isinstance(f, Figure) and f.value > 0 and f.basis.strip() and f.source.strip() for f in figures)


@pytest.mark.parametrize("gpu", gpu_profiles().values(), ids=lambda gpu: gpu.name)
def test_figures_are_of_the_right_size(gpu: GpuProfile) -> None:
    """A slipped digit or unit, not a wrong data sheet."""
    assert (5, 0) <= gpu.compute_capability <= (13, 0)
    assert 0.93 * gpu.memory_gib.value * 2**30 <= gpu.memory_bytes <= gpu.memory_gib.value * 2**30
    assert gpu.half_flops_per_s is None or 5e12 < gpu.half_flops_per_s.value < 5e15
    assert gpu.memory_bytes_per_s is None or 100e9 < gpu.memory_bytes_per_s.value < 10e12
    assert gpu.tdp_w is None or 50 <= gpu.tdp_w.value <= 1500


@pytest.mark.parametrize("gpu", gpu_profiles().values(), ids=lambda gpu: gpu.name)
def test_computed_throughput_is_computed_right(gpu: GpuProfile) -> None:
    for figure in (gpu.half_flops_per_s, gpu.float32_flops_per_s):
        pattern = r"computed: (\d+) SMs \* (\d+) FLOP per clock \* ([\d.]+) GHz"
        terms = re.search(pattern, figure.basis) if figure else None
        if figure and terms:
            assert figure.value == pytest.approx(int(terms[1]) * int(terms[2]) * float(terms[3]) * 1e9, rel=0.005)
    if gpu.half_flops_per_s and gpu.float32_flops_per_s:
        assert 1 <= gpu.half_flops_per_s.value / gpu.float32_flops_per_s.value <= 16.1


@pytest.mark.parametrize("gpu", gpu_profiles().values(), ids=lambda gpu: gpu.name)
def test_bandwidth_agrees_with_the_bus_it_names(gpu: GpuProfile) -> None:
    figure = gpu.memory_bytes_per_s
    bus = re.search(r"(\d+)-bit at ([\d.]+) Gbps", figure.basis) if figure else None
    if figure and bus:
        assert figure.value == pytest.approx(int(bus[1]) / 8 * float(bus[2]) * 1e9, rel=0.005)


def test_no_two_cards_answer_to_one_name() -> None:
    spellings = [
        re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.casefold())
        for gpu in gpu_profiles().values()
        for name in {gpu.name, gpu.product.removeprefix("NVIDIA GeForce ").removeprefix("NVIDIA "), *gpu.aliases}
    ]
    per_card = {(s, find_gpu(s).name) for s in spellings}
    assert len({s for s, _ in per_card}) == len(per_card)
    for gpu in gpu_profiles().values():
        assert {find_gpu(name).name for name in (gpu.name, gpu.product, *gpu.aliases)} == {gpu.name}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("a100-80", "a100-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("rtx-3080", "rtx-3080"),
        ("2080Ti", "rtx-2080-ti"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find_gpu(spelling).name == name


def test_a_laptop_card_is_not_its_desktop_namesake() -> None:
    with pytest.raises(OptionError):
        find_gpu("NVIDIA GeForce RTX 4090 Laptop GPU")


def test_an_unknown_card_offers_near_names() -> None:
    with pytest.raises(OptionError) as caught:
        find_gpu("RTX 4091")
    assert str(caught.value) == (
        "no GPU 'RTX 4091' in the catalogue. Did you mean rtx-4090, rtx-5090, rtx-4080?\n"
        "To fix: autoft profiles gpus lists them"
    )


def as_dict(name: str) -> dict[str, Any]:
    return copy.deepcopy(gpu_profiles()[name].to_dict())


def test_a_profile_survives_its_own_toml() -> None:
    for gpu in gpu_profiles().values():
        assert GpuProfile.from_toml(gpu.to_toml()) == gpu


def test_unknown_keys_are_refused_with_their_path() -> None:
    data = as_dict("t4")
    data["tdp_w"]["sauce"] = "hearsay"
    with pytest.raises(FileFormatError, match=r"^t4\.toml: unknown key tdp_w\.sauce\. Did you mean source, value\?"):
        GpuProfile.from_dict(data, where="t4.toml")


@pytest.mark.parametrize("key", ["basis", "source"])
def test_a_figure_must_say_its_basis_and_source(key: str) -> None:
    data = as_dict("t4")
    data["tdp_w"][key] = " "
    with pytest.raises(FileFormatError, match="tdp_w: basis and source must say something"):
        GpuProfile.from_dict(data)
    del data["tdp_w"][key]
    with pytest.raises(FileFormatError, match=f"tdp_w.{key} is missing"):
        GpuProfile.from_dict(data)
