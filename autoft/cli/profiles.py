"""`autoft profiles`: the GPUs, models and presets that autoft knows by name, and the user's own beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from autoft import render, units
from autoft.cli import options
from autoft.errors import FileFormatError, OptionError, near
from autoft.home import write_text
from autoft.profiles.catalogue import Figure, own_folder, parse, problems_of, shelf
from autoft.profiles.gpu_catalogue import GpuProfile, find_gpu
from autoft.profiles.model_catalogue import ModelProfile, find_model
from autoft.profiles.preset_catalogue import Preset, find_preset, preset_profiles
from autoft.schema import Record, read_text

WIDE = 60
ACTIONS = ("list", "show", "add", "check")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of profile. record: what a file of it holds; find: the profile that a person names, None if unknown.

    columns, row: what a list shows of each; the columns after the first `narrow` only where there is room.
    """

    record: type[Any]
    find: Callable[[str], Any]
    columns: tuple[str, ...]
    row: Callable[[Any], Sequence[str]]
    narrow: int
    right: bool = False


def _gpu_row(gpu: GpuProfile) -> list[str]:
    return [
        gpu.name,
        units.size(gpu.memory_bytes),
        scaled(gpu.half_flops_per_s, 1e12),
        scaled(gpu.memory_bytes_per_s, 1e9),
        f"{scaled(gpu.tdp_w, 1)} W" if gpu.tdp_w else "",
        ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "AMD",
    ]


def _model_row(model: ModelProfile) -> list[str]:
    return [model.name, model.hub_id, model.licence + (", gated" if model.gated else "")]


def scaled(figure: Figure | None, unit: float) -> str:
    """The figure in a unit that people read, empty where there is none."""
    return f"{figure.value / unit:.4g}" if figure else ""


# A kind is a row here: its folder under profiles/ and under AUTOFT_HOME/profiles has the key's name.
KINDS = {
    "gpus": Kind(
        record=GpuProfile,
        find=find_gpu,
        # TFLOP/s are dense 16-bit ones
        columns=("GPU", "Memory", "TFLOP/s", "GB/s", "Power", "Capability"),
        row=_gpu_row,
        narrow=4,
        right=True,
    ),
    "models": Kind(
        record=ModelProfile, find=find_model, columns=("Model", "Hub id", "Licence"), row=_model_row, narrow=3
    ),
    "presets": Kind(
        record=Preset,
        find=find_preset,
        columns=("Preset", "For"),
        row=lambda preset: (preset.name, preset.summary),
        narrow=2,
    ),
}


@options.command(
    "List, show, add or check GPU, model and preset profiles.\n\n"
    f"KIND is {', '.join(KINDS)} (default: all). ACTION is list (default), show NAME, add FILE or check [FILE...]. "
    "Your own profiles in AUTOFT_HOME/profiles add to the built-in ones or override them.",
    examples=(
        "autoft profiles models",
        "autoft profiles gpus show rtx-4090",
        "autoft profiles add --from-probe",
    ),
)
@click.argument("kind", required=False)
@click.argument("action", required=False)
@click.argument("names", nargs=-1, metavar="[NAME | FILE...]")
@click.option("--from-probe", is_flag=True, help="With add: write a profile of this machine's GPU.")
@click.option("--force", is_flag=True, help="With add: replace an existing profile of yours.")
def command(
    kind: str | None, action: str | None, names: tuple[str, ...], from_probe: bool, force: bool, as_json: bool
) -> int:
    if kind in ACTIONS:
        kind, action, names = None, kind, (*([action] if action is not None else []), *names)
    _refuse_unknown(kind, action)
    action = action or "list"
    kinds = {kind: KINDS[kind]} if kind else KINDS
    if (from_probe or force) and action != "add":
        raise OptionError(f"{'--from-probe' if from_probe else '--force'} belongs to add", fix="autoft profiles -h")
    if action == "show":
        return _show(kinds, names, as_json=as_json)
    if action == "add":
        return _add(kind, names, from_probe=from_probe, force=force, as_json=as_json)
    if action == "check":
        return _check(kind, names, as_json=as_json)
    if names:
        raise OptionError(f"list takes no name: {names[0]}", fix=f"autoft profiles {kind or 'gpus'} show {names[0]}")
    return _list(kinds, as_json=as_json)


