"""The models that a server offers: the base and each adapter on it, by the names that a request chooses from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoft.errors import OptionError
from autoft.trainer.evaluation.chat import Talker, Voice, open_run
from autoft.trainer.sources.resolve import Say

BASE = "base"  # the base's name where a folder has its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One of them. talker: the model that all share. voice: whose tokenizer, template, stop tokens and adapter it has.

    is_base: the base alone answers, without the voice's adapter.
    """

    name: str
    talker: Talker
    voice: Voice
    is_base: bool = False

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter answers, and no base or model of which all weights were trained."""
        return self.talker.has_adapter and not self.is_base

    @contextmanager
    def active(self) -> Iterator[None]:
        """The shared model answers as this one while the block runs. Not for two threads at once."""
        model = self.talker.model
        if self.is_base:
            with model.disable_adapter():
                yield
            return
        if self.has_adapter:
            model.set_adapter(self.voice.own)
        yield


def open_models(
    folders: Sequence[Path], *, accept_changes: bool = False, say: Say = lambda _: None
) -> dict[str, Served]:
    """Open the runs, or adapters, in `folders` on one base: by the folders' names, in order, then the base.

    accept_changes: as `open_run` has it. say: called with a line before what takes long.
    Raises: OptionError when two folders have one name; ModelError when a folder holds no finished run, or an adapter
    for another base.
    """
    names = [folder.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{name}: two folders of this name", fix="rename one: requests choose by the name")
    talker = open_run(folders[0], accept_changes=accept_changes, say=say)
    for folder in folders[1:]:
        talker.take_adapter(folder, accept_changes=accept_changes, say=say)
        _tell_of_precision(talker, say)
    models = {
        name: Served(name=name, talker=talker, voice=voice) for name, voice in zip(names, talker.voices, strict=True)
    }
    if talker.has_adapter:
        base = talker.voices[0].base
        base = BASE if base in models else base
        models[base] = Served(name=base, talker=talker, voice=talker.voices[0], is_base=True)
    return models


def _tell_of_precision(talker: Talker, say: Say) -> None:
    """That the run opened last was trained on the base in another precision."""
    if talker.voice.result is None:
        return
    own, shared = talker.voice.recipe, talker.voices[0].recipe
    if (own.quant_type, own.base_dtype) != (shared.quant_type, shared.base_dtype):
        trained, held = own.quant_type or own.base_dtype, shared.quant_type or shared.base_dtype
        say(f"Note: {talker.voice.folder} was trained on a base in {trained}, and runs on one in {held}")
