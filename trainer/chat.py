"""A finished run, opened to talk to: base and adapter, or the whole model, in the precision it was trained in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.trainer.data.shape import Message
from autoft.trainer.data.tokens import model_stop_ids, prompt_ids, stop_ids
from autoft.trainer.finished import load_run_tokenizer, load_trained, open_result
from autoft.trainer.resolve import Say


@dataclass(frozen=True, slots=True)
class Talker:
    """A model ready to answer. system_prompt: the one it was trained with, if its data had one."""

    model: Any
    tokenizer: Any
    stop: list[int]
    system_prompt: str | None

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, on_text: Callable[[str], None]) -> str:
        """The greedy answer to a conversation; on_text is given each piece as it comes."""
        import torch
        from transformers import GenerationConfig

        ids_BS = torch.tensor([prompt_ids(messages, self.tokenizer)], device=self.model.device)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            out_BS = self.model.generate(
                input_ids=ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                generation_config=settings,
                streamer=_streamer(self.tokenizer, on_text),
            )
        return str(self.tokenizer.decode(out_BS[0, ids_BS.size(1) :], skip_special_tokens=True)).strip()


def open_run(folder: Path, *, accept_changes: bool = False, say: Say = lambda _: None) -> Talker:
    """The model that a run made. accept_changes: although its files, or its base, are not what they were.

    say: told what takes long.
    Raises: ModelError when `folder` holds no finished run, its files or its base have changed, or its base is gone.
    """
    result = open_result(folder, accept_changes=accept_changes, say=say)
    model = load_trained(folder, result)
    tokenizer = load_run_tokenizer(folder)
    return Talker(model, tokenizer, stop_ids(tokenizer, model_stop_ids(model)), result.system_prompt)


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
