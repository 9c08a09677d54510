"""`python -m autoft.trainer.run.worker`: one of the other processes of a run, at the other end of `launcher.py`.

Orders come as lines of JSON, and their end is its end: it outlives the first process in no case.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.trainer.runtime import environment
from autoft.trainer.runtime.signals import ASK, StopRequest


def main() -> int:
    """Exit code. All that libraries print goes to stderr."""
    for name in (*ASK, "SIGHUP"):  # the first process hears them too, and decides for all
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    environment.prepare()
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

    def tell(message: dict[str, Any]) -> None:
        answer_to.write(json.dumps(message) + "\n")
        answer_to.flush()

    try:
        _train(orders, tell)
    except Exception as error:  # noqa: BLE001 - whatever it is ends the run, and its first process says so
        tell({"error": (str(error).strip() or type(error).__name__).splitlines()[0][:200]})
        return 1
    tell({"done": True})
    return 0


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def _train(orders: queue.Queue[dict[str, Any]], tell: Callable[[dict[str, Any]], None]) -> None:
    order = orders.get()
    from autoft.profiles.detect import detect
    from autoft.trainer.distributed.group import Group
    from autoft.trainer.job import Job
    from autoft.trainer.loop.probe_step import rehearse
    from autoft.trainer.model.shared_host import SharedHost
    from autoft.trainer.run.fingerprint import digest_of
    from autoft.trainer.run.preflight import preflight
    from autoft.trainer.run.setup import find_sources, load
    from autoft.trainer.runtime.peak_memory import PeakMemory
    from autoft.trainer.storage.checkpoint import open_checkpoint
    from autoft.trainer.storage.progress import Progress

    job, rank = Job.from_dict(order["job"]), order["rank"]
    if job.device == "cuda":  # memory of a CPU is one, and the first process has asked for it
        preflight(job, hardware=detect(), **order["memory"])
    shared = SharedHost(Path(order["rendezvous"]).parent, first=False) if job.recipe.streamed_layers else None
    loaded = load(job, find_sources(job, _tell_nobody), shared=shared)
    from autoft.trainer.loop.engine import Engine

    group, progress = Group(job.num_gpus, rank), Progress()
    with tempfile.TemporaryDirectory(prefix="autoft-", ignore_cleanup_errors=True) as folder:
        follower = _follower(job.seed, rank)
        engine = follower.engine = Engine(
            model=loaded.model,
            tokenizer=loaded.prepared.tokenizer,
            job=job,
            examples=loaded.prepared.train.examples,
            work_dir=Path(folder),
            keeper=None,
            progress=progress,
            watch=follower,
            stop=StopRequest(),
            listener=_tell_nobody,
            group=group,
        )
        tell({"ready": digest_of(loaded.prepared.train.examples)})
        start = orders.get()
        checkpoint = open_checkpoint(Path(start["checkpoint"]), run_id=start["run_id"])
        engine.resume(checkpoint)
        group.join(Path(order["rendezvous"]), job.device)
        with PeakMemory(job.device, loaded.baseline_bytes) as memory:
            rehearse(engine, checkpoint, memory)
            if not progress.is_done(job):
                engine.train_on(checkpoint)
        engine.compare_weights()
        group.leave()


def _tell_nobody(_: Any) -> None:
    pass


def _follower(seed: int, rank: int) -> Any:
    import numpy as np
    import torch
    from transformers import TrainerCallback

    class Follower(TrainerCallback):  # type: ignore[misc]
        """Its random numbers are told by seed, process and step, so that no checkpoint needs to hold them."""

        engine: Any

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            words = np.random.SeedSequence((seed, rank, state.global_step)).generate_state(1)
            number = int(words[0])
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.engine.tokens = [0, 0, 0]

    return Follower()


if __name__ == "__main__":
    sys.exit(main())
