"""The user's own profiles: AUTOFT_HOME/profiles/KIND, read beside the built-in ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.errors import FileFormatError, OptionError
from autoft.profiles.catalogue import forget, own_folder, parse, problems_of, shelf
from autoft.profiles.gpu_catalogue import GpuProfile, find_gpu, gpu_for, gpu_profiles
from autoft.profiles.hardware import Gpu
from autoft.profiles.probe_profile import profile_of

MINE = """
name = "my-card"
product = "NVIDIA My Card"
compute_capability = [8, 6]
memory_gib = { value = 20, basis = "as sold", source = "the box" }
"""


@pytest.fixture
def own(own_home: Path) -> Path:
    forget()
    folder = own_folder("gpus")
    assert folder == own_home / "profiles" / "gpus"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, text: str = MINE, name: str = "my-card") -> None:
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    forget()


def test_a_file_of_the_user_s_adds_a_card(own: Path) -> None:
    built_in = dict(gpu_profiles())
    write(own)
    assert find_gpu("My Card").memory_gib.value == 20
    assert {name: p for name, p in gpu_profiles().items() if name != "my-card"} == built_in
    assert shelf("gpus", GpuProfile).own == {"my-card": own / "my-card.toml"}


def test_a_file_of_the_user_s_overrides_a_built_in_one(own: Path) -> None:
    count = len(gpu_profiles())
    write(own, MINE.replace('"my-card"', '"t4"'), "t4")
    assert find_gpu("t4").product == "NVIDIA My Card"
    assert len(gpu_profiles()) == count


def test_a_card_of_the_user_s_goes_before_built_in_ones_of_its_name(own: Path) -> None:
    write(own, MINE.replace("NVIDIA My Card", "NVIDIA GeForce RTX 4090") + 'aliases = ["a100"]\n')
    assert find_gpu("a100").name == "my-card"
    found = gpu_for("NVIDIA GeForce RTX 4090", 24564 * 2**20)
    assert found is not None
    assert found.name == "my-card"
    assert find_gpu("rtx-4090").name == "rtx-4090"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = = 1", "not valid TOML: Invalid value (at line 1, column 8)"),
        ("a = " + "[" * 5000, "not valid TOML: maximum recursion depth exceeded"),
        ("a = " + "9" * 6000, "not valid TOML: Exceeds the limit"),
        (MINE + "watts = 3\n", "unknown key watts."),
        (MINE.replace("value = 20", "value = -20"), "memory_gib: value must be above 0"),
        (MINE.replace("value = 20", "value = nan"), "memory_gib.value"),
        (MINE.replace("value = 20", "value = inf"), "memory_gib.value"),
        (MINE.replace("value = 20", "value = 2020-01-01"), "memory_gib.value = '2020-01-01': input should be a valid"),
        (MINE.replace("value = 20", "value = 20_000_000_000"), "memory_gib = 2e+10: GiB are between 1 and 1024"),
        (
            MINE + 'memory_bytes_per_s = { value = 936, basis = "b", source = "s" }',
            "memory_bytes_per_s = 936: bytes a second are between 1e+10 and 5e+13",
        ),
        (
            MINE + 'half_flops_per_s = { value = 71, basis = "b", source = "s" }',
            "half_flops_per_s = 71: operations a second are between 1e+10 and 1e+17",
        ),
        (
            MINE + 'pcie = { generation = 40, lanes = 16, source = "s" }',
            "pcie: generation is 1 to 8, lanes 1 to 16",
        ),
        (MINE.replace("[8, 6]", "[0, 6]"), "compute_capability = [0, 6] is none"),
        (MINE + 'vendor = "amd"', "compute_capability belongs to a card of vendor nvidia"),
        (MINE + 'vendor = "intel"', "vendor = 'intel' is not known"),
        (MINE.replace('"my-card"', '"other"'), "name = 'other'"),
        (MINE.replace('"my-card"', '"../t4"'), "name = '../t4' cannot be a file's name"),
    ],
)
def test_a_broken_file_is_left_out_and_told_of(own: Path, text: str, problem: str) -> None:
    built_in = dict(gpu_profiles())
    write(own, text)
    assert gpu_profiles() == built_in
    (found,) = shelf("gpus", GpuProfile).problems
    assert str(found).startswith(f"{own / 'my-card.toml'}: {problem}")
    files, problems = problems_of("gpus", GpuProfile)
    assert files == len(built_in) + 1
    assert [str(p) for p in problems] == [str(found)]


def test_a_file_that_is_no_text_or_no_file(own: Path) -> None:
    (own / "bytes.toml").write_bytes(b"\xff\xfe")
    (own / "folder.toml").mkdir()
    (own / "gone.toml").symlink_to(own / "nowhere")
    forget()
    assert find_gpu("t4").name == "t4"
    reasons = [problem.what.removeprefix(f"{own}/") for problem in shelf("gpus", GpuProfile).problems]
    assert reasons == [
        "bytes.toml: not UTF-8 text",
        "folder.toml: Is a directory",
        "gone.toml: No such file or directory",
    ]


def test_the_warning_is_one_line_on_stderr(own: Path) -> None:
    write(own, MINE.replace("value = 20", "value = -20"))
    words = [sys.executable, "-m", "autoft", "profiles", "gpus", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0
    assert done.stderr == (
        f"Warning: {own / 'my-card.toml'}: memory_gib: value must be above 0; that profile is left out\n"
    )
    assert '"rtx-4090"' in done.stdout


def test_an_error_of_a_file_names_it() -> None:
    with pytest.raises(FileFormatError, match=r"^x\.toml: name = 'my-card'\nTo fix: name the file after it"):
        parse(MINE, GpuProfile, where="x.toml", file_name="x.toml")


# --- from what the driver tells -------------------------------------------------------------------------------------


def here(name: str, total_mib: int, capability: tuple[int, int] | None = (8, 9)) -> Gpu:
    total = total_mib * 2**20
    return Gpu(name=name, origin="nvml", total_bytes=total, free_bytes=total, compute_capability=capability)


def test_a_card_of_the_catalogue_keeps_its_figures_and_gets_the_driver_s_memory() -> None:
    profile = profile_of(here("NVIDIA GeForce RTX 4090", 24000), date="2026-01-31")
    assert profile.name == "rtx-4090"
    assert profile.memory_bytes == 24000 * 2**20
    assert profile.total_bytes is not None
    assert profile.total_bytes.source == "NVML on this machine, 2026-01-31"
    assert profile.half_flops_per_s == find_gpu("rtx-4090").half_flops_per_s


def test_a_card_that_is_not_known_gets_what_the_driver_tells() -> None:
    profile = profile_of(here("NVIDIA GeForce RTX 9090 D Laptop GPU", 49140), date="2026-01-31")
    assert (profile.name, profile.product) == ("rtx-9090-d-laptop", "NVIDIA GeForce RTX 9090 D Laptop GPU")
    assert (profile.memory_gib.value, profile.memory_bytes) == (48, 49140 * 2**20)
    assert GpuProfile.from_toml(profile.to_toml()) == profile
    with pytest.raises(OptionError, match="does not report its compute capability"):
        profile_of(here("unnamed NVIDIA GPU", 6144, None), date="2026-01-31")
