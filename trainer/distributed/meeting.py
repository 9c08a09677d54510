"""Where the processes of a run on several hosts find each other, and notice when one is gone: a store on the network.

Each has a key that it changes every second. Who has not changed its key for SILENT_S is lost: a host that was cut off
sends no word that it has gone.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autoft.errors import TrainingError, first_line
from autoft.trainer.distributed.group import LostProcess
from autoft.trainer.distributed.launched import Launch

BEATS_EVERY_S = 1.0
SILENT_S = 30.0  # without a word from it, a process is taken for lost
MEETS_WITHIN = datetime.timedelta(minutes=15)  # for all to be started


class Meeting:
    """The processes of `launch`. lost: called once, from another thread, with why the run cannot go on."""

    def __init__(self, launch: Launch, lost: Callable[[str], None]) -> None:
        self.launch = launch
        self._lost = lost
        self._closing = threading.Event()
        self._heard: dict[int, tuple[int, float]] = {}  # of each other process: its last beat, and when that changed
        self._watched = [0] if launch.rank else list(range(1, launch.size))
        self._threads: list[threading.Thread] = []
        self.first_has_ended = False  # and said why
        self.asked: Callable[[str], None] | None = None  # of the first: takes the signal that stops another process
        self.signal: str | None = None  # that has asked this process to stop

    def open(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for the store. check: called meanwhile; what it raises ends the wait. Raises: TrainingError."""
        failures: list[Exception] = []

        def connect() -> None:
            try:
                # Two connections: whoever waits for an answer on one keeps the other threads from it
                self.store, self._beats = self._connect(master=True), self._connect(master=False)
            except Exception as failure:  # noqa: BLE001 - told below
                failures.append(failure)

        connecting = threading.Thread(target=connect, daemon=True)
        connecting.start()
        while connecting.is_alive():
            check()
            connecting.join(0.1)
        at = f"{self.launch.address}:{self.launch.port}"
        if failures:
            raise TrainingError(
                f"no meeting at {at}: {first_line(failures[0])}", fix="start all hosts, and let them reach that port"
            )
        for work in (self._beat, self._watch):
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()

    @property
    def is_open(self) -> bool:
        return bool(self._threads)

    def close(self) -> None:
        """This process has ended, and is not missed."""
        self._closing.set()
        for thread in self._threads:
            thread.join(2 * BEATS_EVERY_S)

    def put(self, key: str, value: Any) -> None:
        """value: of JSON. Raises: LostProcess where the store is gone."""
        with self._connected():
            self.store.set(key, json.dumps(value))

    def get(self, key: str) -> Any:
        """None as long as nobody has put it. Raises: LostProcess where the store is gone."""
        with self._connected():
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def wait(self, key: str, check: Callable[[], None]) -> Any:
        """What another puts there. check: called meanwhile; what it raises ends the wait."""
        while (value := self.get(key)) is None:
            check()
            time.sleep(0.1)
        return value

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # DistError is one
            raise LostProcess("the store of the run is gone: its host has ended, or is cut off") from error

    def _connect(self, *, master: bool) -> Any:
        import torch.distributed as dist

        launch = self.launch
        store = dist.TCPStore(  # type: ignore[attr-defined]
            launch.address,
            launch.port,
            launch.size,
            is_master=master and launch.rank == 0 and not launch.hosted,
            timeout=MEETS_WITHIN,
            wait_for_workers=False,
            multi_tenant=True,
        )
        return dist.PrefixStore(f"autoft/{launch.attempt}", store)  # type: ignore[attr-defined]

    def _beat(self) -> None:
        """Tell the others that this process is there, and hear the same of them; the connection may hang for ever."""
        count = 0
        while not self._closing.is_set():
            count += 1
            try:
                self._beats.set(f"beat/{self.launch.rank}", str(count))
                if self.signal is not None:
                    self._beats.set("asked", self.signal)
                if self.asked is not None and self._beats.check(["asked"]):
                    self.asked(self._beats.get("asked").decode())
                for rank in self._watched:
                    self._hear(rank)
            except Exception:  # noqa: BLE001 - the store is gone, which `_watch` sees by the silence
                self._closing.wait(BEATS_EVERY_S)
                continue
            self._closing.wait(BEATS_EVERY_S)

    def _hear(self, rank: int) -> None:
        if not self._beats.check([f"beat/{rank}"]):
            return
        beat = int(self._beats.get(f"beat/{rank}"))
        known = self._heard.get(rank)
        if known is None or known[0] != beat:
            self._heard[rank] = beat, time.monotonic()
        word = f"ended/{rank}"
        if self._beats.check([word]):
            self._watched = [other for other in self._watched if other != rank]
            reason = json.loads(self._beats.get(word))
            if reason is not None:
                self.first_has_ended = rank == 0
                self._say_lost(f"process {rank + 1} of {self.launch.size} has ended: {reason}")

    def _watch(self) -> None:
        while not self._closing.wait(BEATS_EVERY_S):
            now = time.monotonic()
            for rank in self._watched:
                heard = self._heard.get(rank)
                if heard is not None and now - heard[1] > SILENT_S:
                    whose = "the first process" if rank == 0 else f"process {rank + 1} of {self.launch.size}"
                    self._say_lost(
                        f"{whose} has not answered for {SILENT_S:.0f} s: it has ended, or its host is cut off"
                    )
                    return

    def _say_lost(self, reason: str) -> None:
        if not self._closing.is_set():
            self._lost(reason)
