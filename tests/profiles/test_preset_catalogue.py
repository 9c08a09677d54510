from __future__ import annotations

import dataclasses
import re

import pytest

from autoft.cli.export import KINDS
from autoft.errors import FileFormatError, OptionError
from autoft.planner.search.preset import check_preset
from autoft.planner.search.rank import PREFERENCES
from autoft.profiles.preset_catalogue import ADVICE, Preset, find_preset, preset_profiles
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe

PRESETS = preset_profiles()
RECIPE, JOB = ({field.name for field in dataclasses.fields(record)} for record in (Recipe, Job))


def test_the_presets() -> None:
    assert set(PRESETS) == {
        "chatbot", "document-extraction", "classification", "code", "style-and-tone", "continued-pretraining",
        "prototype", "edge",
    }  # fmt: skip


def test_a_preset_has_only_keys_that_the_plan_knows() -> None:
    keys = {name for preset in PRESETS.values() for name in preset.values}
    assert keys - set(ADVICE) - {"prefer"} <= RECIPE | JOB


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_value_fits_its_field_and_says_why(preset: Preset) -> None:
    values = {name: setting.value for name, setting in preset.settings.items()}
    assert values.pop("prefer", "balanced") in PREFERENCES
    method = {"quant_type": "nf4"} if values.get("method") == "qlora" else {}
    Recipe.from_dict({**{key: value for key, value in values.items() if key in RECIPE}, **method})
    Job.from_dict({"model": "", "recipe": {}, **{key: value for key, value in values.items() if key in JOB}})
    assert {"rank", "target_modules", "learning_rate", "epochs", "packing", "seq_len"} <= values.keys()
    assert values["alpha"] == 2 * values["rank"]
    assert set(preset.advice) == set(ADVICE)
    assert "metric" in values
    assert preset.advice["export"].value in KINDS
    for setting in (*preset.settings.values(), *preset.advice.values()):
        assert not setting.reason.endswith(".")


def test_a_preset_survives_its_own_toml() -> None:
    for preset in PRESETS.values():
        assert Preset.from_toml(preset.to_toml()) == preset


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[rank]\nvalue = 8\nreason = ' '\nsource = 's'", "[rank]: reason and source must say something"),
        ("[rank]\nvalue = 8\nreason = 'r'", "[rank]: source is missing"),
        ("[rank]\nvalue = 8\nreason = 'r'\nsource = 's'\nbasis = 'b'", "[rank]: unknown key basis"),
        ("rank = 8", "rank = 8: not a table"),
    ],
)
def test_wrong_presets_are_refused(toml: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)):
        Preset.from_toml(f"name = 'x'\nsummary = 'y'\n{toml}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", "1e-4", "x.toml: unknown key lr."),
        ("rank", "-8", "x.toml: rank = -8: input should be greater than 0"),
        ("method", "'qlra'", "x.toml method=qlra: not known. Did you mean qlora"),
        ("prefer", "'cheap'", "x.toml: prefer = 'cheap' is not known"),
        ("model", "'m'", "x.toml: unknown key model."),
        ("weight_decay", "'much'", "x.toml: weight_decay = 'much'"),
    ],
)
def test_a_preset_s_values_are_those_of_its_fields(name: str, value: str, message: str) -> None:
    preset = Preset.from_toml(f"name = 'x'\nsummary = 'y'\n[{name}]\nvalue = {value}\nreason = 'r'\nsource = 's'")
    with pytest.raises(FileFormatError, match=re.escape(message)):
        check_preset(preset, where="x.toml")


def test_a_preset_may_have_any_setting() -> None:
    text = "name = 'x'\nsummary = 'y'\n[weight_decay]\nvalue = 0.1\nreason = 'r'\nsource = 's'"
    check_preset(Preset.from_toml(text), where="x.toml")


def test_presets_are_found_by_name() -> None:
    assert find_preset("Chatbot ").name == "chatbot"
    with pytest.raises(OptionError, match=r"no preset 'extraction'\. Did you mean document-extraction\?"):
        find_preset("extraction")
