"""What a preset puts where the user said nothing, and what the plan says of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from autoft.errors import FileFormatError, near
from autoft.planner.facts import Reason
from autoft.planner.request import Prefer, Request
from autoft.planner.search.set_option import check, split
from autoft.planner.search.synonyms import SETTINGS, TYPED
from autoft.profiles.preset_catalogue import Preset, PresetValue, find_preset

PREFER = "prefer"  # a preset may have it beside fields of Recipe and Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """A preset's values that stand.

    recipe, job: fields of theirs. overruled: names of what the user set otherwise. unpacked: why its packing does not.
    unmeasured: why its metric does not.
    """

    preset: Preset | None = None
    prefer: Prefer = "balanced"
    seq_len: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    overruled: tuple[str, ...] = ()
    unpacked: str | None = None
    unmeasured: str | None = None

    @property
    def name(self) -> str | None:
        return self.preset.name if self.preset else None

    @property
    def packing(self) -> bool:
        return bool(self.recipe.get("packing"))

    def without_packing(self, why: str) -> Defaults:
        return replace(self, recipe={k: v for k, v in self.recipe.items() if k != "packing"}, unpacked=why)

    def reasons(self, *, seq_len_counts: bool) -> list[Reason]:
        """One a value, with its reason and source. seq_len_counts: the plan took over the length."""
        if self.preset is None:
            return []
        lines = [Reason(key="preset", text=f"preset: {self.preset.name}, {self.preset.summary}")]
        for name, setting in self.preset.settings.items():
            stands = {
                "seq_len": seq_len_counts,
                "packing": self.unpacked is None,
                "metric": self.unmeasured is None,
            }
            if name not in self.overruled and stands.get(name, True):
                lines.append(Reason(key=name, text=_line(name, setting)))
        return lines

    def notes(self) -> list[str]:
        """What gave way, and what to do with the result."""
        if self.preset is None:
            return []
        lines = []
        if self.overruled:
            lines.append(
                f"preset {self.preset.name}: your own settings stand for {', '.join(map(_words, self.overruled))}"
            )
        if self.unpacked is not None:
            lines.append(f"preset {self.preset.name}: no packing, for {self.unpacked}")
        if self.unmeasured is not None:
            lines.append(f"preset {self.preset.name}: the loss judges, for {self.unmeasured}")
        for name, setting in self.preset.advice.items():
            why = f"{setting.reason} ({setting.source})"
            lines.append(
                f"preset {self.preset.name} advises `autoft {name} DIR --to {setting.value}` afterwards: {why}"
            )
        return lines


def defaults(name: str | None, given: Collection[str]) -> Defaults:
    """The values of the preset `name` but for those in `given`, fields that the user set.

    Raises: OptionError for an unknown preset, FileFormatError for a value that is none of its field.
    """
    if name is None:
        return Defaults()
    preset = find_preset(name)
    check_preset(preset, where=f"preset {preset.name}")
    overruled = {key for key in preset.settings if key in given or _leader(key) in given}
    values = {key: setting.value for key, setting in preset.settings.items() if key not in overruled}
    prefer, seq_len = values.pop(PREFER, "balanced"), values.pop("seq_len", None)
    recipe, job = split(values)
    return Defaults(
        preset=preset,
        prefer=cast(Prefer, prefer),
        seq_len=seq_len if isinstance(seq_len, int) else None,
        recipe=recipe,
        job=job,
        overruled=tuple(key for key in preset.settings if key in overruled),
    )


def check_preset(preset: Preset, *, where: str) -> None:
    """Whether each value is one of its field. Raises: FileFormatError naming `where` and the first that is not."""
    values = {name: setting.value for name, setting in preset.settings.items()}
    prefer = values.pop(PREFER, "balanced")
    preferences = get_args(Prefer)
    if prefer not in preferences:
        raise FileFormatError(f"{where}: prefer = {prefer!r} is not known", fix=f"use one of: {', '.join(preferences)}")
    for name in values:
        if name not in TYPED:
            hint = near(name, [*TYPED, PREFER])
            raise FileFormatError(f"{where}: unknown key {name}.{hint}", fix="autoft plan --help-settings lists them")
    check(*split(values), where=where)


def _leader(name: str) -> str | None:
    """The setting that this one says more of."""
    return SETTINGS[name].setting.follows if name in SETTINGS else None


def preset_of(request: Request, pinned: Collection[str], seq_len: int | None) -> Defaults:
    """What the request's preset sets that the request does not, and what to prefer. pinned: fields of Recipe or Job.

    Raises: as defaults.
    """
    options = {"seq_len": seq_len, "prefer": request.prefer}
    preset = defaults(request.preset, {*pinned, *(name for name, value in options.items() if value is not None)})
    return replace(preset, prefer=request.prefer or preset.prefer)


def _line(name: str, setting: PresetValue) -> str:
    """rank 16: the reason (the source)."""
    return f"{_words(name)} {_shown(setting.value)}: {setting.reason} ({setting.source})"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, tuple) else str(value)
