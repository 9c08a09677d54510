"""A finished run, opened to talk to: base and adapter, or the whole model, in the precision it was trained in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError, ModelError
from autoft.trainer.data.shape import Message
from autoft.trainer.data.tokens import model_stop_ids, prompt_ids, stop_ids
from autoft.trainer.evaluation.open_run import load_run_tokenizer, load_trained, open_result, restore_dtype
from autoft.trainer.result import RunResult
from autoft.trainer.sources.resolve import Say

FIRST = "default"  # PEFT's name for the first adapter of a model


@dataclass(slots=True)
class Talker:
    """A model ready to answer, with the adapter of the run that `folder` holds.

    system_prompt: the one it was trained with, if its data had one. names: of the adapters, as PEFT has them.
    """

    folder: Path
    result: RunResult
    model: Any
    tokenizer: Any
    stop: list[int]
    names: dict[Path, str]

    @property
    def system_prompt(self) -> str | None:
        return self.result.system_prompt

    @property
    def has_adapter(self) -> bool:
        return self.result.job.recipe.method != "full"

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

        ids_BS = torch.tensor([prompt_ids(messages, self.tokenizer)], device=self.model.device)
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
            eos_token_id=self.stop,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode(), self._without_adapter(untrained):
            out_BS = self.model.generate(
                input_ids=ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                generation_config=settings,
                streamer=_streamer(self.tokenizer, on_text),
            )
        return str(self.tokenizer.decode(out_BS[0, ids_BS.size(1) :], skip_special_tokens=True)).strip()

    def take_adapter(self, folder: Path) -> None:
        """Answer with the adapter of another run on the same base from now on, with its tokenizer and stop tokens.

        Raises: ModelError when `folder` holds no run with an adapter for this base.
        """
        result = open_result(folder)
        recipe, own = result.job.recipe, self.result.job.recipe
        if not self.has_adapter or recipe.method == "full":
            raise ModelError(f"{folder}: no adapter to switch to", fix="autoft chat with that folder")
        if (result.base_fingerprint, recipe.rope_scaling) != (self.result.base_fingerprint, own.rope_scaling):
            raise ModelError(f"{folder}: trained on another base", fix="autoft chat with that folder")
        where = folder.resolve()
        if where not in self.names:
            name = f"adapter_{len(self.names)}"
            self.model.load_adapter(folder, adapter_name=name)
            restore_dtype(self.model, recipe)
            self.names[where] = name
        self.model.set_adapter(self.names[where])
        self.folder, self.result, self.tokenizer = folder, result, load_run_tokenizer(folder)
        self.stop = stop_ids(self.tokenizer, model_stop_ids(self.model))

    def _without_adapter(self, untrained: bool) -> AbstractContextManager[Any]:
        if not untrained:
            return nullcontext()
        if not self.has_adapter:
            raise ModelError(f"{self.folder}: all weights were trained: it has no base", fix="leave out the base")
        disabled: AbstractContextManager[Any] = self.model.disable_adapter()
        return disabled


def open_run(folder: Path, *, accept_changes: bool = False, say: Say = lambda _: None) -> Talker:
    """The model that a run made. accept_changes: although its files, or its base, are not what they were.

    say: told what takes long.
    Raises: ModelError when `folder` holds no finished run, its files or its base have changed, or its base is gone.
    """
    result = open_result(folder, accept_changes=accept_changes, say=say)
    model = load_trained(folder, result)
    tokenizer = load_run_tokenizer(folder)
    stop = stop_ids(tokenizer, model_stop_ids(model))
    return Talker(folder, result, model, tokenizer, stop, {folder.resolve(): FIRST})


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
