"""Do the installed libraries go together? Read from their metadata; only the companions are imported, in a worker."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from autoft.profiles.host import installed_version
from autoft.trainer.doctor.finding import Finding, one_line

# autoft needs none of them, but transformers, peft or trl import them where they are installed, and break with them
COMPANIONS = ("torchvision", "torchaudio", "flash_attn", "xformers", "torchao", "deepspeed", "liger_kernel", "apex")


def installed(names: Mapping[str, str]) -> dict[str, str | None]:
    """Versions by their metadata; None where a library is not installed."""
    return {name: installed_version(name) for name in names}


def tested_set(found: Mapping[str, str | None], tested: Mapping[str, str]) -> Finding:
    """The installed versions against those that were tested together. "2.13.0+cu130" counts as 2.13.0."""
    name, fix = "tested versions", "pip install " + " ".join(f"{library}=={v}" for library, v in tested.items())
    missing = [library for library in tested if found.get(library) is None]
    if missing:
        needed = "pip install " + " ".join(f"{library}=={tested[library]}" for library in missing)
        return Finding(name=name, status="failed", found=f"not installed: {', '.join(missing)}", fix=needed)
    others = [
        f"{library} {version} ({tested[library]} was tested)"
        for library, version in found.items()
        if version is not None and not _same(version, tested[library])
    ]
    if others:
        differing = [library for library in tested if not _same(str(found[library]), tested[library])]
        fix = "if something breaks: pip install " + " ".join(f"{each}=={tested[each]}" for each in differing)
        return Finding(name=name, status="warning", found=", ".join(others), fix=fix)
    return Finding(name=name, status="ok", found=f"all {len(tested)} as tested")


def _same(version: str, tested: str) -> bool:
    try:
        return Version(Version(version).public) == Version(tested)
    except InvalidVersion:
        return version == tested


def requirements(*roots: str) -> Finding:
    """Every library that `roots` need, and that those need in turn, is installed in a version that is asked for."""
    clashes = unmet(roots)
    name = "requirements"
    if not clashes:
        return Finding(name=name, status="ok", found="every library has the versions that it asks for")
    named = [clash.wanted for clash in clashes]
    return Finding(
        name=name,
        status="failed",
        found="; ".join(f"{clash.by} wants {clash.wanted}, found {clash.found}" for clash in clashes),
        fix="pip install " + " ".join(f"'{wanted}'" for wanted in dict.fromkeys(named)),
    )


@dataclass(frozen=True, order=True, slots=True)
class Clash:
    """A requirement that is not met. by: whose. found: the version that is installed, or "none"."""

    by: str
    wanted: str
    found: str


def unmet(roots: tuple[str, ...]) -> list[Clash]:
    """The unmet requirements of `roots` and of all that they need. A root that is not installed needs nothing."""
    clashes, seen, waiting = [], set(), [(root, frozenset[str]()) for root in roots]
    while waiting:
        name, extras = waiting.pop()
        if (name.lower(), extras) in seen:
            continue
        seen.add((name.lower(), extras))
        for needed in _needs(name, extras):
            version = installed_version(needed.name)
            if version is None:
                clashes.append(Clash(name, _text(needed), "none"))
                continue
            if not needed.specifier.contains(version, prereleases=True):
                clashes.append(Clash(name, _text(needed), version))
            waiting.append((needed.name, frozenset(needed.extras)))
    return sorted(clashes)


def _needs(name: str, extras: frozenset[str]) -> list[Requirement]:
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    requirements = []
    for line in lines:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        marker = needed.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            requirements.append(needed)
    return requirements


def _text(needed: Requirement) -> str:
    return f"{needed.name}{needed.specifier}"


def import_companions() -> dict[str, str | None]:
    """Import each companion that is installed: its error, or None. One that crashes is the last named on stderr."""

    errors: dict[str, str | None] = {}
    for name in COMPANIONS:
        if importlib.util.find_spec(name) is None:
            continue
        print(f"while importing {name}", file=sys.stderr, flush=True)
        try:
            importlib.import_module(name)
            errors[name] = None
        except Exception as error:  # noqa: BLE001 - what is asked is whether it works
            errors[name] = one_line(error)
    return errors


def companions(told: Mapping[str, str | None]) -> Finding:
    """Libraries that others import where they are installed can be imported. told: the error of each, or None."""
    name = "companions"
    broken = {library: error for library, error in told.items() if error is not None}
    if broken:
        return Finding(
            name=name,
            status="failed",
            found="; ".join(f"{library}: {error}" for library, error in broken.items()),
            fix=f"pip uninstall {' '.join(broken)} (autoft needs none), or install builds for this torch",
        )
    if not told:
        return Finding(name=name, status="skipped", found=f"none installed of {', '.join(COMPANIONS)}")
    return Finding(name=name, status="ok", found=f"can be imported: {', '.join(told)}")
