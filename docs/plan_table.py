"""Write docs/plans.md: what `autoft plan` answers for 12 models on 10 cards, and for one model by sequence length.

python docs/plan_table.py                      writes it
python docs/plan_table.py --check [MODEL...]   exits with 1 where the plans of these models are not what it says
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from autoft.cli.planning import rare_collections
from autoft.errors import OptionError
from autoft.planner.estimator.target import target_of_profile
from autoft.planner.plan.make import ask
from autoft.planner.request import Request
from autoft.planner.search.problem import Question
from autoft.profiles.detect import detect
from autoft.units import duration, size

PAGE = Path(__file__).parent / "plans.md"
MODELS = (
    "smollm2-135m-instruct", "qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat-v1.0", "qwen2.5-1.5b-instruct",
    "llama-3.2-3b-instruct", "qwen2.5-7b-instruct", "llama-3.1-8b-instruct", "gemma-2-9b-it", "phi-4",
    "qwen3-30b-a3b", "qwen2.5-32b-instruct", "llama-3.1-70b-instruct",
)  # fmt: skip
CARDS = (
    "rtx-4060", "rtx-3060", "t4", "rtx-4080", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-a6000", "a100-80gb", "h100-80gb",
)  # fmt: skip
TWO_CARDS = (("qwen2.5-32b-instruct", "rtx-4060"), ("llama-3.1-70b-instruct", "rtx-3090"))
LENGTHS, LENGTHS_OF = (512, 1024, 2048, 4096, 8192, 16384, 32768), ("llama-3.1-8b-instruct", "rtx-4090")
SEQ_LEN = 2048
HEAD = f"""# Plans

Made by `python docs/plan_table.py` (`make readme`): do not edit. Each line is what `autoft plan MODEL --gpu CARD
--seq-len {SEQ_LEN}` answers: prefer balanced, rank 16 on all linear layers, no data, all of the card's memory free.
No weights and no card were needed. Memory is what the run takes of the card at most, loading and evaluation included;
time is that of a million tokens, from the data sheet's figures, and as wide as they are vague. Streamed: how many
layers wait in the host's memory, and the RAM that the run needs with them; only where nothing fits without.
"""
COLUMNS = (
    "| {} | method | base | micro-batch | checkpointing | optimizer | memory | of usable | streamed "
    "| a million tokens |\n" + "|---" * 10 + "|\n"
)
TOKENS = 1e6


def page() -> str:
    """The whole text of the page."""
    return "\n".join([HEAD, *(section(model) for model in MODELS), two_cards(), lengths()])


def section(model: str) -> str:
    """The plans of one model on all cards."""
    question = ask(Request(model=model, gpu=CARDS[0], seq_len=SEQ_LEN), detect()).question
    lines = [line(card, question.on(target_of_profile(card))) for card in CARDS]
    return f"## {model}\n\n{COLUMNS.format('card')}{''.join(lines)}"


def two_cards() -> str:
    """Plans of large models on two cards of a kind, each with the whole model: memory of one, time of both."""
    lines = []
    for model, card in TWO_CARDS:
        question = ask(Request(model=model, gpu=f"{card} x2", seq_len=SEQ_LEN), detect()).question
        lines.append(line(f"{model} on 2 x {card}", question.spread(2)))
    return f"## On two cards\n\n{COLUMNS.format('model and cards')}{''.join(lines)}"


def lengths() -> str:
    """The plans of one model on one card by sequence length."""
    model, card = LENGTHS_OF
    found = (ask(Request(model=model, gpu=card, seq_len=n), detect()).question for n in LENGTHS)
    lines = [line(f"{question.seq_len:,}", question) for question in found]
    return f"## {model} on a {card} by length\n\n{COLUMNS.format('tokens a row')}{''.join(lines)}"


def line(name: str, question: Question) -> str:
    """One plan, or by how much the closest misses."""
    found = question.search()
    choice, room = question.choose(found), question.target.available_bytes
    if choice is None:
        tried = found.found.values()
        least = min((c.estimate.device_bytes for c in tried), default=None)
        why = f"needs {size(least)}" if least else "weights alone are too much"
        return f"| {name} | nothing fits | | | | | {why} | {size(room)} | | |\n"
    recipe, estimate = choice.recipe, choice.estimate
    saving = "none"
    if recipe.gradient_checkpointing:
        saving = "every layer" if recipe.checkpoint_every == 1 else f"every {recipe.checkpoint_every} layers"
        saving += ", on the host" if recipe.offload_checkpoints else ""
    base = f"{recipe.quant_type}, {recipe.base_dtype}" if recipe.quant_type else recipe.base_dtype
    base += ", 4-bit experts" if recipe.experts_4bit else ""
    streamed = f"{recipe.streamed_layers} layers, {size(estimate.ram_to_train)}" if recipe.streamed_layers else ""
    million = TOKENS / (recipe.micro_batch * recipe.seq_len * estimate.num_gpus)
    span = f"{duration(estimate.step_time_s.lower * million)} to {duration(estimate.step_time_s.upper * million)}"
    return (
        f"| {name} | {recipe.method} | {base} | {recipe.micro_batch} | {saving} | {recipe.optimizer} "
        f"| {size(estimate.device_bytes)} | {size(room)} | {streamed} | {span} |\n"
    )


def main(words: list[str]) -> int:
    if words[:1] != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if unknown := [model for model in words[1:] if model not in MODELS]:
        raise OptionError(f"no model {unknown[0]} in the page")
    written = PAGE.read_text(encoding="utf-8")
    wrong = [model for model in words[1:] or MODELS if section(model) not in written]
    for model in wrong:
        print(f"{PAGE}: the plans of {model} are others now; `make readme` rewrites them", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    with rare_collections():
        code = main(sys.argv[1:])
    sys.exit(code)
