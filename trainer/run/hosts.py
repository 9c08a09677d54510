"""The other processes of a run that a launcher has started, on this host and others, as the first one sees them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError, OptionError, first_line
from autoft.trainer.distributed.group import LOOPBACK, Group
from autoft.trainer.distributed.launched import Launch
from autoft.trainer.distributed.meeting import Meeting
from autoft.trainer.job import Job
from autoft.trainer.run.fingerprint import versions
from autoft.trainer.runtime.signals import StopRequest
from autoft.trainer.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from autoft.trainer.model.shared_host import SharedHost

ENDS_WITHIN_S = 5.0  # that the others have seen the end of the first, which may keep the store
SEEN_WITHIN_S = 2.0  # why one has ended, after an exchange has failed


class Hosts:
    """As launcher.py's Peers, of processes that are there already. gpus: of this host, as Peers has them.

    They wait from the time that `open` is called, and end with this one.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.gpus: Sequence[str] = ()
        self.group = Group(launch.size, launch.rank)
        self.meeting = Meeting(launch, self._lost)
        self._changed = threading.Condition()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shared: SharedHost | None = None

    def __enter__(self) -> Hosts:
        self.meeting.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.group.leave()
        if self._shared is not None:
            self._shared.close()
        if self._folder is not None:
            self._folder.cleanup()
        end = time.monotonic() + ENDS_WITHIN_S
        with contextlib.suppress(Exception):  # the store is where it was lost
            if self.group.trouble is None:
                self.meeting.put("ended/0", None if error is None else first_line(error))
                others = range(1, self.launch.size)
                while time.monotonic() < end and any(self.meeting.get(f"left/{rank}") is None for rank in others):
                    time.sleep(0.1)
        self.meeting.close()

    def start(self, job: Job, *, predicted_bytes: int | None, force: bool) -> None:
        """Have the others load what this process loads meanwhile. predicted_bytes, force: as `preflight` has them.

        Raises: OptionError where the job is not for as many processes.
        """
        launch = self.launch
        if (job.num_gpus, job.hosts) != (launch.size, launch.hosts):
            raise OptionError(
                f"the plan is for {job.num_gpus} processes on {hosts_of(job.hosts)}, and {launch.size} were started on "
                f"{hosts_of(launch.hosts)}",
                fix=f"plan with --hosts {launch.hosts} --set num_gpus={launch.size}, resume with --gpus {launch.size}, "
                "or start as many as planned",
            )
        memory = {"predicted_bytes": predicted_bytes, "force": force}
        self.meeting.put("order", {"job": job.to_dict(), "memory": memory, "versions": versions()})

    def shared_host(self, job: Job) -> SharedHost | None:
        """Where the base that the processes of this host stream lies; None where there is none, or one process."""
        if not job.recipe.streamed_layers or self.launch.local_size == 1:
            return None
        from autoft.trainer.model.shared_host import SharedHost

        first = self.launch.local_rank == 0
        if first:
            self._folder = tempfile.TemporaryDirectory(prefix="autoft-", ignore_cleanup_errors=True)
            self.meeting.put(f"shared/{self.launch.host}", self._folder.name)
        folder = Path(self.meeting.wait(f"shared/{self.launch.host}", self.group.check))
        self._shared = SharedHost(folder, first=first)
        return self._shared

    def join(self, checkpoint: Checkpoint, job: Job, data_sha256: str, check: Callable[[], None]) -> None:
        """Wait until all are loaded, and have them go on from `checkpoint`. check: called while it waits.

        Raises: LostProcess, DataError.
        """

        def both() -> None:
            self.group.check()
            check()

        for rank in range(1, self.launch.size):
            if self.meeting.wait(f"ready/{rank}", both) != data_sha256:
                raise DataError(
                    f"{job.data}: not the same rows for process {rank + 1} of {self.launch.size}, on its host",
                    fix="copy the file to all hosts, then run again",
                )
        self.meeting.put("start", {"checkpoint": str(checkpoint.folder), "run_id": checkpoint.run_id})
        with self.joined(checkpoint.folder, job.device, check):
            pass

    @contextlib.contextmanager
    def joined(self, folder: Path, device: str, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """The group talks, and what the first process has in its `folder` is in the folder that comes of it."""
        self.group.join(lambda: self.meeting.store, device, check, interface_to(self.launch))
        if self._shared is not None:
            self._shared.close()  # all have mapped it
        if self.launch.hosts == 1 or self.launch.rank == 0:
            if self.launch.hosts > 1:
                self.group.spread_folder(folder)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="autoft-", ignore_cleanup_errors=True) as here:
            copy = Path(here) / folder.name
            copy.mkdir()
            self.group.spread_folder(copy)
            yield copy

    def lost(self) -> str | None:
        """Why one has ended before its time; to be asked when something failed, for that may be why it did."""
        with self._changed:
            self._changed.wait_for(lambda: self.group.trouble is not None, SEEN_WITHIN_S)
        if self.group.trouble is None and self.group.broke:
            return "the connection to another process broke: it has ended, or its host is cut off"
        return self.group.trouble

    def stopped_by(self, stop: StopRequest) -> None:
        """What the launcher asks of another host stops the run as well: `stop` is set by it."""
        self.meeting.asked = lambda name: setattr(stop, "signal", stop.signal or name)

    def _lost(self, reason: str) -> None:
        with self._changed:
            self.group.lost(reason)
            self._changed.notify_all()


def hosts_of(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"


def interface_to(launch: Launch) -> str | None:
    """The network interface by which this host reaches the first; what a host's name stands for is often loopback."""
    if launch.hosts == 1:
        return LOOPBACK
    import socket

    import psutil

    family, kind, _, _, first = socket.getaddrinfo(launch.address, launch.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(first)  # which sends nothing
        own = way.getsockname()[0]
    addresses: dict[str, Any] = psutil.net_if_addrs()
    return next((name for name, all_of_it in addresses.items() if own in [each.address for each in all_of_it]), None)
