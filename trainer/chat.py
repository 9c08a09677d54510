"""A finished run, opened to talk to: base and adapter, or the whole model, in the precision it was trained in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoft.errors import ModelError
from autoft.schema import read_text
from autoft.trainer import environment
from autoft.trainer.data.shape import Message
from autoft.trainer.data.tokens import model_stop_ids, prompt_ids, stop_ids
from autoft.trainer.output import RESULT
from autoft.trainer.resolve import fetch, load_config, resolve
from autoft.trainer.result import RunResult


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


def open_run(folder: Path) -> Talker:
    """The model that a run made.

    Raises: ModelError when `folder` holds no finished run, or its base is gone.
    """
    if not (folder / RESULT).is_file():
        raise ModelError(f"{folder}: holds no finished run", fix="give the folder that `autoft run` wrote")
    result = RunResult.from_dict(_json(folder / RESULT), where=str(folder / RESULT))
    whole = result.job.recipe.method == "full"
    written = "config.json" if whole else "adapter_config.json"
    if not (folder / written).is_file():
        raise ModelError(f"{folder}: its {written} is gone", fix="run again, or restore the file")
    environment.quiet()
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from autoft.trainer.build import build_base

    base_name = result.base if Path(result.base).is_dir() else result.job.model
    ref = resolve(str(folder.resolve()) if whole else base_name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = fetch(ref)
    recipe = result.job.recipe
    if whole:  # its own config.json has the scaling
        recipe = replace(recipe, rope_scaling=None)
    model: Any = build_base(recipe, load_config(ref, weights), weights, device).eval()
    model.config.use_cache = True
    if not whole:
        model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Talker(model, tokenizer, stop_ids(tokenizer, model_stop_ids(model)), result.system_prompt)


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}:{error.lineno}: not JSON: {error.msg}", fix="run again, or restore the file"
        ) from None
