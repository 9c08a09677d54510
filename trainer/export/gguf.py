"""`--to gguf`: the merged model as one file of llama.cpp, with tokenizer, chat template and stop tokens."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from autoft.errors import AutoftError, ModelError
from autoft.trainer.export.exporter import Answer, Bound, Exporter, Order, Question
from autoft.trainer.export.merge import merge
from autoft.trainer.export.quantize import K_QUANTS, PLAIN, quantize
from autoft.trainer.export.reload import check_ids, run_module, texts_to_split
from autoft.trainer.export.safetensors import merged_bytes
from autoft.trainer.export.source import Source, stored_vocabulary

# Families whose files were compared with transformers in llama.cpp, by model_type in config.json
FAMILIES = {
    "llama": "Llama 2, Llama 3, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3 and Phi-4",
    "smollm3": "SmolLM3",
    "granite": "Granite",
}
WHOLE = ("f16", "bf16", "f32")
# Bounds, in nats. f16: stated by the project, ten times what is measured. Others: what the mean log-prob may lose
NATS = {"f16": 0.01, "bf16": 0.01, "f32": 0.01, "q8_0": 0.02, "q6_k": 0.05, "q5": 0.15, "q4": 0.3, "q3": 0.6}
MOST_SPLIT = 3  # of the odd texts, such as SmolLM2's fractions: llama.cpp splits at fewer kinds of digits
CHATS = (
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi, how can I help?"},
        {"role": "user", "content": "Tell me a joke."},
    ],
)
MODULES = ("conversion", "xllamacpp", "libgguf")


def check_convertible(source: Source) -> None:
    """Refuse what llama.cpp's files cannot hold, or was never compared. Raises: ModelError."""
    config = source.config.get_text_config()
    kind = source.config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"{source.base}: GGUF of {kind} models is not checked, and not written",
            fix=f"--to safetensors; GGUF is written for {', '.join(FAMILIES.values())}",
        )
    if getattr(config, "num_nextn_predict_layers", None):
        raise ModelError(
            f"{source.base}: num_nextn_predict_layers is {config.num_nextn_predict_layers}, and llama.cpp would look "
            "for layers that training does not keep",
            fix="--to safetensors",
        )
    vocab_size = config.vocab_size if source.adapter is None else stored_vocabulary(source) or config.vocab_size
    if len(source.tokenizer) > vocab_size:
        raise ModelError(
            f"{source.folder}: its tokenizer has {len(source.tokenizer):,} tokens, the embedding {vocab_size:,}",
            fix="resize the embedding, or use the base's tokenizer",
        )


def convert(source: Source, aside: Path, order: Order, quant: str, name: str) -> Path:
    """Merge, convert and quantize in the folder `aside`, and return the file, called `name`.

    Raises: ModelError where llama.cpp's converter refuses the model.
    """
    work = aside / "work"
    folder = work / "merged"
    folder.mkdir(parents=True)
    merge(source, folder, order.say)
    first = quant if quant in WHOLE else "bf16" if str(source.config.dtype).endswith("bfloat16") else "f16"
    converted = aside / name if quant in WHOLE else work / "whole.gguf"
    spec = {
        "folder": str(folder),
        "out": str(converted),
        "type": first,
        "name": order.name or order.out.stem,
        "record": json.dumps(source.lineage()),
        "stops": list(source.stops),
    }
    order.say(f"converting to GGUF ({first})")
    try:
        run_module("autoft.trainer.export.convert", spec)
    except AutoftError as error:
        raise ModelError(
            f"{source.base}: llama.cpp's converter failed: {error.what}", fix="--to safetensors"
        ) from error
    shutil.rmtree(folder)
    if quant not in WHOLE:
        order.say(f"quantizing to {quant}")
        quantize(converted, aside / name, quant)
    shutil.rmtree(work)
    return aside / name


def open_gguf(source: Source, model: Path, question: Question, *, lora: Path | None = None) -> Answer:
    """Load a file in llama.cpp, and compare token ids, stop tokens and rendered prompts with the run's tokenizer.

    Raises: AutoftError where it does not load, or one of them differs.
    """
    from gguf import GGUFReader

    template = source.tokenizer.chat_template
    chats = chats_of(source) if template else []
    texts = texts_to_split(question)
    spec = {
        "model": str(model),
        "lora": str(lora) if lora is not None else None,
        "rows": question.texts.rows,
        "scored": question.texts.scored,
        "texts": texts,
        "chats": chats,
    }
    loaded = run_module("autoft.trainer.export.llama_cpp", spec)
    split_note = check_ids(source, model, texts, loaded["ids"], most=MOST_SPLIT)
    notes = [split_note] if split_note else []
    if not template:
        notes.append("no chat template: llama.cpp takes a default one")
    for chat, prompt in zip(chats, loaded["prompts"], strict=True):
        ours = source.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if prompt.removeprefix(source.tokenizer.bos_token or "") != ours.removeprefix(source.tokenizer.bos_token or ""):
            raise AutoftError(
                f"{model.name}: llama.cpp renders the chat template to {prompt[-60:]!r}, Jinja to {ours[-60:]!r}",
                fix="simplify the chat template, or report it",
            )
    if lora is None:
        fields = GGUFReader(model).fields
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        ends = {int(fields[key].contents()) for key in keys if key in fields}
        if unknown := sorted(set(source.stops) - ends):
            names = ", ".join(source.tokenizer.convert_ids_to_tokens(unknown))
            notes.append(f"the file holds no more than two stop tokens: give {names} as a stop string")
    return Answer(logprobs=tuple(loaded["logprobs"]), notes=tuple(notes))


def bound_of(quant: str) -> Bound:
    """What a file of that type may differ by."""
    if quant in WHOLE:
        return Bound(of="distance", nats=NATS[quant])
    return Bound(of="loss", nats=NATS.get(quant) or NATS[quant[:2]])


def gguf_bytes(source: Source, order: Order) -> int:
    """Most that is on the disk at a time: the merged folder and the file beside it, or the file and its quantized one.

    A tied embedding is stored once; f32 takes twice as much.
    """
    merged = merged_bytes(source)
    return merged + merged * (2 if order.quant == "f32" else 1)


def chats_of(source: Source) -> list[list[dict[str, Any]]]:
    """The conversations that the template takes: some have no system role."""
    taken = []
    for chat in CHATS:
        try:
            source.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - templates raise what they like
            continue
        taken.append(chat)
    return taken


def _write(source: Source, aside: Path, order: Order) -> Path:
    assert order.quant is not None
    return convert(source, aside, order, order.quant, order.out.name)


def _commands(order: Order) -> tuple[str, ...]:
    where = shlex.quote(str(order.out))
    return (f"llama-cli -m {where}", f"llama-server -m {where}")


EXPORTER = Exporter(
    name="gguf",
    summary="one file for llama.cpp and what is made of it",
    is_folder=False,
    check=lambda source, order: check_convertible(source),
    disk_bytes=gguf_bytes,
    write=_write,
    reopen=lambda source, written, order, question: open_gguf(source, written, question),
    bound=lambda order: bound_of(str(order.quant)),
    commands=lambda source, order: _commands(order),
    quants=(*WHOLE, *PLAIN, *K_QUANTS),
    modules=MODULES,
)
