"""The words of --set as fields of Recipe and Job."""

from __future__ import annotations

from typing import Any

from autoft.errors import FileFormatError, OptionError, near
from autoft.planner.search.synonyms import SETTINGS, TYPED, setting_called, switch_called
from autoft.schema import parse_toml
from autoft.settings import Field, settings_of
from autoft.trainer.adapters import NOT_HERE
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe

WHERE = "--set"


def parse_settings(words: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key=value` words as (fields of the Recipe, fields of the Job), values read as TOML, else as text; the last wins.

    Raises: OptionError for a word without "=" and for an unknown key, FileFormatError for a wrong value.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key, text = key.strip(), text.strip()
        if not equals:
            raise OptionError(f"--set {word}: not of the form key=value", fix=f"--set {key or 'rank'}=...")
        if key not in TYPED:
            raise _unknown(word, key, text)
        values[key] = _value(text, SETTINGS[key])
    recipe, job = split(values)
    check(recipe, job, where=WHERE)
    return recipe, job


def split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Those of the Recipe, those of the Job)."""
    of_recipe = settings_of(Recipe)
    recipe = {name: value for name, value in values.items() if name in of_recipe}
    job = {name: value for name, value in values.items() if name not in of_recipe}
    return recipe, job


def check(recipe: dict[str, Any], job: dict[str, Any], *, where: str) -> None:
    """Whether each value is one of its field, and none contradicts another, as far as it can be told without the rest.

    Raises: FileFormatError naming `where` and the field.
    """
    for name in ("adapter", "init"):
        value = str(recipe.get(name)).lower().replace("-", "_")
        if value in NOT_HERE:
            raise FileFormatError(f"{where} {name}={value}: {NOT_HERE[value]}", fix=_one_of(SETTINGS[name].choices))
    alone = {name: value for name, value in recipe.items() if SETTINGS[name].setting.alone}
    for name, value in alone.items():
        Recipe.from_dict({name: value}, where=where)
    Recipe.from_dict(alone, where=where)
    Job.from_dict({"model": "", "recipe": {}, **job}, where=where)
    method = recipe.get("method", "lora")
    methods = SETTINGS["method"].choices
    if method not in methods:
        raise FileFormatError(f"{where} method={method}: not known.{near(str(method), methods)}", fix=_one_of(methods))


def _value(text: str, field: Field) -> Any:
    """Read as TOML, else as text: Python's True and False, lists with commas, on and off for a choice of these."""
    try:
        lowered = text.lower() if text in ("True", "False") else text
        value = parse_toml(f"value = {lowered}", where=WHERE)["value"]
    except FileFormatError:
        value = text
    if isinstance(value, bool) and "on" in field.choices:
        return "on" if value else "off"
    if field.is_list and isinstance(value, str) and value not in field.choices:
        value = [word.strip() for word in value.split(",") if word.strip()]
    return tuple(value) if field.is_list and isinstance(value, list) else value


def _unknown(word: str, key: str, value: str) -> OptionError:
    ours, switch = setting_called(key), switch_called(key, value)
    known = sorted(TYPED)
    if ours in TYPED:
        return OptionError(f"--set {word}: the setting is called {ours} here", fix=f"--set {ours}={value}")
    if switch is not None:
        return OptionError(f"--set {word}: no setting {key!r}", fix=switch)
    return OptionError(f"--set {word}: no setting {key!r}.{near(key, known)}", fix=_one_of(known))


def _one_of(words: list[str] | tuple[str, ...]) -> str:
    return f"one of: {', '.join(words)}"
