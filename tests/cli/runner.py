"""A run without a model, for those who watch one: `python runner.py OUT`, then on standard input a word a line.

It takes the real lock, writes the real record and renames the real folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autoft.trainer.events import Evaluated, Event, Finished, Note, Rehearsed, Saved, Stage, Step, Stopped
from autoft.trainer.result import Evaluation
from autoft.trainer.storage.event_log import EVENTS, Recorder
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.run_folder import output_folder


def step(number: int, total: int = 10) -> Step:
    """Figures of a run that is slower than its reader."""
    return Step(
        step=number,
        total_steps=total,
        loss=2.0 / number,
        learning_rate=2e-4,
        grad_norm=0.83,
        step_s=3.0,
        step_trained_tokens=2048,
        tokens=4096 * number,
        tokens_per_s=1234.0,
        trained_tokens_per_s=812.0,
        padded_tokens_per_s=1500.0,
        seconds_left_lower=720.0,
        seconds_left_upper=900.0,
        memory_bytes=8 * 2**30,
        peak_bytes=9 * 2**30,
        micro_batch=4,
        next_save_s=180.0,
    )


def events(word: str) -> list[Event]:
    """What a word on standard input stands for: a number is that step."""
    if word.isdigit():
        return [step(int(word))]
    return {
        "begin": [
            Stage(name="model", detail="tiny"),
            Rehearsed(micro_batch=4, tokens=2048, peak_bytes=9 * 2**30, predicted_bytes=10 * 2**30, seconds=2.0),
            Evaluated(when="before", step=0, evaluation=Evaluation(rows=3, loss=2.5)),
            Stage(name="train", detail="40 rows"),
        ],
        "note": [Note(text="here is a note")],
        "save": [Saved(step=3, bytes=12 * 2**20, seconds=0.5)],
        "stop": [Stopped(step=3, reason="stopped by SIGTERM", resumable=True)],
        "finish": [Finished(steps=10, seconds=30.0)],
    }[word]


def main(out: Path) -> None:
    with output_folder(out, force=True) as folder:
        record = Recorder(folder / EVENTS)
        for line in sys.stdin:
            word = line.strip()
            for event in events(word):
                record(event)
            print("done", flush=True)
            if word == "stop":
                (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
                sys.exit(4)
        (folder / RESULT).write_text("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
