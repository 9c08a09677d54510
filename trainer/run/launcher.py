"""The other processes of a run on several GPUs, as the first one sees them: started, listened to, ended with it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError
from autoft.trainer.distributed.group import Group, file_store
from autoft.trainer.job import Job
from autoft.trainer.runtime import environment
from autoft.trainer.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from autoft.trainer.model.shared_host import SharedHost

ENDS_WITHIN_S = 5.0
SEEN_WITHIN_S = 5.0  # that a process has ended, after what it was to send did not come


class Peers:
    """gpus: what CUDA_VISIBLE_DEVICES is for each process, the first one included; nothing where they share a CPU.

    Nothing is started, and `group` is of one, until `start` is called with a job for several.
    """

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        self.gpus = gpus
        self.group = Group()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[subprocess.Popen[str]] = []
        self._listeners: list[threading.Thread] = []
        self._data_sha256: dict[int, str] = {}  # of what each that is ready has made of the data
        self._changed = threading.Condition()
        self._closing = False
        self._shared: SharedHost | None = None

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self.group.leave()
        if self._shared is not None:
            self._shared.close()
        for process in self._processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr] # which it takes for the end
        for process, listener in zip(self._processes, self._listeners, strict=True):
            try:
                process.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
            listener.join()
        if self._folder is not None:
            self._folder.cleanup()

    def start(self, job: Job, *, predicted_bytes: int | None, force: bool) -> None:
        """Have the others load what this process loads meanwhile. predicted_bytes, force: as `preflight` has them."""
        self.group = Group(job.num_gpus)
        if self.group.size == 1:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="autoft-", ignore_cleanup_errors=True)
        env = environment.of_child()
        if job.device == "cpu":
            import torch

            threads = max(1, torch.get_num_threads() // self.group.size)
            torch.set_num_threads(threads)
            env["OMP_NUM_THREADS"] = str(threads)
        memory = {"predicted_bytes": predicted_bytes, "force": force}
        order = {"job": job.to_dict(), "memory": memory, "rendezvous": str(self._file("rendezvous"))}
        for rank in range(1, self.group.size):
            visible = {"CUDA_VISIBLE_DEVICES": self.gpus[rank]} if self.gpus else {}
            with self._file(f"{rank}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "autoft.trainer.run.worker"],
                    env=env | visible,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    encoding="utf-8",
                )
            self._processes.append(process)
            self._listeners.append(threading.Thread(target=self._listen, args=(rank, process), daemon=True))
            self._listeners[-1].start()
            self._send(process, {**order, "rank": rank})

    def shared_host(self, job: Job) -> SharedHost | None:
        """Where the base that these processes stream lies, once for all; None where there is none."""
        if not self._processes or not job.recipe.streamed_layers:
            return None
        from autoft.trainer.model.shared_host import SharedHost

        self._shared = SharedHost(self._file("."), first=True)
        return self._shared

    def join(self, checkpoint: Checkpoint, job: Job, data_sha256: str, check: Callable[[], None]) -> None:
        """Wait until all are loaded, and have them go on from `checkpoint`. check: called while it waits.

        Raises: LostProcess, DataError.
        """
        with self._changed:
            while len(self._data_sha256) < len(self._processes):
                self.group.check()
                check()
                self._changed.wait(0.1)
        if self._shared is not None:
            self._shared.close()
        if set(self._data_sha256.values()) - {data_sha256}:
            raise DataError(f"{job.data}: has changed while the processes were reading it", fix="run again")
        for process in self._processes:
            self._send(process, {"checkpoint": str(checkpoint.folder), "run_id": checkpoint.run_id})
        if self._processes:
            self.group.join(file_store(self._file("rendezvous"), self.group.size), job.device, check)

    def lost(self) -> str | None:
        """Why one has ended before its time; to be asked when something failed, for that may be why it did."""
        with self._changed:
            if self._processes:
                self._changed.wait_for(lambda: self.group.trouble is not None, SEEN_WITHIN_S)
            return self.group.trouble

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / name

    def _send(self, process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # that it has ended is told where it is heard
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _listen(self, rank: int, process: subprocess.Popen[str]) -> None:
        """Until it ends. It says that it is ready, then that it is done, or what has gone wrong."""
        assert process.stdout is not None
        message: dict[str, Any] = {}
        with process.stdout, suppress(ValueError):  # half a line, of one that was killed
            for line in process.stdout:
                message = json.loads(line)
                if "ready" in message:
                    with self._changed:
                        self._data_sha256[rank] = message["ready"]
                        self._changed.notify_all()
        code = process.wait()
        if self._closing or "done" in message:
            return
        reason = message.get("error") or self._last_words(rank) or f"exit code {code}"
        with self._changed:
            self.group.lost(f"process {rank + 1} of {self.group.size} has ended: {reason}")
            self._changed.notify_all()

    def _last_words(self, rank: int) -> str:
        lines = self._file(f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""
