"""What was trained, opened to talk to: adapters on one base, or a whole model, in the precision of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError, ModelError
from autoft.trainer.data.shape import Message
from autoft.trainer.data.tokens import model_stop_ids, prompt_ids, stop_ids
from autoft.trainer.evaluation.open_adapter import ADAPTER_CONFIG, model_of, open_adapter
from autoft.trainer.evaluation.open_run import (
    FIRST,
    load_named,
    load_run_tokenizer,
    load_trained,
    open_result,
    put_adapter,
    restore_dtype,
)
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import RunResult
from autoft.trainer.runtime.peak_memory import free_memory
from autoft.trainer.sources.resolve import Say, load_tokenizer, resolve
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.places import public_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A run, or an adapter of another tool, that the loaded model can answer as.

    name: to choose it by. result: of its run, None where there is none. own: PEFT's name for its adapter. stop: token
    ids that end an answer. base: the name of its base.
    """

    name: str
    folder: Path
    result: RunResult | None
    recipe: Recipe
    tokenizer: Any
    stop: list[int]
    base: str
    own: str = FIRST

    @property
    def system_prompt(self) -> str | None:
        """The one it was trained with, if its data had one."""
        return None if self.result is None else self.result.system_prompt


@dataclass(slots=True)
class Talker:
    """A model ready to answer as `voice`, one of `voices`."""

    model: Any
    voice: Voice
    voices: list[Voice]

    @property
    def folder(self) -> Path:
        return self.voice.folder

    @property
    def system_prompt(self) -> str | None:
        return self.voice.system_prompt

    @property
    def has_adapter(self) -> bool:
        return self.voice.recipe.method != "full"

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for, None where its configuration names none."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    def answer(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int,
        on_text: Callable[[str], None],
        temperature: float = 0.0,
        untrained: bool = False,
    ) -> str:
        """The answer to a conversation; on_text is given each piece as it comes.

        temperature: 0 takes the likeliest token. untrained: of the base alone.
        Raises: DataError where the conversation is longer than the model's context.
        """
        import torch
        from transformers import GenerationConfig

        tokenizer = self.voice.tokenizer
        ids_BS = torch.tensor([prompt_ids(messages, tokenizer)], device=self.model.device)
        room = max_new_tokens if self.context is None else self.context - ids_BS.size(1)
        if room <= 0:
            raise DataError(
                f"the conversation has {ids_BS.size(1):,} tokens, and the model takes {self.context:,}",
                fix="/reset, or a shorter message",
            )
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        settings = GenerationConfig(
            **sampling,
            max_new_tokens=min(max_new_tokens, room),
            eos_token_id=self.voice.stop,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.inference_mode(), self._without_adapter(untrained):
            out_BS = self.model.generate(
                input_ids=ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                generation_config=settings,
                streamer=_streamer(tokenizer, on_text),
            )
        return str(tokenizer.decode(out_BS[0, ids_BS.size(1) :], skip_special_tokens=True)).strip()

    def take_adapter(self, folder: Path, *, accept_changes: bool = False, say: Say = lambda _: None) -> None:
        """Answer as another run on the same base, or another adapter for it, with its tokenizer and stop tokens.

        accept_changes, say: as open_run has them.
        Raises: ModelError when `folder` holds no adapter for this base; the voice is then what it was.
        """
        where = folder.resolve()
        known = next((voice for voice in self.voices if voice.folder.resolve() == where), None)
        self.use(known or self._added(folder, accept_changes, say))

    def use(self, voice: Voice) -> None:
        """Answer as one of the voices."""
        if self.has_adapter:
            self.model.set_adapter(voice.own)
        self.voice = voice

    def _added(self, folder: Path, accept_changes: bool, say: Say) -> Voice:
        """The adapter in `folder`, put on the base beside the others."""
        first, own = self.voices[0], f"adapter_{len(self.voices)}"
        if _is_run(folder):
            result = open_result(folder, accept_changes=accept_changes, say=say)
            recipe, base = result.job.recipe, result.base
        else:
            adapter = open_adapter(folder)
            result, recipe, base = None, adapter.recipe, public_name(adapter.base or "unnamed")
        if "full" in (recipe.method, first.recipe.method):
            raise ModelError(f"{folder}: no adapter to switch to", fix="autoft chat with that folder")
        if recipe.adapter != first.recipe.adapter:
            raise ModelError(
                f"{folder}: {recipe.adapter} and {first.recipe.adapter} cannot be on one base",
                fix="autoft chat with that folder",
            )
        if _bases_differ(result, first.result) or recipe.rope_scaling != first.recipe.rope_scaling:
            raise ModelError(f"{folder}: trained on another base", fix="autoft chat with that folder")
        if recipe.new_tokens != first.recipe.new_tokens:
            raise ModelError(
                f"{folder}: trained with other new_tokens than {first.folder}", fix="autoft chat with that folder"
            )
        try:
            put_adapter(self.model, folder, own)
        finally:
            self.use(self.voice)
        if base != first.base:
            say(f"Note: {folder} names the base {base}, and {first.base} is loaded; the shapes of its weights fit")
        restore_dtype(self.model, recipe, own)
        free_memory()  # what loading used in passing, so that answers find the GPU as the estimate has it
        tokenizer = _tokenizer(folder, first.tokenizer)
        voice = Voice(
            name=_free_name(folder, self.voices),
            folder=folder,
            result=result,
            recipe=recipe,
            tokenizer=tokenizer,
            stop=stop_ids(tokenizer, model_stop_ids(self.model)),
            base=base,
            own=own,
        )
        self.voices.append(voice)
        return voice

    def _without_adapter(self, untrained: bool) -> AbstractContextManager[Any]:
        if not untrained:
            return nullcontext()
        if not self.has_adapter:
            raise ModelError(f"{self.folder}: all weights were trained: it has no base", fix="leave out the base")
        disabled: AbstractContextManager[Any] = self.model.disable_adapter()
        return disabled


def open_run(folder: Path, *, accept_changes: bool = False, say: Say = lambda _: None) -> Talker:
    """The model that a run made, or an adapter of another tool on its base.

    accept_changes: although its files, or its base, are not what they were. say: told what takes long.
    Raises: ModelError when `folder` holds neither, its files or its base have changed, or its base is gone.
    """
    result: RunResult | None = None
    if _is_run(folder):
        result = open_result(folder, accept_changes=accept_changes, say=say)
        recipe, base = result.job.recipe, result.base
        model, tokenizer = load_trained(folder, result), load_run_tokenizer(folder)
    else:
        adapter = open_adapter(folder)
        where = model_of(adapter)
        recipe, base = Recipe(**adapter.settings), public_name(adapter.base or where)
        model = put_adapter(load_named(where, recipe), folder)
        tokenizer = _tokenizer(folder, load_tokenizer(resolve(where)))
    free_memory()
    voice = Voice(
        name=_free_name(folder, []),
        folder=folder,
        result=result,
        recipe=recipe,
        tokenizer=tokenizer,
        stop=stop_ids(tokenizer, model_stop_ids(model)),
        base=base,
    )
    return Talker(model, voice, [voice])


def _is_run(folder: Path) -> bool:
    """Whether `folder` is a run's, or is to be told as one that is missing."""
    return (folder / RESULT).is_file() or not (folder / ADAPTER_CONFIG).is_file()


def _bases_differ(one: RunResult | None, other: RunResult | None) -> bool:
    """Whether two runs were trained on different bases; of other tools' adapters the shapes say it."""
    if one is None or other is None:
        return False
    return one.base_fingerprint != other.base_fingerprint


def _tokenizer(folder: Path, other: Any) -> Any:
    """The one in the folder of an adapter, else the other. Raises: ModelError where there is neither."""
    if (folder / "tokenizer_config.json").is_file():
        return load_run_tokenizer(folder)
    if other is None:
        raise ModelError(f"{folder}: no tokenizer there, nor beside its base", fix="add tokenizer.json to the folder")
    return other


def _free_name(folder: Path, voices: Sequence[Voice]) -> str:
    """The name of the folder, its path where another has that name."""
    name = public_name(str(folder.absolute()))
    return str(folder) if name in {voice.name for voice in voices} else name


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
