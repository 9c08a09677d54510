"""Which models are known by name?"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from autoft.profiles.catalogue import load
from autoft.schema import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile(Record):
    """One model of the catalogue. config: its config.json; gated: the hub asks for an accepted licence first."""

    name: str
    hub_id: str
    licence: str
    gated: bool
    source: str
    config: dict[str, Any]


@functools.cache
def model_profiles() -> dict[str, ModelProfile]:
    """All models by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return load("models", ModelProfile)


def find_model(name: str) -> ModelProfile | None:
    """The model with that catalogue name or hub id, None if there is none: it may still be a folder or on the hub."""
    wanted = name.casefold()
    return next((m for m in model_profiles().values() if wanted in (m.name.casefold(), m.hub_id.casefold())), None)