def _refuse_unknown(kind: str | None, action: str | None) -> None:
    if kind is not None and kind not in KINDS:
        known = (*KINDS, *ACTIONS)
        raise OptionError(f"kind {kind}: not known.{near(kind, known)}", fix=f"one of: {', '.join(KINDS)}")
    if action is not None and action not in ACTIONS:
        raise OptionError(f"action {action}: not known.{near(action, ACTIONS)}", fix=f"one of: {', '.join(ACTIONS)}")


# --- list ----------------------------------------------------------------------------------------------------------


def _list(kinds: dict[str, Kind], *, as_json: bool) -> int:
    profiles = {name: shelf(name, kind.record).profiles.values() for name, kind in kinds.items()}
    if as_json:
        options.print_json({name: [profile.to_dict() for profile in listed] for name, listed in profiles.items()})
        return 0
    console = render.console()
    for name, kind in kinds.items():
        console.print(_table(kind, profiles[name], wide=console.width >= WIDE))
    return 0


def _table(kind: Kind, profiles: Iterable[Any], *, wide: bool) -> Table:
    shown = len(kind.columns) if wide else kind.narrow
    table = Table(box=None, pad_edge=False, padding=(0, 1) if wide else (0, 1, 0, 0))
    for index, column in enumerate(kind.columns[:shown]):
        table.add_column(column, overflow="fold", justify="right" if kind.right and index else "left")
    for profile in profiles:
        table.add_row(*map(Text, kind.row(profile)[:shown]))
    return table


# --- show ----------------------------------------------------------------------------------------------------------


def _show(kinds: dict[str, Kind], names: tuple[str, ...], *, as_json: bool) -> int:
    if len(names) != 1:
        raise OptionError("show takes one name", fix="autoft profiles gpus show rtx-4090")
    name, profile = _found(kinds, names[0])
    own = shelf(name, kinds[name].record).own.get(profile.name)
    if as_json:
        options.print_json({"kind": name, "file": str(own) if own else None, "profile": profile.to_dict()})
        return 0
    console = render.console()
    console.print(Text(profile.name, style="bold"))
    file = [("file", str(own))] if own else []
    console.print(render.facts([*file, *_facts(profile)]))
    return 0


def _found(kinds: dict[str, Kind], wanted: str) -> tuple[str, Any]:
    """The kind and the profile that a person names. Raises: OptionError, of the only kind or of all."""
    for name, kind in kinds.items():
        try:
            profile = kind.find(wanted)
        except OptionError:
            if len(kinds) == 1:
                raise
            continue
        if profile is not None:
            return name, profile
    known = [name for folder, kind in kinds.items() for name in shelf(folder, kind.record).profiles]
    kind_name = next(iter(kinds)) if len(kinds) == 1 else ""
    raise OptionError(
        f"no profile {wanted!r}.{near(wanted, known)}", fix=" ".join(f"autoft profiles {kind_name} list".split())
    )


def _facts(profile: Record) -> list[tuple[str, str]]:
    """Every field that says something; a figure with its basis and its source below it."""
    rows: list[tuple[str, str]] = []
    for name, value in profile.to_dict().items():
        if name == "name" or value in (None, [], {}, ""):
            continue
        rows.append(_fact(name, value))
    return rows


