"""The model card of a run, in the hub's format (README.md with a YAML head)."""

from __future__ import annotations

import json
from pathlib import Path

from autoft.trainer.report.wording import continued, how_trained, judged_rows, scores, snippet, what_it_is
from autoft.trainer.result import RunResult


def model_card(result: RunResult, name: str, base: str | None, licence: str | None) -> str:
    """Markdown that says what the adapter, or the model, is, how it was made, how good it is and how to use it.

    base: hub id of the base model, None where it has none. licence: of the base, as the hub names it.
    """
    recipe, job = result.job.recipe, result.job
    head = {
        "base_model": base,
        "library_name": "transformers" if recipe.method == "full" else "peft",
        "pipeline_tag": "text-generation",
        "license": licence,
        "tags": sorted({"autoft", recipe.method} | ({"lora"} if recipe.method == "qlora" else set())),
    }
    yaml = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items() if value)
    rows = "\n".join(
        f"| {score.label} | {score.text(before)} | {score.text(after)} |"
        for score, before, after in scores(result.before, result.after)
    )
    rows_per_step = job.num_gpus * recipe.micro_batch * job.accumulation
    data = Path(job.data or "").name
    prompt_json = json.dumps(result.system_prompt, ensure_ascii=False)
    system_prompt = f" The system prompt of its training data: {prompt_json}." if result.system_prompt else ""
    fence = "`" * max(3, 1 + _longest_run(snippet(result)))
    return f"""---
{yaml}
---
# {name}

{what_it_is(recipe)} `{base or result.base}`, trained by autoft {result.autoft_version} \
on {result.rows:,} rows of `{data}`.

| | before | after |
|---|---|---|
{rows}

{judged_rows(result.after)}.

## How it was trained
{how_trained(recipe)}, \
learning rate {job.learning_rate:g} ({job.schedule}), {result.steps} steps of {rows_per_step} rows, seed {job.seed}. \
{result.trainable_params:,} of {result.total_params:,} weights were trained. {continued(result)}\
`plan.toml` has every setting, `result.json` every figure, `report.html` shows them.

## How to use it
{fence}python
{snippet(result)}{fence}
Or `autoft chat` with this folder.{system_prompt}
"""


def _longest_run(text: str) -> int:
    """Of backticks."""
    longest = current = 0
    for letter in text:
        current = current + 1 if letter == "`" else 0
        longest = max(longest, current)
    return longest
