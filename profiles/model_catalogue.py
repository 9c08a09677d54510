"""Which models are known by name?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt

from autoft.profiles.catalogue import load
from autoft.schema import Record

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile(Record):
    """One model of the catalogue. What no document tells is left out.

    hub_id: where the weights are. revision: the hub's commit that the figures describe.
    licence: the hub's short name for it. gated: the hub asks for an accepted licence first.
    source: where the figures of `config` come from.
    parameters: how many, each stored tensor once and tied weights once; parameters_source: who counted them.
    chat_template: the form of a turn ("chatml", "llama-3", ...; "none" for a base model).
    stop_tokens: texts of the tokens that end a turn or a document, the one that ends a turn first.
    base_dtype: the 16-bit format to keep the base in on cards that have both.
    notes: kinds of attention, what not to quantize, where float16 overflows; a sentence each.
    config: its config.json, as far as it shapes the model. config_null: its keys that are null, which TOML cannot say.
    """

    name: str
    hub_id: str
    licence: str
    gated: bool
    source: str
    config: dict[str, Any]
    revision: str | None = None
    parameters: Annotated[int, Gt(0)] | None = None
    parameters_source: str = ""
    chat_template: str | None = None
    stop_tokens: tuple[str, ...] = ()
    base_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    notes: tuple[str, ...] = ()
    config_null: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "model_type" not in self.config:
            raise ValueError("config has no model_type")
        if self.revision is not None and not COMMIT.fullmatch(self.revision):
            raise ValueError("revision must be a commit, 40 hexadecimal digits")
        if self.parameters is not None and not self.parameters_source.strip():
            raise ValueError("parameters need a parameters_source")
        if set(self.config_null) & set(self.config):
            raise ValueError("a key is in config and in config_null")

    @property
    def full_config(self) -> dict[str, Any]:
        """config with the keys that are null."""
        return {**self.config, **dict.fromkeys(self.config_null)}


def model_profiles() -> dict[str, ModelProfile]:
    """All models by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return load("models", ModelProfile)


def find_model(name: str) -> ModelProfile | None:
    """The model with that catalogue name or hub id, None if there is none: it may still be a folder or on the hub."""
    wanted = name.casefold()
    return next((m for m in model_profiles().values() if wanted in (m.name.casefold(), m.hub_id.casefold())), None)
