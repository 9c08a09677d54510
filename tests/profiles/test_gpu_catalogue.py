from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from autoft.errors import FileFormatError, OptionError
from autoft.profiles.gpu_catalogue import GpuProfile, find_gpu, gpu_for, gpu_profiles

PROMISED = """
gtx-1060-6gb gtx-1070 gtx-1070-ti gtx-1080 gtx-1080-ti gtx-1660-ti gtx-1660-super
rtx-2060 rtx-2060-12gb rtx-2070 rtx-2070-super rtx-2080 rtx-2080-super rtx-2080-ti
rtx-3050 rtx-3060 rtx-3060-8gb rtx-3060-ti rtx-3070 rtx-3070-ti rtx-3080 rtx-3080-12gb rtx-3080-ti rtx-3090 rtx-3090-ti
rtx-4060 rtx-4060-ti-8gb rtx-4060-ti-16gb rtx-4070 rtx-4070-super rtx-4070-ti rtx-4070-ti-super rtx-4080 rtx-4080-super
rtx-4090 rtx-5060 rtx-5060-ti-8gb rtx-5060-ti-16gb rtx-5070 rtx-5070-ti rtx-5080 rtx-5090
rtx-3060-laptop rtx-3070-laptop rtx-3080-laptop-8gb rtx-3080-laptop-16gb rtx-3080-ti-laptop rtx-4050-laptop
rtx-4060-laptop rtx-4070-laptop rtx-4080-laptop rtx-4090-laptop rtx-5070-laptop rtx-5080-laptop rtx-5090-laptop
quadro-rtx-5000 quadro-rtx-6000 quadro-rtx-8000 rtx-a2000-6gb rtx-a2000-12gb rtx-a4000 rtx-a4500 rtx-a5000 rtx-a5500
rtx-a6000 rtx-2000-ada rtx-4000-ada rtx-4500-ada rtx-5000-ada rtx-6000-ada rtx-pro-4000-blackwell rtx-pro-4500-blackwell
rtx-pro-5000-blackwell rtx-pro-6000-blackwell t4 l4 l40 l40s a2 a10 a10g a16 a30 a40 v100-16gb v100-32gb p40
p100-pcie-16gb a100-40gb a100-80gb a100-pcie-40gb a100-pcie-80gb h100-80gb h100-pcie-80gb h100-nvl-94gb h200-141gb b200
gh200-96gb mi210 mi250x mi300x rx-7900-xt rx-7900-xtx rx-9070-xt radeon-pro-w7900
jetson-agx-orin-32gb jetson-agx-orin-64gb jetson-orin-nx-16gb dgx-spark
"""
PROFILES = list(gpu_profiles().values())
MIB = 2**20


