"""`--to vllm`: the adapter's folder as vLLM takes it beside its base, and the command that serves both."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from autoft.errors import ModelError, OptionError
from autoft.home import write_text
from autoft.trainer.evaluation.open_adapter import ADAPTER_CONFIG
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.export.exporter import Answer, Bound, Exporter, Order, Question
from autoft.trainer.export.gguf_lora import refuse_beyond_lora
from autoft.trainer.export.merge import write_record
from autoft.trainer.export.reload import reload_folder
from autoft.trainer.export.safetensors import SMALL_FILES_BYTES
from autoft.trainer.export.source import Source, stored_vocabulary

# vllm/config/lora.py: the values of --max-lora-rank; an adapter of a rank between two needs the next
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_RANK = 16
MOST_NATS = 0.001  # the same weights in the same library


def _check(source: Source, order: Order) -> None:
    """Refuse what vLLM's own loader refuses. Raises: ModelError, OptionError."""
    adapter = refuse_beyond_lora(source, "vLLM")
    if source.recipe.rope_scaling is not None:
        raise ModelError(
            f"{source.folder}: vLLM would serve its base without the run's rope_scaling", fix="autoft merge"
        )
    if stored_vocabulary(source) is not None:
        raise ModelError(f"{source.folder}: vLLM takes no adapter with a vocabulary of its own", fix="autoft merge")
    if _rank(source) > MAX_RANKS[-1]:
        raise ModelError(
            f"{source.folder}: rank {_rank(source)}, and vLLM takes {MAX_RANKS[-1]} at most", fix="autoft merge"
        )
    if not adapter.get("base_model_name_or_path"):
        raise ModelError(f"{source.folder}: its adapter_config.json names no base", fix="--base MODEL")
    if "=" in _name(order):
        raise OptionError(f"--name {order.name}: vLLM takes no = in a name", fix="another name")


def _rank(source: Source) -> int:
    assert source.adapter is not None
    ranks: list[int] = [source.adapter["r"], *(source.adapter.get("rank_pattern") or {}).values()]
    return max(ranks)


def _name(order: Order) -> str:
    return order.name or order.out.name


def _write(source: Source, aside: Path) -> Path:
    assert source.adapter is not None
    shutil.copyfile(source.folder / ADAPTER, aside / ADAPTER)
    config = {**source.adapter, "base_model_name_or_path": source.base, "inference_mode": True}
    write_text(aside / ADAPTER_CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    source.tokenizer.save_pretrained(aside)
    write_record(source, aside)
    return aside


def _reopen(source: Source, written: Path, question: Question) -> Answer:
    """With PEFT, on the base: vLLM needs a GPU."""
    answer = reload_folder(source, written, question, base=source.weights)
    note = "loaded again with PEFT: vLLM itself was not run"
    return Answer(logprobs=answer.logprobs, max_logit=answer.max_logit, notes=(note,))


def serve_command(base: str, adapters: Mapping[str, Path], rank: int) -> str:
    """The command that serves adapters, folders by their names, beside their base. rank: the largest of them."""
    modules = [f"{name}={folder.absolute()}" for name, folder in adapters.items()]
    return shlex.join(["vllm", "serve", base, "--enable-lora", "--lora-modules", *modules, *rank_option(rank)])


def rank_option(rank: int) -> tuple[str, ...]:
    """What `vllm serve` is told for adapters of `rank`; nothing where its default will do."""
    if rank <= DEFAULT_MAX_RANK:
        return ()
    return "--max-lora-rank", str(next((most for most in MAX_RANKS if most >= rank), MAX_RANKS[-1]))


def _commands(source: Source, order: Order) -> tuple[str, ...]:
    base = source.base if "/" in source.base else str(source.weights)
    return (serve_command(base, {_name(order): order.out}, _rank(source)),)


EXPORTER = Exporter(
    name="vllm",
    summary="the adapter, for vLLM beside its base",
    is_folder=True,
    check=_check,
    disk_bytes=lambda source, order: (source.folder / ADAPTER).stat().st_size + SMALL_FILES_BYTES,
    write=lambda source, aside, order: _write(source, aside),
    reopen=lambda source, written, order, question: _reopen(source, written, question),
    bound=lambda order: Bound(of="distance", nats=MOST_NATS),
    commands=_commands,
)
