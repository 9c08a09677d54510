"""The processes that train one model together, each with a copy of it and its share of the rows: what they exchange.

Not DistributedDataParallel, which sums gradients in the midst of the backward: there a process that runs out of memory
and repeats its step would leave the others waiting. Ours are summed once, when the step's gradients are whole, so that
each process may repeat its own share as often as it must; docs/decisions/0013-several-gpus.md.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.trainer.compat.torch import ABORT_GROUP, FLATTEN, UNFLATTEN
from autoft.units import MIB

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 32 * MIB  # gradients are copied together up to so much, and a larger one goes as it is
# Longest that a process waits for the others: the first of them evaluates alone, and may do that for long
PATIENCE = datetime.timedelta(days=7)
# Where all are on one machine, nothing of theirs goes over, or listens on, a network
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
ENDS_BY_ITSELF_S = 5.0  # an exchange with a process that is gone, whose connections are then closed
LOOKS_AFTER_S = (2e-5, 2e-3)  # whether an exchange is done: soon at first, then every so often


class LostProcess(RuntimeError):  # noqa: N818
    """One of the processes has ended before its time."""


class Group:
    """size: processes; rank: number of this one, from 0. Nothing is exchanged where there is only one."""

    any_stuck: ClassVar[bool] = False  # an exchange was given up, and PyTorch waits for it as long as the process lives

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size = size
        self.rank = rank
        self.trouble: str | None = None  # why one of them has ended before its time
        self.broke = False  # an exchange has failed
        self._joined = False
        self._device = "cpu"

    def join(
        self,
        store: Callable[[], Any],
        device: str,
        check: Callable[[], None] = lambda: None,
        interface: str | None = LOOPBACK,
    ) -> None:
        """Wait for the others.

        Args:
            store: makes the store at which they meet.
            check: called while it waits; what it raises ends the wait.
            interface: name of the network interface that they talk over; None for whatever the backend takes.

        Raises: LostProcess where one of them ends meanwhile.
        """
        if self.size == 1:
            return
        failures: list[BaseException] = []
        # In a thread: neither a rendezvous nor the making of NCCL's communicator ends by itself when another process
        # does, and nothing can end them
        meeting = threading.Thread(target=self._meet, args=(store, device, interface, failures), daemon=True)
        meeting.start()
        while meeting.is_alive():
            self.check()
            check()
            meeting.join(0.1)
        if failures:
            self.broke = True
            raise failures[0]
        self._joined, self._device = True, device
        self.check()

    def _meet(
        self, make_store: Callable[[], Any], device: str, interface: str | None, failures: list[BaseException]
    ) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _world

        # A group's keys in the store begin with its number. An earlier meeting of this process that failed has counted,
        # and the others, which are new, would wait at another number
        _world.group_count = 0
        if interface is not None:
            for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(setting, interface)
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # `lost` does that
        backend, excepthook = "nccl" if device == "cuda" else "gloo", sys.excepthook
        try:
            store = make_store()
            store.set_timeout(PATIENCE)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
            # NCCL makes its communicator at the first exchange
            dist.all_reduce(torch.zeros(1, device=device))
            if device == "cuda":
                torch.cuda.synchronize()
        except BaseException as failure:  # noqa: BLE001 - `join` raises it
            failures.append(failure)
        finally:
            sys.excepthook = excepthook  # PyTorch's own puts a number before every line

    def leave(self) -> None:
        """Exchange nothing any more."""
        if not self._joined:
            return
        self._joined = False
        import torch.distributed as dist

        if dist.is_initialized() and not Group.any_stuck:
            _end(dist)

    def lost(self, reason: str) -> None:
        """One has ended, as another thread has seen: whoever waits for it is to wait no more."""
        self.trouble = reason
        if not self._joined:
            return
        import torch.distributed as dist

        # an exchange over gloo is given up by `_done`, NCCL would wait for ever
        if dist.is_initialized() and dist.get_backend() == "nccl":
            _end(dist)

    def check(self) -> None:
        """Raises: LostProcess where what was exchanged may be no sum of all."""
        if self.trouble is not None:
            raise LostProcess(self.trouble)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The gradient of each becomes the sum of all processes' gradients of it, the same bits in every process."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flatten, unflatten = FLATTEN.fetch(), UNFLATTEN.fetch()
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # of an expert that no row of this share came to
                parameter.grad = torch.zeros_like(parameter)
        grads: list[Any] = [parameter.grad for parameter in trained]
        for together in buffers([(grad.dtype, grad.nbytes) for grad in grads]):
            if len(together) == 1:
                with self._exchange():
                    self._done(dist.all_reduce(grads[together[0]], async_op=self._over_gloo))
                continue
            parts = [grads[at] for at in together]
            flat = flatten(parts)
            with self._exchange():
                self._done(dist.all_reduce(flat, async_op=self._over_gloo))
            for part, summed in zip(parts, unflatten(flat, parts), strict=True):
                part.copy_(summed)
            del flat, summed  # before the next is made

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """[processes, numbers]: what each process has; numbers: of one dtype and shape [numbers] in all."""
        if self.size == 1:
            return numbers[None]
        import torch
        import torch.distributed as dist

        of_all = [torch.empty_like(numbers) for _ in range(self.size)]
        with self._exchange():
            self._done(dist.all_gather(of_all, numbers, async_op=self._over_gloo))
        return torch.stack(of_all)

    def gather_values(self, value: Any) -> list[Any]:
        """A value of each process, of what JSON has."""
        if self.size == 1:
            return [value]
        import torch

        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self._device)
        sizes = self.gather(torch.tensor([len(own)], device=self._device)).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self._device)
        padded[: len(own)] = own
        texts = self.gather(padded).cpu()
        return [json.loads(bytes(text[:size].tolist())) for text, size in zip(texts, sizes, strict=True)]

    def spread_folder(self, folder: Path) -> None:
        """Have the files of the first process's `folder` in everyone's. Raises: LostProcess, OSError."""
        names = sorted(path.name for path in folder.iterdir()) if self.rank == 0 else []
        for name, size in self.gather_values([[name, (folder / name).stat().st_size] for name in names])[0]:
            with (folder / Path(name).name).open("rb" if self.rank == 0 else "wb") as file:
                for start in range(0, size, BUFFER_BYTES):
                    self._spread_piece(file, min(BUFFER_BYTES, size - start))

    def _spread_piece(self, file: Any, num_bytes: int) -> None:
        import torch
        import torch.distributed as dist

        if self.rank == 0:
            piece = torch.frombuffer(bytearray(file.read(num_bytes)), dtype=torch.uint8).to(self._device)
        else:
            piece = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        with self._exchange():
            self._done(dist.broadcast(piece, 0, async_op=self._over_gloo))
        if self.rank != 0:
            file.write(piece.cpu().numpy().tobytes())

    @property
    def _over_gloo(self) -> bool:
        return self._joined and self._device == "cpu"

    def _done(self, work: Any) -> None:
        """Wait for an exchange over gloo, which by itself would wait for a host that was cut off until time ends.

        work: None of any other, which is done or queued.
        Raises: LostProcess.
        """
        if work is None:
            return
        pause, longest = LOOKS_AFTER_S
        given_up = None
        while not work.is_completed():
            if self.trouble is not None:
                given_up = given_up or time.monotonic() + ENDS_BY_ITSELF_S
                if time.monotonic() > given_up:
                    Group.any_stuck = True
                    self.check()
            time.sleep(pause)
            pause = min(2 * pause, longest)
        work.wait()

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """One of them may be lost before it, as another thread sees, and the group is then ended beneath it.

        Raises: LostProcess.
        """
        self.check()
        try:
            yield
        except (RuntimeError, ValueError):
            self.check()
            self.broke = True
            raise


def _end(dist: Any) -> None:
    """NCCL's own way out waits for the others, of which one may be gone."""
    if dist.get_backend() == "nccl":
        ABORT_GROUP.fetch()()
    else:
        dist.destroy_process_group()


def file_store(path: Path, size: int) -> Callable[[], Any]:
    """Where processes of one machine meet: a file that only they know, and that is not there yet."""

    def store() -> Any:
        import torch.distributed as dist

        return dist.FileStore(str(path), size)  # type: ignore[attr-defined]

    return store


def buffers(gradients: Sequence[tuple[Any, int]]) -> list[list[int]]:
    """Which gradients, by number, are summed in one go: neighbours of one dtype, up to BUFFER_BYTES.

    gradients: (dtype, bytes) of each.
    """
    groups: list[list[int]] = []
    for _, run in groupby(enumerate(gradients), key=lambda each: each[1][0]):
        filled = 0
        for at, (_, size) in run:
            if not filled or filled + size > BUFFER_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(at)
            filled += size
    return groups
