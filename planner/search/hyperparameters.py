"""The schedule: how often the data is gone over, in which batches, at which rate, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoft.planner.estimate import Estimate, Range
from autoft.planner.facts import Reason
from autoft.planner.search import words
from autoft.planner.workload import Workload
from autoft.trainer.adapters import ADAPTERS
from autoft.trainer.adapters.kind import AdapterKind
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.job import Job
from autoft.trainer.objectives.packing import pack
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe

MIN_STEPS = 100  # optimizer steps that a run should have before its batch grows
# Of an optimizer step: the QLoRA paper's batch of 16 rows of at most 512 tokens (arXiv:2305.14314, table 9). LoRA bears
# large batches less well than full fine-tuning does (LoRA Without Regret, Thinking Machines Lab, 2025).
MAX_ROWS_PER_STEP = 16
MAX_TOKENS_PER_STEP = 16 * 512
STARTER_RATE = 1e-3  # of LoRA on the starter, tried
FULL_RATE = 10  # an adapter wants some ten times the learning rate of full fine-tuning (the same source)
SMALL_DATA_ROWS = 1000  # fewer rows than this are gone over three times
# Of the tokens, padding included, without it. Batches of one length are less mixed; over three seeds the starter's loss
# was no worse for it (docs/negative-results.md), but nothing else was measured, so that it has to be worth it.
GROUPING_PAYS = 0.75
_JOB, _RECIPE = Job.__dataclass_fields__, Recipe.__dataclass_fields__
_RANK: Any = _RECIPE["rank"].default
_WARMUP_RATIO: Any = _JOB["warmup_ratio"].default
RANK = Reason(
    key="rank",
    text=f"rank {_RANK} on all linear layers: with adapters on all of them the rank hardly matters "
    "(QLoRA, arXiv:2305.14314, appendix A)",
    figures={"rank": _RANK},
)
WARMUP = Reason(
    key="warmup_ratio",
    text=f"warmup ratio {_WARMUP_RATIO:g} and a {_JOB['schedule'].default}: Stanford Alpaca's recipe "
    "(github.com/tatsu-lab/stanford_alpaca, README)",
    figures={"warmup_ratio": _WARMUP_RATIO},
)
MEGA_BATCHES = 50  # steps that transformers' sampler sorts by length at once


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that an epoch trains on, by their tokens; several examples share one where they are packed."""

    lengths: tuple[int, ...]
    seq_len: int
    packing: bool

    def padded(self, micro_batch: int, rows_per_step: int, *, grouped: bool) -> float:
        """Tokens of the mean micro-batch, padding included, over those of as many rows of seq_len.

        Each is padded to its longest row and a multiple of 16. grouped: rows of a kind of length stand together, as
        transformers' LengthGroupedSampler puts them.
        """
        if self.packing:
            return 1.0
        order = np.random.default_rng(0).permutation(np.array(self.lengths))
        if grouped:
            mega = rows_per_step * max(1, min(len(order) // (rows_per_step * 4), MEGA_BATCHES))
            order = np.concatenate([np.sort(order[at : at + mega])[::-1] for at in range(0, len(order), mega)])
        longest = np.maximum.reduceat(order, np.arange(0, len(order), micro_batch))
        rounded = np.minimum(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.seq_len)
        return float(rounded.mean() / self.seq_len)


def rows_of(prepared: Prepared | None, seq_len: int, *, packing: bool) -> Rows | None:
    """None without data."""
    if prepared is None:
        return None
    lengths = [len(example.input_ids) for example in prepared.train.examples]
    if packing:
        lengths = [seq_len] * len(pack(lengths, seq_len))
    return Rows(tuple(lengths), seq_len, packing)


def schedule(
    starter: bool, workload: Workload | None, rows: Rows | None, seq_len: int, *, adapter: AdapterKind | None
) -> tuple[dict[str, Any], dict[str, Reason]]:
    """(epochs, learning rate, rows a step and the like; where each comes from, by name).

    starter: the bundled task with the starter model, which were tried together. rows: None without data. adapter:
    None where all weights are trained.
    """
    number = len(rows.lengths) if rows else 10 * SMALL_DATA_ROWS
    examples = workload.rows if workload else number
    epochs = 1.0 if starter or examples >= SMALL_DATA_ROWS else 3.0
    mean = sum(rows.lengths) / number if rows else seq_len
    per_step = _rows_per_step(int(number * epochs), mean)
    kind = adapter or ADAPTERS["lora"]
    is_tried = starter and kind.name == "lora"
    of_kind = STARTER_RATE if is_tried else kind.learning_rate
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": of_kind if adapter else of_kind / FULL_RATE,
        "rows_per_step": per_step,
    }
    sources: dict[str, Reason] = {}
    if workload is not None:
        settings["max_new_tokens"] = _answer_room(workload)
    if rows is not None and not rows.packing:
        alone, together = (rows.padded(per_step, per_step, grouped=grouped) for grouped in (False, True))
        settings["group_by_length"] = together < GROUPING_PAYS * alone
        if settings["group_by_length"]:
            share = 1 - together / alone
            fewer = f"rows of like length share a step: {share:.0%} fewer tokens than by chance, padding included"
            sources["group_by_length"] = Reason(key="group_by_length", text=fewer, figures={"fewer_share": share})
    tried = "tried with the starter model on its task"
    rate = f"learning rate {words.rate(settings['learning_rate'])}: "
    if adapter is None:
        rate += f"a {FULL_RATE}th of an adapter's (LoRA Without Regret, Thinking Machines Lab, 2025), which is "
    why_epochs = tried if starter else _why_epochs(examples, workload)
    return settings, sources | {
        **({"rank": RANK} if adapter and "rank" in adapter.settings else {}),
        "learning_rate": Reason(
            key="learning_rate",
            text=f"{rate}{tried if is_tried else kind.rate_source}",
            figures={"learning_rate": settings["learning_rate"]},
        ),
        "warmup_ratio": WARMUP,
        "epochs": Reason(
            key="epochs",
            text=f"{epochs:g} epoch{'s' if epochs > 1 else ''}: {why_epochs}",
            figures={"epochs": epochs, "rows": examples},
        ),
        "accumulation": Reason(
            key="accumulation",
            text=f"batch of {per_step}, about {per_step * mean:,.0f} tokens: at most {MAX_ROWS_PER_STEP} sequences or "
            f"{MAX_TOKENS_PER_STEP:,} tokens per step (QLoRA paper), and at least {MIN_STEPS} steps if possible",
            figures={"rows": per_step, "tokens": round(per_step * mean)},
        ),
    }


def _why_epochs(examples: int, workload: Workload | None) -> str:
    if workload is None:
        return "there is no data to look at yet"
    few = "fewer than" if examples < SMALL_DATA_ROWS else "no fewer than"
    return f"{examples:,} rows, {few} the {SMALL_DATA_ROWS:,} that are gone through once (autoft's own choice)"


def _rows_per_step(rows: int, mean_tokens: float) -> int:
    """The largest power of two that keeps to the limits of a batch and leaves MIN_STEPS optimizer steps."""
    rows_per_step = 1
    while (
        2 * rows_per_step <= MAX_ROWS_PER_STEP
        and 2 * rows_per_step * mean_tokens <= MAX_TOKENS_PER_STEP
        and rows // (2 * rows_per_step) >= MIN_STEPS
    ):
        rows_per_step *= 2
    return rows_per_step


def _answer_room(workload: Workload) -> int:
    """Tokens an answer may take in the evaluation: half as long again as the longest expected one, at most 512."""
    return min(512, -(-workload.longest_answer * 3 // 2 // 8) * 8)


def steps_of(job: Job, rows: Rows | None) -> int | None:
    """Optimizer steps of the whole run; None without data."""
    if rows is None:
        return None
    micro_batches = -(-len(rows.lengths) // (job.recipe.micro_batch * job.num_gpus))
    steps = round(job.epochs * -(-micro_batches // job.accumulation))
    return min(steps, job.max_steps) if job.max_steps else max(1, steps)


def mean_length(recipe: Recipe, padded: float) -> int:
    """Tokens that the mean micro-batch is padded to. padded: from Rows."""
    return min(recipe.seq_len, max(1, round(padded * recipe.seq_len / PAD_MULTIPLE)) * PAD_MULTIPLE)


def run_takes(estimate: Estimate, micro_batches: float) -> tuple[Range, Range | None]:
    """(seconds, kWh) of so many; energy None where unknown. estimate: of a micro-batch of the mean length."""
    step, energy = estimate.step_time_s, estimate.step_energy_wh
    seconds = Range(lower=micro_batches * step.lower, upper=micro_batches * step.upper)
    if energy is None:
        return seconds, None
    return seconds, Range(lower=micro_batches * energy.lower / 1000, upper=micro_batches * energy.upper / 1000)
