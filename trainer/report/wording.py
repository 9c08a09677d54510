"""What a run was and what came of it, in words and figures: for the model card and for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from autoft.trainer.adapters import kind_of
from autoft.trainer.model.rope import snippet as scaling_snippet
from autoft.trainer.objectives import objective_of
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation, RunResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A figure of an Evaluation. share: in parts of 1, shown in percent. falls: the lower the better."""

    name: str
    label: str
    share: bool = True
    falls: bool = False

    def text(self, value: float | None) -> str:
        """The figure for people; a dash where there is none."""
        if value is None:
            return "-"
        return f"{value:.1%}" if self.share else f"{value:.3f}" if value < 1000 else f"{value:,.0f}"

    def interval(self, lower: float, upper: float) -> str:
        """A change that lies between two."""
        if self.share:
            return f"{100 * lower:+.1f} to {100 * upper:+.1f} points"
        return f"{lower:+,.3f} to {upper:+,.3f}"

    def change(self, before: float | None, after: float | None) -> str:
        """From before to after, with its sign; empty where one of them is not known."""
        if before is None or after is None:
            return ""
        return f"{100 * (after - before):+.1f} points" if self.share else f"{after - before:+,.3f}"


SCORES = (
    Score(name="loss", label="loss, nats a token", share=False, falls=True),
    Score(name="perplexity", label="perplexity", share=False, falls=True),
    Score(name="exact_match", label="exact match"),
    Score(name="json_valid", label="valid JSON"),
    Score(name="fields_right", label="fields right"),
    Score(name="number_match", label="last number right"),
    Score(name="f1", label="F1 of words"),
    Score(name="rouge_l", label="ROUGE-L"),
)


def scores(before: Evaluation, after: Evaluation) -> Iterator[tuple[Score, float | None, float | None]]:
    """Each figure that one of them has, before and after."""
    for score in SCORES:
        was, is_ = getattr(before, score.name), getattr(after, score.name)
        if was is not None or is_ is not None:
            yield score, was, is_


def judged_rows(evaluation: Evaluation) -> str:
    """How many rows an evaluation is of."""
    rows = f"{evaluation.rows:,} held-out {'row' if evaluation.rows == 1 else 'rows'}"
    if not evaluation.generated_rows:
        return f"{rows}; no answers were generated"
    if evaluation.generated_rows == evaluation.rows:
        return f"{rows}; answers are greedy"
    return f"{rows}; greedy answers to {evaluation.generated_rows:,} of them"


def what_it_is(recipe: Recipe) -> str:
    """What the output folder holds, in front of the base model's name."""
    if recipe.method == "full":
        return "The weights of"
    return "A LoRA adapter for" if recipe.adapter == "lora" else f"An adapter ({kind_of(recipe).title(recipe)}) for"


def how_trained(recipe: Recipe) -> str:
    """Method, precision, adapter and objective."""
    minimised = f", {label}" if (label := objective_of(recipe).label) else ""
    if recipe.method == "full":
        return f"All weights in {recipe.weights_dtype}, computed in {recipe.base_dtype}{minimised}"
    precision: str = recipe.base_dtype
    if recipe.quant_type:
        bits = "8-bit" if recipe.quant_type == "int8" else "4-bit"
        precision = f"{recipe.quant_type} {bits}, computed in {recipe.base_dtype}"
    kind = kind_of(recipe)
    adapter = kind.title(recipe)
    if "rank" in kind.settings:
        adapter += f" of rank {recipe.rank}, alpha {recipe.alpha:g}"
    saved = kind.saved(recipe)
    if saved != recipe:
        adapter += f" (saved as plain LoRA of rank {saved.rank}, alpha {saved.alpha:g})"
    names = recipe.target_modules if isinstance(recipe.target_modules, str) else ", ".join(recipe.target_modules)
    targets = f"targets {names}" if kind.on_layers else f"{kind.size(recipe)} before every row"
    if recipe.new_tokens:
        adapter += f", {len(recipe.new_tokens)} new tokens"
    return f"{recipe.method} on a base in {precision}, {adapter}, {targets}" + (
        (f", RoPE scaled ({recipe.rope_scaling})" if recipe.rope_scaling else "") + minimised
    )


def continued(result: RunResult) -> str:
    """The adapter that the run continued, a sentence and a space; empty for a new one."""
    if result.continued is None:
        return ""
    return f"Training continued from the adapter `{result.continued.name}` (SHA-256 `{result.continued.sha256}`). "


def snippet(result: RunResult) -> str:
    """Python that loads what the run made, from its folder, and answers one question: transformers and peft alone."""
    imports, model = _opening(result)
    system = f'    {{"role": "system", "content": {_quoted(result.system_prompt)}}},\n' if result.system_prompt else ""
    return f"""{imports}

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)
{model}
messages = [
{system}    {{"role": "user", "content": {_quoted(question(result))}}},
]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens={result.job.max_new_tokens or 128}, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].size(1):], skip_special_tokens=True))
"""


def _opening(result: RunResult) -> tuple[str, str]:
    """Python that imports, and Python that makes `model`; around an adapter nothing else tells of a scaled RoPE."""
    recipe, auto = result.job.recipe, result.auto_class
    dtype = f'dtype="{recipe.weights_dtype}"'
    on_hub = "/" in result.base
    where = "" if on_hub else "  # its folder"
    if recipe.method == "full":
        return f"from transformers import {auto}, AutoTokenizer", f"model = {auto}.from_pretrained(folder, {dtype})"
    # where the vocabulary has no room for the new tokens, rows are added, as in training
    grown = "base.resize_token_embeddings(max(len(tokenizer), base.config.vocab_size))\n" if recipe.new_tokens else ""
    if recipe.rope_scaling is not None:
        return (
            f"from peft import PeftModel\nfrom transformers import AutoConfig, {auto}, AutoTokenizer",
            f"""# trained on rows of up to {recipe.seq_len} tokens, longer than the base takes without this
{scaling_snippet(recipe.rope_scaling, recipe.seq_len, result.base)}
base = {auto}.from_pretrained({result.base!r}, config=config, {dtype}){where}
{grown}model = PeftModel.from_pretrained(base, folder)""",
        )
    if auto == "AutoModelForCausalLM" and on_hub and not grown:
        return (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
            f"model = AutoPeftModelForCausalLM.from_pretrained(folder, {dtype})",
        )
    return (
        f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer",
        f"""base = {auto}.from_pretrained({result.base!r}, {dtype}){where}
{grown}model = PeftModel.from_pretrained(base, folder)""",
    )


def question(result: RunResult) -> str:
    """One to ask the model: the first held-out one that fits a line."""
    known = result.samples or ((result.sample,) if result.sample else ())
    return next((s.prompt for s in known if 0 < len(s.prompt) <= 200 and s.prompt.isprintable()), "Hello!")


def _quoted(text: str | None) -> str:
    return json.dumps(text, ensure_ascii=False)
