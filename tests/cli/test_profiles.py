"""`autoft profiles`: list, show, add, check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoft.profiles.catalogue import forget, own_folder
from autoft.profiles.gpu_catalogue import find_gpu, gpu_profiles
from autoft.profiles.model_catalogue import model_profiles
from autoft.profiles.preset_catalogue import preset_profiles

T4 = Path(__file__).parents[2] / "profiles" / "gpus" / "t4.toml"


@pytest.fixture(autouse=True)
def nothing_remembered():
    forget()
    yield
    forget()


def test_a_list_of_all_kinds_or_of_one(autoft) -> None:
    everything = json.loads(autoft("profiles", "--json").out)
    assert [gpu["name"] for gpu in everything["gpus"]] == list(gpu_profiles())
    assert [model["name"] for model in everything["models"]] == list(model_profiles())
    assert [preset["name"] for preset in everything["presets"]] == list(preset_profiles())
    for words in (("gpus",), ("gpus", "list")):
        only = json.loads(autoft("profiles", *words, "--json").out)
        assert only == {"gpus": everything["gpus"]}
        out = autoft("profiles", *words).out
        assert out.splitlines()[0].split() == ["GPU", "Memory", "TFLOP/s", "GB/s", "Power", "Capability"]
        assert all(name in out for name in gpu_profiles())


@pytest.mark.parametrize("words", [("gpus", "show", "RTX 4090"), ("show", "4090")])
def test_show_tells_each_figure_with_its_basis_and_source(autoft, monkeypatch, words) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip() for line in autoft("profiles", *words).out.splitlines()]
    assert lines[0] == "rtx-4090"
    assert "compute capability  8.9" in lines
    for name, figure in find_gpu("rtx-4090").figures().items():
        assert figure.basis in lines, name
        assert f"source: {figure.source}" in lines, name
    assert "half                165.2 TFLOP/s" in lines
    assert "memory bandwidth    1008 GB/s" in lines


def test_show_as_json_has_the_profile_and_its_file(autoft) -> None:
    shown = json.loads(autoft("profiles", "models", "show", "smollm2-135m", "--json").out)
    assert (shown["kind"], shown["file"], shown["profile"]["hub_id"]) == ("models", None, "HuggingFaceTB/SmolLM2-135M")
    autoft("profiles", "gpus", "add", T4)
    forget()
    shown = json.loads(autoft("profiles", "show", "t4", "--json").out)
    assert (shown["kind"], shown["file"]) == ("gpus", str(own_folder("gpus") / "t4.toml"))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_show_fits_the_width(autoft, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (
        ("gpus", "show", "h100-80gb"),
        ("models", "show", "qwen2.5-3b-instruct"),
        ("presets", "show", "edge"),
    ):
        assert max(map(len, autoft("profiles", *words).out.splitlines())) <= width


def test_add_copies_a_file_and_never_replaces_one_unasked(autoft) -> None:
    kept = own_folder("gpus") / "t4.toml"
    done = autoft("profiles", "gpus", "add", T4)
    assert (done.code, done.out) == (0, f"t4: written to {kept}\n")
    assert kept.read_bytes() == T4.read_bytes()
    again = autoft("profiles", "gpus", "add", T4)
    assert (again.code, again.err) == (2, f"Error: {kept} is there already\nTo fix: --force replaces it\n")
    assert autoft("profiles", "gpus", "add", T4, "--force").code == 0


def test_add_refuses_a_file_that_is_wrong(autoft, tmp_path) -> None:
    wrong = tmp_path / "t4.toml"
    wrong.write_text(T4.read_text().replace("tdp_w", "tdp"))
    done = autoft("profiles", "gpus", "add", wrong)
    assert done.code == 2
    assert done.err.startswith(f"Error: {wrong}: unknown key tdp. Did you mean tdp_w")
    assert not own_folder("gpus").exists()


def test_check_tells_what_is_wrong_and_exits_with_two(autoft) -> None:
    files = len(gpu_profiles()) + len(model_profiles()) + len(preset_profiles())
    assert autoft("profiles", "check").out == f"{files} files checked, none wrong\n"
    assert autoft("profiles", "gpus", "check", T4).out == "1 file checked, none wrong\n"
    own_folder("gpus").mkdir(parents=True)
    broken = own_folder("gpus") / "broken.toml"
    broken.write_text("name = [")
    done = autoft("profiles", "check")
    assert done.code == 2
    assert done.out.startswith(f"{broken}: not valid TOML: ")
    assert done.out.endswith(f"{files + 1} files checked, 1 wrong\n")
    found = json.loads(autoft("profiles", "gpus", "check", broken, T4, "--json").out)
    assert found["checked"] == 2
    assert [problem["what"].split(": ")[0] for problem in found["problems"]] == [str(broken)]


def test_a_card_of_one_s_own_can_be_planned_for_and_a_broken_one_only_warns(autoft, caplog) -> None:
    folder = own_folder("gpus")
    folder.mkdir(parents=True)
    text = T4.read_text(encoding="utf-8").replace('"t4"', '"mine"').replace("16_106_127_360", "4_294_967_296")
    (folder / "mine.toml").write_text(text.replace("value = 16,", "value = 4,"), encoding="utf-8")
    (folder / "broken.toml").write_text("", encoding="utf-8")
    done = autoft("estimate", "tinyllama-1.1b-chat-v1.0", "--gpu", "mine", "--seq-len", 64, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["available_bytes"] < 2**32
    assert caplog.messages == [f"Warning: {folder / 'broken.toml'}: name is missing; that profile is left out"]


@pytest.mark.parametrize(
    ("words", "error", "fix"),
    [
        ("gpu", "kind gpu: not known. Did you mean gpus?", "one of: gpus, models, presets"),
        ("gpus shwo", "action shwo: not known. Did you mean show?", "one of: list, show, add, check"),
        ("gpus list t4", "list takes no name: t4", "autoft profiles gpus show t4"),
        ("show", "show takes one name", "autoft profiles gpus show rtx-4090"),
        ("models show qwen", "no profile 'qwen'.", "autoft profiles models list"),
        ("presets show chat", "no preset 'chat'. Did you mean chatbot?", "one of: chatbot"),
        ("gpus show rtx-4091", "no GPU 'rtx-4091' in the catalogue. Did you mean rtx-4090", "autoft profiles gpus"),
        ("add x.toml", "add takes a kind and one file", "autoft profiles gpus add FILE"),
        ("gpus add x.toml", "x.toml: No such file or directory", "check the path"),
        ("check x.toml", "to check a file takes its kind", "autoft profiles gpus check x.toml"),
        ("models add --from-probe", "--from-probe writes a GPU's file itself", "autoft profiles gpus add --from"),
        ("gpus --force", "--force belongs to add", "autoft profiles -h"),
    ],
)
def test_what_is_refused(autoft, words, error, fix) -> None:
    done = autoft("profiles", *words.split())
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith(f"Error: {error}")
    assert second.startswith(f"To fix: {fix}")
