"""The models that a server offers: the base and each adapter on it, by the names that a request chooses from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from autoft.errors import OptionError
from autoft.trainer.evaluation.chat import Talker, open_run
from autoft.trainer.sources.resolve import Say

BASE = "base"  # the base's name where a folder has its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One of them. talker: with the tokenizer, template and stop tokens of its run; all share the weights of the base.

    adapter: PEFT's name for it; None is the base alone, or a model of which all weights were trained.
    """

    name: str
    talker: Talker
    adapter: str | None

    @contextmanager
    def active(self) -> Iterator[None]:
        """The shared model answers as this one while the block runs. Not for two threads at once."""
        model = self.talker.model
        if self.adapter is not None:
            model.set_adapter(self.adapter)
            yield
        elif self.talker.has_adapter:
            with model.disable_adapter():
                yield
        else:
            yield


def open_models(
    folders: Sequence[Path], *, accept_changes: bool = False, say: Say = lambda _: None
) -> dict[str, Served]:
    """Open the runs in `folders` on one base: the adapters by their folders' names, in order, then the base.

    accept_changes: as `open_run` has it, for the first. say: called with a line before what takes long.
    Raises: OptionError when two folders have one name; ModelError when a folder holds no finished run, or an adapter
    for another base.
    """
    names = [folder.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{name}: two folders of this name", fix="rename one: requests choose by the name")
    first = open_run(folders[0], accept_changes=accept_changes, say=say)
    talkers = [replace(first)]
    for folder in folders[1:]:
        first.take_adapter(folder)
        talkers.append(replace(first))
        own, shared = first.result.job.recipe, talkers[0].result.job.recipe
        if (own.quant_type, own.base_dtype) != (shared.quant_type, shared.base_dtype):
            held = shared.quant_type or shared.base_dtype
            say(
                f"Note: {folder} was trained on a base in {own.quant_type or own.base_dtype}, and runs on one in {held}"
            )
    models = {
        name: Served(
            name=name, talker=talker, adapter=talker.names.get(folder.resolve()) if first.has_adapter else None
        )
        for name, talker, folder in zip(names, talkers, folders, strict=True)
    }
    if first.has_adapter:
        base = talkers[0].result.base
        base = BASE if base in models else base
        models[base] = Served(name=base, talker=talkers[0], adapter=None)
    return models
