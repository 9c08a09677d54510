"""How does the memory of a run on a CPU grow from step to step, and is it in use or kept by glibc's heap?

    python benchmarks/cpu_growth.py --steps 40

The starter in bfloat16 on its own rows, two a micro-batch and four a step, on one thread, three times, each time in a
new process: one batch again and again, batches as the trainer makes them, and batches whose loss takes only the trained
columns, another count in each. `in use` is what somebody holds of glibc's heap, `free` what it keeps besides.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from child import ask, tell, work_and_leave
from common import write_results

from autoft.trainer.runtime import environment
from autoft.units import MIB

environment.prepare()

KINDS = {
    "one batch": "the first batch in every step",
    "as trained": "as the trainer makes them",
    "every count of columns": "logits of the trained columns alone",
}
MICRO_BATCH, ROWS = 2, 4
TIMEOUT_S = 300
HEAP_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class HeapStatistics(ctypes.Structure):
    """struct mallinfo2 of malloc.h (glibc 2.33 and later)."""

    _fields_ = [(name, ctypes.c_size_t) for name in HEAP_FIELDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        work_and_leave(lambda: measure(options.only, options.steps))
    rows = {}
    for kind in KINDS:
        words = [sys.executable, __file__, "--only", kind, "--steps", str(options.steps)]
        rows[kind] = ask(words, {}, timeout_s=TIMEOUT_S, environ={**os.environ, "OMP_NUM_THREADS": "1"})
        print(kind, json.dumps(rows[kind]), flush=True)
    seconds = {kind: row["median_step_cpu_s"] for kind, row in rows.items()}
    ratio = round(seconds["as trained"] / seconds["every count of columns"], 3)
    write_results(
        "cpu_growth", {"steps": options.steps, "kinds": KINDS, "step_time_ratio_to_every_count": ratio, "rows": rows}
    )


def measure(kind: str, steps: int) -> None:
    """One kind of batches: MiB after some steps and the most within, and processor seconds of a step."""
    import torch

    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives import loss, objective_of
    from autoft.trainer.optimizers.optim import build_optimizer
    from autoft.trainer.recipe import Recipe
    from autoft.trainer.runtime.peak_memory import PeakMemory, resident_bytes
    from autoft.trainer.sources.resolve import fetch, load_config, resolve

    ref = resolve("starter")
    recipe = Recipe(micro_batch=MICRO_BATCH, base_dtype="bfloat16", autocast=True, loss="selected", seq_len=160)
    batches = _batches(recipe, ref, again=kind == "one batch")
    model = build_model(recipe, config=load_config(ref), weights=fetch(ref, print), device="cpu").train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = build_optimizer(trained, recipe, learning_rate=1e-3)
    columns = loss._trained_columns
    multiple = 1 if kind == "every count of columns" else recipe.pad_multiple
    record: dict[str, Any] = {"after_step": {}}
    seconds: list[float] = []
    with (
        PeakMemory("cpu", resident_bytes()) as memory,
        patch.object(loss, "_trained_columns", lambda targets, _: columns(targets, multiple)),
    ):
        for step in range(1, steps + 1):
            began = time.process_time()
            for _ in range(ROWS // MICRO_BATCH):
                batch = next(batches)
                count = (batch["labels"][:, 1:] != loss.IGNORED).sum()
                objective_of(recipe).loss(model, batch, recipe, num_trained_tokens=count).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.process_time() - began)
            if step in (1, 2, 5) or step % 10 == 0:
                record["after_step"][step] = {"peak_mib": memory.take_peak() // MIB, **_heap()}
    tell({**record, "median_step_cpu_s": round(statistics.median(seconds[1:]), 3)})


def _batches(recipe: Any, ref: Any, *, again: bool) -> Iterator[dict[str, Any]]:
    """Without end, in the order of the data; or the first one again and again."""
    from autoft.trainer.data.prepare import prepare
    from autoft.trainer.objectives.batch import collate, row

    data = prepare(ref, "starter")
    examples, first = data.train.examples, 0
    while True:
        rows = [row([each], recipe, data.tokenizer.pad_token_id) for each in examples[first : first + MICRO_BATCH]]
        yield collate(rows, recipe, data.tokenizer.pad_token_id)
        first = 0 if again else (first + MICRO_BATCH) % (len(examples) - MICRO_BATCH)


def _heap() -> dict[str, int]:
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = HeapStatistics
    heap = libc.mallinfo2()
    return {"in_use_mib": heap.uordblks // MIB, "free_mib": heap.fordblks // MIB}


if __name__ == "__main__":
    main()