def of_each(profiles: list[GpuProfile] = PROFILES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("gpu", profiles, ids=lambda gpu: gpu.name)


def test_the_promised_cards_are_there() -> None:
    assert set(PROMISED.split()) <= set(gpu_profiles())
    assert len(gpu_profiles()) >= 80


@of_each()
def test_every_figure_has_basis_and_source(gpu: GpuProfile) -> None:
    figures = gpu.figures()
    assert {"memory_gib", "memory_bytes_per_s", "multiprocessors", "tdp_w"} <= set(figures)
    for figure in [*figures.values(), *([gpu.pcie] if gpu.pcie else [])]:
        assert figure.basis.strip()
        assert re.search(r"[A-Z]{2}|[a-z]{4}", figure.source), figure.source


@of_each()
def test_figures_are_of_the_right_size(gpu: GpuProfile) -> None:
    """A slipped digit or unit, not a wrong data sheet."""
    assert gpu.vendor == "amd" or (6, 0) <= (gpu.compute_capability or (0, 0)) <= (13, 0)
    assert 0.93 * gpu.memory_gib.value * 2**30 <= gpu.memory_bytes <= gpu.memory_gib.value * 2**30
    assert gpu.half_flops_per_s is None or 4e12 < gpu.half_flops_per_s.value < 5e15
    assert gpu.memory_bytes_per_s is not None
    assert 100e9 < gpu.memory_bytes_per_s.value < 10e12
    assert gpu.tdp_w is not None
    assert 20 <= gpu.tdp_w.value <= 1500
    assert gpu.multiprocessors is not None
    assert 8 <= gpu.multiprocessors.value <= 304


@of_each()
def test_rates_of_one_card_agree_with_each_other(gpu: GpuProfile) -> None:
    """16-bit products are 1 to 30 times as fast as float32, 8-bit ones twice or four times as fast as 16-bit ones.

    Exceptions: arithmetic of float16 without tensor cores may be slower than float32 (Pascal). Sparse figures, which
    are twice the dense ones, fall outside.
    """
    figures = {name: figure.value for name, figure in gpu.figures().items()}
    half, single = figures.get("half_flops_per_s"), figures.get("float32_flops_per_s")
    if half and single:
        assert 1 <= half / single <= 30.1
    if half and "tf32_flops_per_s" in figures:
        assert figures["tf32_flops_per_s"] / half == pytest.approx(0.5, rel=0.02)
    if half and "fp8_flops_per_s" in figures:
        assert figures["fp8_flops_per_s"] / half == pytest.approx(2, rel=0.02)
    if half and "int8_ops_per_s" in figures and gpu.name != "p40":
        ratio = figures["int8_ops_per_s"] / half
        assert any(ratio == pytest.approx(expected, rel=0.02) for expected in (1, 2, 4))


@of_each()
def test_computed_throughput_is_computed_right(gpu: GpuProfile) -> None:
    for name, figure in gpu.figures().items():
        pattern = r"computed: (\d+) SMs \* (\d+) (?:FLOP|operations) per clock \* ([\d.]+) GHz"
        terms = re.search(pattern, figure.basis)
        if terms:
            assert figure.value == pytest.approx(int(terms[1]) * int(terms[2]) * float(terms[3]) * 1e9, rel=0.005), name
            assert gpu.multiprocessors is not None
            assert int(terms[1]) == gpu.multiprocessors.value, name


@of_each([gpu for gpu in PROFILES if "GeForce RTX" in gpu.product])
def test_a_geforce_card_has_half_the_rate_with_32_bit_accumulation(gpu: GpuProfile) -> None:
    """512 FLOP per clock and multiprocessor since Turing, where the professional cards have 1024."""
    assert gpu.half_flops_per_s is not None
    assert gpu.float32_flops_per_s is not None
    arithmetic = 128 if gpu.compute_capability == (7, 5) else 256
    assert gpu.half_flops_per_s.value / gpu.float32_flops_per_s.value == pytest.approx(512 / arithmetic, rel=0.01)


@of_each([gpu for gpu in PROFILES if gpu.compute_capability == (6, 1)])
def test_native_half_precision_is_useless_on_pascal(gpu: GpuProfile) -> None:
    assert gpu.half_flops_per_s is not None
    assert gpu.float32_flops_per_s is not None
    assert gpu.float16_flops_per_s is not None
    assert gpu.half_flops_per_s.value == gpu.float32_flops_per_s.value
    assert gpu.float16_flops_per_s.value == pytest.approx(gpu.float32_flops_per_s.value / 64, rel=0.03)
    assert not gpu.native_bf16


@of_each()
def test_bandwidth_agrees_with_the_bus_it_names(gpu: GpuProfile) -> None:
    figure = gpu.memory_bytes_per_s
    bus = re.search(r"(\d+)-bit at ([\d.]+) Gbps", figure.basis) if figure else None
    if figure and bus:
        assert figure.value == pytest.approx(int(bus[1]) / 8 * float(bus[2]) * 1e9, rel=0.005)


def test_no_two_cards_answer_to_one_name() -> None:
    for gpu in PROFILES:
        assert {find_gpu(name) for name in (gpu.name, *gpu.aliases)} == {gpu}
    spelled = [re.sub(r"[^a-z0-9]", "", name) for gpu in PROFILES for name in (gpu.name, *gpu.aliases)]
    assert len(set(spelled)) == len(spelled)


@of_each()
def test_what_the_driver_tells_finds_the_card(gpu: GpuProfile) -> None:
    assert gpu_for(gpu.product, gpu.memory_bytes) == gpu
    assert gpu_for(gpu.product.removeprefix("NVIDIA "), int(0.97 * gpu.memory_bytes)) == gpu


@pytest.mark.parametrize(
    ("product", "mib", "name"),
    [
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080"),
        ("NVIDIA GeForce RTX 3080", 12288, "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 3060", 12288, "rtx-3060"),
        ("NVIDIA GeForce RTX 3060", 8192, "rtx-3060-8gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti-8gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 16384, "rtx-3080-laptop-16gb"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "rtx-4090-laptop"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80gb"),
        ("NVIDIA RTX A2000", 6138, "rtx-a2000-6gb"),
        ("GeForce RTX 2060", 6144, "rtx-2060"),
        ("Tesla V100-SXM2-32GB", 32510, "v100-32gb"),
        # somebody has soldered more memory to it: still the same processor
        ("NVIDIA GeForce RTX 4090", 49140, "rtx-4090"),
    ],
)
def test_one_name_of_the_driver_may_stand_for_two_cards(product: str, mib: int, name: str) -> None:
    found = gpu_for(product, mib * MIB)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("product", ["NVIDIA GeForce RTX 9090", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "GRID T4-16Q", ""])
def test_a_card_that_the_driver_names_and_nobody_knows(product: str) -> None:
    assert gpu_for(product, 2**34) is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("RTX 4090 24GB", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090 laptop", "rtx-4090-laptop"),
        ("RTX 4090 Mobile", "rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("RTX 3060 12GB", "rtx-3060"),
        ("3080 12gb", "rtx-3080-12gb"),
        ("4060 Ti 16", "rtx-4060-ti-16gb"),
        ("2080Ti", "rtx-2080-ti"),
        ("4070 Ti Super", "rtx-4070-ti-super"),
        ("2080S", "rtx-2080-super"),
        ("Tesla T4", "t4"),
        ("a100-80", "a100-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("H100 NVL", "h100-nvl-94gb"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("A6000", "rtx-a6000"),
        ("RTX 6000 Ada", "rtx-6000-ada"),
        ("Quadro RTX 6000", "quadro-rtx-6000"),
        ("RTX PRO 6000", "rtx-pro-6000-blackwell"),
        ("7900 XTX", "rx-7900-xtx"),
        ("AMD Instinct MI300X", "mi300x"),
        ("GB10", "dgx-spark"),
        # a catalogue's name is one card, even where the words could be two
        ("rtx-3080", "rtx-3080"),
        ("rtx-3060", "rtx-3060"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find_gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "choices"),
    [
        ("RTX 3080", "rtx-3080 (10 GiB) or rtx-3080-12gb (12 GiB)"),
        ("3080", "rtx-3080 (10 GiB) or rtx-3080-12gb (12 GiB)"),
        ("4060 Ti", "rtx-4060-ti-16gb (16 GiB) or rtx-4060-ti-8gb (8 GiB)"),
        ("NVIDIA GeForce RTX 3060", "rtx-3060 (12 GiB) or rtx-3060-8gb (8 GiB)"),
        (
            "A100",
            "a100-40gb (40 GiB), a100-80gb (80 GiB), a100-pcie-40gb (40 GiB) or a100-pcie-80gb (80 GiB)",
        ),
        ("H100", "h100-80gb (80 GiB), h100-nvl-94gb (94 GiB) or h100-pcie-80gb (80 GiB)"),
        ("RTX 6000", "quadro-rtx-6000 (24 GiB) or rtx-6000-ada (48 GiB)"),
    ],
)
def test_a_name_that_fits_several_cards_is_a_question(spelling: str, choices: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_gpu(spelling)
    assert str(caught.value) == f"GPU {spelling!r} could be {choices}\nTo fix: name one of them"


def test_laptop_alone_asks_which() -> None:
    with pytest.raises(OptionError, match=r"GPU 'laptop' could be rtx-3050-6gb-laptop .* or rtx-5090-laptop") as caught:
        find_gpu("laptop")
    assert caught.value.what.count("laptop (") + caught.value.what.count("laptop-") == 19


def test_too_many_choices_are_counted() -> None:
    with pytest.raises(OptionError, match=r"or \d+ others\n"):
        find_gpu("rtx")


@pytest.mark.parametrize(
    ("spelling", "hint"),
    [
        ("RTX 4091", " Did you mean rtx-4090, rtx-5090, rtx-4080?"),
        # sold in laptops only
        ("RTX 4050", " Did you mean rtx-4050-laptop?"),
        ("voodoo", ""),
        ("", ""),
    ],
)
def test_an_unknown_card_offers_near_names(spelling: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_gpu(spelling)
    assert str(caught.value) == (
        f"no GPU {spelling!r} in the catalogue.{hint}\nTo fix: autoft profiles gpus lists them"
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