def _fact(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        inner = {key: text for key, text in value.items() if key not in ("value", "basis", "reason", "source")}
        label, lines = _with_unit(name, value["value"]) if "value" in value else (name.replace("_", " "), "")
        texts = [lines, *(f"{key.replace('_', ' ')} {_plain(text)}" for key, text in inner.items())]
        texts += [value[key] for key in ("basis", "reason") if value.get(key)]
        texts += [f"source: {value['source']}"] if value.get("source") else []
        return label, "\n".join(filter(None, texts))
    return name.replace("_", " "), ".".join(map(str, value)) if name == "compute_capability" else _plain(value)


# Endings of fields: what they say in words, and the unit that people read.
UNITS = (
    ("_bytes_per_s", " bandwidth", 1e9, "GB/s"),
    ("_flops_per_s", "", 1e12, "TFLOP/s"),
    ("_ops_per_s", "", 1e12, "TOP/s"),
    ("_bytes", "", 2**30, "GiB"),
    ("_gib", "", 1, "GiB"),
    ("_w", "", 1, "W"),
)


def _with_unit(field: str, value: Any) -> tuple[str, str]:
    """A field's name without its unit, and its value with one that people read."""
    for ending, words, scale, unit in UNITS:
        if field.endswith(ending) and isinstance(value, int | float):
            return field.removesuffix(ending).replace("_", " ") + words, f"{value / scale:.5g} {unit}"
    return field.replace("_", " "), _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- add -----------------------------------------------------------------------------------------------------------


def _add(kind: str | None, names: tuple[str, ...], *, from_probe: bool, force: bool, as_json: bool) -> int:
    if from_probe:
        if kind not in (None, "gpus") or names:
            raise OptionError("--from-probe writes a GPU's file itself", fix="autoft profiles gpus add --from-probe")
        profile, text = _from_probe()
        kind = "gpus"
    else:
        if kind is None or len(names) != 1:
            raise OptionError("add takes a kind and one file", fix="autoft profiles gpus add FILE")
        text = read_text(Path(names[0]))
        profile = parse(text, KINDS[kind].record, where=names[0])
    target = own_folder(kind) / f"{profile.name}.toml"
    if target.exists() and not force:
        raise OptionError(f"{target} is there already", fix="--force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    if as_json:
        options.print_json({"kind": kind, "name": profile.name, "file": str(target)})
    else:
        click.echo(f"{profile.name}: written to {target}")
    return 0


def _from_probe() -> tuple[GpuProfile, str]:
    """A profile of this machine's GPU, of several the one with the most free memory. Raises: OptionError if none."""
    from autoft.profiles.detect import detect
    from autoft.profiles.probe_profile import profile_of

    hardware = detect()
    if not hardware.gpus:
        raise OptionError(f"no GPU to profile: {hardware.no_gpu_reason}", fix="autoft profiles gpus add FILE")
    profile = profile_of(max(hardware.gpus, key=lambda gpu: gpu.free_bytes), date=date.today().isoformat())
    return profile, profile.to_toml()


# --- check ---------------------------------------------------------------------------------------------------------


def _check(kind: str | None, files: tuple[str, ...], *, as_json: bool) -> int:
    """Exit code 2 where a file is wrong."""
    if files and kind is None:
        raise OptionError("to check a file takes its kind", fix=f"autoft profiles gpus check {files[0]}")
    checked, problems = 0, list[FileFormatError]()
    for name, known in KINDS.items():
        if kind not in (None, name):
            continue
        count, wrong = _problems_in(files, known.record) if files else problems_of(name, known.record)
        checked += count
        problems += wrong
        if known.record is Preset and not files:
            problems += _wrong_settings()
    if as_json:
        options.print_json(
            {"checked": checked, "problems": [{"what": problem.what, "fix": problem.fix} for problem in problems]}
        )
    else:
        for problem in problems:
            click.echo(f"{problem}")
        click.echo(f"{checked} {'file' if checked == 1 else 'files'} checked, {len(problems) or 'none'} wrong")
    return FileFormatError.exit_code if problems else 0


def _problems_in(files: tuple[str, ...], record: type[Any]) -> tuple[int, list[FileFormatError]]:
    problems = []
    for file in files:
        try:
            profile = parse(read_text(Path(file)), record, where=file)
            if isinstance(profile, Preset):
                _check_settings(profile, file)
        except FileFormatError as problem:
            problems.append(problem)
    return len(files), problems


def _wrong_settings() -> list[FileFormatError]:
    problems = []
    for preset in preset_profiles().values():
        try:
            _check_settings(preset, f"preset {preset.name}")
        except FileFormatError as problem:
            problems.append(problem)
    return problems


def _check_settings(preset: Preset, where: str) -> None:
    from autoft.planner.search.preset import check_preset

    check_preset(preset, where=where)
