"""How much memory a run really takes, in the unit in which it was predicted."""

from __future__ import annotations

import gc
import re
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from autoft.profiles.host import available_ram

STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak over a `with` block. On a GPU PyTorch's own counters; on the CPU the growth of the process, sampled.

    baseline_bytes: resident size of the process before the model was loaded (CPU only).
    peak_reserved_bytes: GPU only, what PyTorch held of the device in the part that was last taken.
    """

    SAMPLE_EVERY_S = 0.02

    def __init__(self, device: str, baseline_bytes: int = 0) -> None:
        self.device = device
        self.baseline_bytes = baseline_bytes
        self.peak_reserved_bytes: int | None = None
        self._peak_bytes = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peak_bytes = self.peak_bytes
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def peak_bytes(self) -> int:
        """The most that was held since the block began, or since `take_peak`."""
        if self.device == "cuda" and not self._done.is_set():
            import torch

            self.peak_reserved_bytes = torch.cuda.max_memory_reserved()
            return int(torch.cuda.max_memory_allocated())
        return self._peak_bytes

    def take_peak(self) -> int:
        """peak_bytes, which begins anew."""
        peak = max(self.peak_bytes, self.now_bytes())
        self._peak_bytes = 0
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        return peak

    def now_bytes(self) -> int:
        """Memory held at this moment, in the same unit as the peak."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.memory_allocated())
        return resident_bytes() - self.baseline_bytes

    def headroom(self, peak_bytes: int) -> tuple[int, int]:
        """(bytes of the device that a step which holds peak_bytes leaves free, bytes of the device)."""
        if self.device == "cuda":
            import torch

            free, total = torch.cuda.mem_get_info()
            return free + torch.cuda.memory_reserved() - peak_bytes, total
        total, available = available_ram()
        return available - max(0, peak_bytes - self.now_bytes()), total

    def _sample(self) -> None:
        while not self._done.is_set():
            self._peak_bytes = max(self._peak_bytes, self.now_bytes())
            self._done.wait(self.SAMPLE_EVERY_S)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resident_bytes() -> int:
    """Resident memory of this process in bytes.

    On Linux without pages of files, such as a model's that is mapped while it is read: the kernel takes them back as
    it needs them, and no tensor is in them.
    """
    import psutil

    with suppress(OSError, ValueError, IndexError):
        status = STATUS.read_text(encoding="ascii", errors="replace")
        kib = [int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
        if kib:
            return 1024 * sum(kib)
    return int(psutil.Process().memory_info().rss)


# Words of the forms that the end of memory takes: PyTorch's own, the driver's, cuBLAS's and cuDNN's, that of PyTorch
# when NVML fails while it says so, and the CPU's. oneDNN says "primitive descriptor" where it knows no such kernel.
_EXHAUSTED = re.compile(
    "out of memory|can't allocate memory|ALLOC_FAILED|cudaErrorMemoryAllocation|NVML_SUCCESS =="
    "|could not create a primitive(?! descriptor)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device or the host had no memory left."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_EXHAUSTED.search(str(error)))


def is_device_lost(error: BaseException) -> bool:
    """Whether `error` says that the GPU answers no more: fallen off the bus, reset, or lost while its host slept."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)
