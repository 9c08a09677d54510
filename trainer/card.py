"""The model card of a run, in the hub's format (README.md with a YAML head)."""

from __future__ import annotations

import json
from pathlib import Path

from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation, RunResult
from autoft.trainer.rope import snippet


def model_card(result: RunResult, name: str, base: str | None, licence: str | None) -> str:
    """Markdown that says what the adapter, or the model, is, how it was made, how good it is and how to use it.

    base: hub id of the base model, None where it has none. licence: of the base, as the hub names it.
    """
    recipe, job = result.job.recipe, result.job
    whole = recipe.method == "full"
    library = "transformers" if whole else "peft"
    what = "The weights of" if whole else "A LoRA adapter for"
    head = {
        "base_model": base,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "license": licence,
        "tags": sorted({"autoft", recipe.method} | ({"lora"} if recipe.method == "qlora" else set())),
    }
    yaml = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items() if value)
    rows_per_step = recipe.micro_batch * job.accumulation
    data = Path(job.data or "").name
    system_prompt = json.dumps(result.system_prompt, ensure_ascii=False)
    return f"""---
{yaml}
---
# {name}

{what} `{base or result.base}`, trained by autoft {result.autoft_version} \
on {result.rows:,} rows of `{data}`.

| | before | after |
|---|---|---|
{_rows(result.before, result.after)}

Held-out rows: {result.after.rows}. Answers are greedy and compared exactly.

## How it was trained
{_how(recipe)}, \
learning rate {job.learning_rate:g} ({job.schedule}), {result.steps} steps of {rows_per_step} rows, seed {job.seed}. \
{result.trainable_params:,} of {result.total_params:,} weights were trained. \
`plan.toml` has every setting, `result.json` every figure.

## How to use it
```python
{_opening(recipe, base or result.base)}
tokenizer = AutoTokenizer.from_pretrained("this folder")
```
Or `autoft chat` with this folder. The system prompt of its training data: {system_prompt}.
"""


def _how(recipe: Recipe) -> str:
    if recipe.method == "full":
        return f"All weights in {recipe.weights_dtype}, computed in {recipe.base_dtype}"
    precision: str = recipe.base_dtype
    if recipe.quant_type:
        bits = "8-bit" if recipe.quant_type == "int8" else "4-bit"
        precision = f"{recipe.quant_type} {bits}, computed in {recipe.base_dtype}"
    kind = ("rsLoRA" if recipe.use_rslora else "LoRA") + (" with DoRA" if recipe.use_dora else "")
    return (
        f"{recipe.method} on a base in {precision}, {kind} of rank {recipe.rank}, alpha {recipe.alpha:g}, "
        f"targets {recipe.target_modules}" + (f", RoPE scaled ({recipe.rope_scaling})" if recipe.rope_scaling else "")
    )


def _opening(recipe: Recipe, base: str) -> str:
    """Python that makes `model`; around an adapter nothing but this tells of a scaled RoPE."""
    if recipe.method == "full":
        return """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")"""
    if recipe.rope_scaling is None:
        return """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("this folder")"""
    return f"""from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# trained on rows of up to {recipe.seq_len} tokens, longer than the base takes without this
{snippet(recipe.rope_scaling, recipe.seq_len, base)}
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}, config=config), "this folder")"""


def _rows(before: Evaluation, after: Evaluation) -> str:
    lines = [
        ("loss, nats a token", before.loss, after.loss, "{:.3f}"),
        ("valid JSON", before.json_valid, after.json_valid, "{:.1%}"),
        ("fields right", before.fields_right, after.fields_right, "{:.1%}"),
        ("exact match", before.exact_match, after.exact_match, "{:.1%}"),
    ]
    return "\n".join(
        f"| {name} | {form.format(b)} | {form.format(a)} |"
        for name, b, a, form in lines
        if b is not None and a is not None
    )
