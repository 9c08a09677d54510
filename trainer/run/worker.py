"""One of the other processes of a run: started by the first one (launcher.py), or beside it by a launcher (hosts.py).

`python -m autoft.trainer.run.worker` takes its orders from the first as lines of JSON, and their end is its end: it
outlives the first process in no case. What a launcher has started is `autoft run` as well, and comes here by `follow`.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autoft.errors import Interrupted, OptionError, Resumable, first_line
from autoft.trainer.distributed.group import Group, LostProcess, file_store
from autoft.trainer.job import Job
from autoft.trainer.run.fingerprint import digest_of, versions
from autoft.trainer.run.hosts import Hosts
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.signals import ASK, StopRequest
from autoft.trainer.storage.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from autoft.trainer.distributed.launched import Launch
    from autoft.trainer.distributed.meeting import Meeting
    from autoft.trainer.model.shared_host import SharedHost


def main() -> int:
    """Of a process that the first one has started. Exit code. All that libraries print goes to stderr."""
    _leave_signals_to_the_first()
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    environment.prepare()
    environment.import_libraries()
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

    def tell(message: dict[str, Any]) -> None:
        answer_to.write(json.dumps(message) + "\n")
        answer_to.flush()

    try:
        order = orders.get()
        job, rendezvous = Job.from_dict(order["job"]), Path(order["rendezvous"])
        group = Group(job.num_gpus, order["rank"])

        @contextmanager
        def begin(data_sha256: str) -> Iterator[Checkpoint]:
            tell({"ready": data_sha256})
            start = orders.get()
            checkpoint = open_checkpoint(Path(start["checkpoint"]), run_id=start["run_id"])
            group.join(file_store(rendezvous, group.size), job.device)
            yield checkpoint

        _train(job, order["memory"], group, _shared_host(job, rendezvous.parent), begin)
    except Exception as error:  # noqa: BLE001 - whatever it is ends the run, and its first process says so
        tell({"error": first_line(error)})
        return 1
    tell({"done": True})
    return 0


def follow(launch: Launch, take_device: Callable[[Job], None]) -> NoReturn:
    """Of a process that a launcher has started beside the first, here or elsewhere; it ends with this.

    take_device: chooses the GPU that the job is to use in this process.
    """
    _leave_signals_to_the_first()
    os.dup2(2, 1)
    environment.prepare()
    hosts, code = Hosts(launch), 0
    _hand_signals_on(hosts.meeting)
    try:
        hosts.meeting.open()
        _follow(hosts, take_device)
    except Exception as error:  # noqa: BLE001 - whatever it is ends the run
        code = _tell_of_end(hosts, error)
    with suppress(Exception):  # the store may be what was lost
        if not code:
            hosts.meeting.put(f"ended/{launch.rank}", None)
        hosts.meeting.put(f"left/{launch.rank}", True)
    hosts.meeting.close()
    os._exit(code)  # what is left of the group may wait for a host that is gone


def _tell_of_end(hosts: Hosts, error: Exception) -> int:
    """Of a process that ends before its time. Exit code: 0 beside a first process that tells why itself, and is killed
    by the launcher where another fails."""
    launch = hosts.launch
    reason = hosts.lost() if hosts.group.broke else first_line(error)
    if hosts.meeting.first_has_ended and launch.host == 0:
        return 0
    print(f"process {launch.rank + 1} of {launch.size}: {reason}", file=sys.stderr, flush=True)
    if isinstance(error, LostProcess) or hosts.group.broke:
        return Resumable.exit_code
    with suppress(Exception):
        hosts.meeting.put(f"ended/{launch.rank}", reason)
    return 1


def _follow(hosts: Hosts, take_device: Callable[[Job], None]) -> None:
    group, meeting, rank = hosts.group, hosts.meeting, hosts.launch.rank
    order = meeting.wait("order", group.check)
    unlike = {name: own for name, own in versions().items() if order["versions"].get(name) != own}
    if unlike:
        name, own = next(iter(unlike.items()))
        there = order["versions"].get(name)
        raise OptionError(
            f"{name} is {own} on {socket.gethostname()}, and {there} on the first host", fix="install the same versions"
        )
    job = Job.from_dict(order["job"])
    take_device(job)

    @contextmanager
    def begin(data_sha256: str) -> Iterator[Checkpoint]:
        meeting.put(f"ready/{rank}", data_sha256)
        start = meeting.wait("start", group.check)
        with hosts.joined(Path(start["checkpoint"]), job.device) as folder:
            yield open_checkpoint(folder, run_id=start["run_id"])

    _train(job, order["memory"], group, hosts.shared_host(job), begin)


def _shared_host(job: Job, folder: Path) -> SharedHost | None:
    if not job.recipe.streamed_layers:
        return None
    from autoft.trainer.model.shared_host import SharedHost

    return SharedHost(folder, first=False)


def _hand_signals_on(meeting: Meeting) -> None:
    """A launcher that stops this host's processes stops the run: the first saves, and all end."""

    def hand_on(number: int, _: Any) -> None:
        if not meeting.is_open:
            os._exit(Interrupted.exit_code)
        meeting.signal = signal.Signals(number).name

    for name in ASK:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), hand_on)


def _leave_signals_to_the_first() -> None:
    """It hears them too, and decides for all."""
    for name in (*ASK, "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def _train(
    job: Job,
    memory: dict[str, Any],
    group: Group,
    shared: SharedHost | None,
    begin: Callable[[str], AbstractContextManager[Checkpoint]],
) -> None:
    """memory: for `preflight`. begin: told what this process has made of the data, it has the group join and gives the
    checkpoint to start from."""
    from autoft.profiles.detect import detect
    from autoft.trainer.loop.probe_step import rehearse
    from autoft.trainer.run.preflight import preflight
    from autoft.trainer.run.setup import find_sources, load
    from autoft.trainer.runtime.peak_memory import PeakMemory
    from autoft.trainer.storage.progress import Progress

    if job.device == "cuda":  # memory of a CPU is one, and the first process has asked for it
        preflight(job, hardware=detect(), **memory)
    loaded = load(job, find_sources(job, _tell_nobody), shared=shared)
    from autoft.trainer.loop.engine import Engine

    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="autoft-", ignore_cleanup_errors=True) as folder:
        follower = _follower(job.seed, group.rank)
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
        with begin(digest_of(loaded.prepared.train.examples)) as checkpoint:
            engine.resume(checkpoint)
            with PeakMemory(job.device, loaded.baseline_bytes) as memory_use:
                rehearse(engine, checkpoint, memory_use)
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
