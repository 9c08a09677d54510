"""What does this machine do in a second? Measured with the kernels of a training step, in a process of its own.

`measure` is the parent: it starts a child, takes readings as they come and ends it when the time is up, because no
kernel can be stopped from within: a float16 product takes a CPU without such arithmetic a minute. `readings` is what
the child does.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from autoft.profiles.bench_store import BYTES, FLOPS, Reading, check, folder
from autoft.trainer.recipe import Dtype
from autoft.trainer.runtime import environment
from autoft.units import MIB

if TYPE_CHECKING:
    import torch

Clock = Callable[[], float]
BUDGET_S = 30.0
# Of the budget: the child stops by itself so long before it is ended, and each thing gets so much
MARGIN, SHARE = 0.07, 0.035
FEWEST_REPEATS, MOST_REPEATS = 3, 50
REPEAT_S, MOST_LAUNCHES = 0.02, 500  # of one repeat on a GPU
# Tokens of a micro-batch, and (inner, outer) of layers: SmolLM2-135M's, a 1B model's and a 7B model's
TOKENS = {"cuda": 2048, "cpu": 512}
LAYERS = ((576, 1536), (2048, 8192), (4096, 4096))
# batch, heads, tokens, width of a head
ATTENTIONS = {"cuda": ((2, 16, 1024, 64), (1, 32, 2048, 128)), "cpu": ((1, 8, 256, 64), (1, 8, 512, 64))}
PACKED = {"cuda": (4096, 4096), "cpu": (2048, 2048)}
COPY_BYTES = {"cuda": 512 * MIB, "cpu": 128 * MIB}
ADAMW_PARAMS = {"cuda": 2**25, "cpu": 2**22}
PIECE_BYTES = 4 * MIB
LINK_BYTES = 256 * MIB
DISK_BYTES, DISK_CHUNK_BYTES = 256 * MIB, 8 * MIB


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one device. uuid, name: None for the CPU. left_out: what was not measured, each with its reason."""

    uuid: str | None
    name: str | None
    readings: tuple[Reading, ...]
    left_out: tuple[str, ...]


def measure(budget_s: float = BUDGET_S, tell: Callable[[str], None] = lambda _: None) -> tuple[Measured, ...]:
    """Every GPU that torch sees, or else the CPU, in at most `budget_s` in all, imports included.

    tell: is given a line for each thing measured. What came before the end, or before a crash, counts.
    """
    ending = time.monotonic() + budget_s
    words = [sys.executable, "-P", "-m", "autoft.planner.timing.microbench", str(time.time() + budget_s * (1 - MARGIN))]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            words,
            env=environment.of_child(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        timer = threading.Timer(max(0.0, ending - time.monotonic()), _kill, (child,))
        timer.start()
        try:
            with child:
                devices = _collect(child.stdout or (), tell)
            late = not timer.is_alive()
        finally:
            timer.cancel()
            _kill(child)
        if child.returncode and devices and not late:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            devices[-1]["left_out"].append(f"the rest: the bench stopped, {last[:200]}")
        elif late and devices:
            devices[-1]["left_out"].append("the rest: out of time")
    return tuple(
        Measured(one["uuid"], one["name"], tuple(one["readings"]), tuple(one["left_out"]))
        for one in devices
        if one["readings"]
    )


def _collect(lines: Any, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = []
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # cut short by the end
        if "device" in message:
            devices.append({**message["device"], "readings": [], "left_out": []})
        elif "reading" in message:
            reading = check(Reading(**{**message["reading"], "shape": tuple(message["reading"]["shape"])}))
            devices[-1]["readings"].append(reading)
            tell(f"{reading.what} {reading.dtype}".strip())
        else:
            devices[-1]["left_out"].append(message["left_out"])
    return devices


def _kill(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(psutil.Error):
        psutil.Process(child.pid).kill()


def main(until: float) -> None:
    """The child: one JSON object a line on stdout, what libraries print on stderr. until: seconds since the epoch."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    environment.prepare()
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else ["cpu"]
    for number, device in enumerate(devices):
        about = torch.cuda.get_device_properties(device) if device != "cpu" else None
        card = {"uuid": str(about.uuid), "name": about.name} if about else {"uuid": None, "name": None}
        print(json.dumps({"device": card}), file=answers)
        seconds = (until - time.time()) / (len(devices) - number)
        for result in readings(device, seconds):
            named = {"left_out": result} if isinstance(result, str) else {"reading": result.to_dict()}
            print(json.dumps(named), file=answers)
    answers.close()


def readings(device: str, seconds: float, clock: Clock = time.perf_counter) -> Iterator[Reading | str]:
    """Readings of `device` ("cuda:0", "cpu") as they come, and what was left out, with its reason; within `seconds`.

    What the planner needs most comes first. clock: on a CPU, of a machine that others use too.
    """
    bench = _Bench(device, seconds, clock)
    tasks: list[tuple[str, Callable[[], Iterator[Reading | str]]]] = [
        *((f"product {dtype}", bench.products(dtype)) for dtype in bench.dtypes[:2]),
        ("memory", bench.memory),
        ("4-bit", bench.four_bit),
        *((f"attention {dtype}", bench.attention(dtype)) for dtype in bench.dtypes[:2]),
        ("host link", bench.host_link),
        ("adamw", bench.adamw),
        ("disk", bench.disk),
        *((f"product {dtype}", bench.products(dtype)) for dtype in bench.dtypes[2:]),
    ]
    for name, task in tasks:
        try:
            yield from task()
        except _NoTime:
            yield f"{name}: out of time"
        except (RuntimeError, OSError, ImportError, AttributeError) as error:
            yield f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        bench.let_go()


class _NoTime(Exception):  # noqa: N818 - the end of the budget, no error
    pass


class _Bench:
    """The state of one device's bench: until when, and how its time is read."""

    def __init__(self, device: str, seconds: float, clock: Clock) -> None:
        import torch

        self.device, self.clock = torch.device(device), clock
        self.kind = self.device.type
        self.share_s = SHARE * seconds
        self.until = time.monotonic() + seconds
        self.dtypes: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
        if self.kind == "cuda":
            torch.cuda.set_device(self.device)
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            self.dtypes = ("bfloat16", "float16", "float32") if native else ("float16", "float32")

    def products(self, dtype: Dtype) -> Callable[[], Iterator[Reading | str]]:
        def run() -> Iterator[Reading | str]:
            tokens = TOKENS[self.kind]
            rate = self._product(dtype, 64, 576, 576).median  # small: to tell what the others will take
            for inner, outer in LAYERS:
                flops = 2.0 * tokens * inner * outer
                if not self._fits(flops / rate):
                    yield f"product {dtype} {tokens}x{inner}x{outer}: too slow, {flops / rate:.1f} s each"
                    return
                reading = self._product(dtype, tokens, inner, outer)
                rate = reading.median
                yield reading

        return run

    def _product(self, dtype: Dtype, tokens: int, inner: int, outer: int) -> Reading:
        left, right = self._random(dtype, tokens, inner), self._random(dtype, outer, inner).t()
        times = self._times(lambda: left @ right)
        return _reading("product", FLOPS, 2.0 * tokens * inner * outer, times, dtype, (tokens, inner, outer))

    def memory(self) -> Iterator[Reading | str]:
        """On a GPU a copy; on a CPU what `planner.time.measure_cpu_bandwidth` times, and a copy besides."""
        import torch

        from autoft.planner.timing.roofline import NEW_PAGES_BYTES

        if self.kind == "cpu":
            whole = torch.ones(NEW_PAGES_BYTES // 4)
            pieces = list(whole.view(-1, PIECE_BYTES // 4))
            moved = 2.0 * whole.nbytes
            yield _reading("memory", BYTES, moved, self._times(lambda: [piece * piece for piece in pieces][-1]))
            yield _reading("new pages", BYTES, moved, self._times(lambda: whole * whole))
        length = COPY_BYTES[self.kind]
        if self.kind == "cuda":
            length = min(length, torch.cuda.mem_get_info(self.device)[0] // 4)
        source = torch.zeros(length, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = self._times(lambda: target.copy_(source))
        yield _reading("copy", BYTES, 2.0 * length, times, shape=(length,))

    def four_bit(self) -> Iterator[Reading | str]:
        """Unpacking of NF4 weights, counted as the planner counts it, and a product by them."""
        import bitsandbytes as bnb
        import torch

        outer, inner = PACKED[self.kind]
        tokens = TOKENS[self.kind]
        for dtype in self.dtypes[:1] if self.kind == "cuda" else self.dtypes[:2]:
            with torch.no_grad():
                packed, state = bnb.functional.quantize_4bit(self._random(dtype, outer, inner), quant_type="nf4")
                moved = float(packed.nbytes + state.absmax.nbytes + outer * inner * _itemsize(dtype))
                times = self._times(lambda: bnb.functional.dequantize_4bit(packed, state))  # noqa: B023 - now
                yield _reading("unpack", BYTES, moved, times, dtype, (outer, inner))
                left = self._random(dtype, tokens, inner)
                times = self._times(lambda: bnb.matmul_4bit(left, packed.t(), quant_state=state))  # noqa: B023
                flops = 2.0 * tokens * inner * outer
                yield _reading("4-bit product", FLOPS, flops, times, dtype, (tokens, inner, outer))

    def attention(self, dtype: Dtype) -> Callable[[], Iterator[Reading | str]]:
        def run() -> Iterator[Reading | str]:
            import torch

            for batch, heads, tokens, width in ATTENTIONS[self.kind]:
                q, k, v, upstream = (self._random(dtype, batch, heads, tokens, width) for _ in range(4))
                made = [tensor.requires_grad_() for tensor in (q, k, v)]

                def step(made: Sequence[torch.Tensor] = made, upstream: torch.Tensor = upstream) -> Any:
                    q, k, v = made
                    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                    return torch.autograd.grad(attended, made, upstream)

                # planner/tracing/work.py: half of 4BHSSD is masked; the backward is two and a half times the forward
                flops = 3.5 * 2.0 * batch * heads * tokens * tokens * width
                yield _reading("attention", FLOPS, flops, self._times(step), dtype, (batch, heads, tokens, width))

        return run

    def host_link(self) -> Iterator[Reading | str]:
        if self.kind == "cpu":
            return
        import torch

        pageable = torch.zeros(LINK_BYTES, dtype=torch.uint8)
        pinned, there = pageable.pin_memory(), torch.empty_like(pageable, device=self.device)
        moved = float(LINK_BYTES)
        for what, target, source, note in (
            ("to device", there, pinned, "pinned"),
            ("to device", there, pageable, "pageable"),
            ("from device", pinned, there, "pinned"),
        ):
            times = self._times(lambda: target.copy_(source, non_blocking=True))  # noqa: B023 - called at once
            yield _reading(what, BYTES, moved, times, shape=(LINK_BYTES,), note=note)

    def adamw(self) -> Iterator[Reading | str]:
        """A step reads weight, gradient and two moments and writes three of them, in float32: 28 bytes a weight."""
        import torch

        params = ADAMW_PARAMS[self.kind]
        weights = [torch.nn.Parameter(torch.zeros(params // 8, device=self.device)) for _ in range(8)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.AdamW(weights)
        yield _reading("adamw", BYTES, 28.0 * params, self._times(optimizer.step), "float32", (params,))

    def disk(self) -> Iterator[Reading | str]:
        """A new file where AUTOFT_HOME is, written through and read back."""
        place = folder()
        missing = not place.exists()
        place.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".disk-", dir=place)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                written, seconds = self._write(file)
            yield _reading("disk write", BYTES, float(written), [seconds], shape=(written,), note="to the disk itself")
            times, note = self._read(path, written)
            yield _reading("disk read", BYTES, float(written), times, shape=(written,), note=note)
        finally:
            path.unlink(missing_ok=True)
            if missing:
                with contextlib.suppress(OSError):
                    place.rmdir()

    def _write(self, file: Any) -> tuple[int, float]:
        """Bytes written, as many as fit in a share or two, and the seconds that took."""
        chunk, written, began = os.urandom(DISK_CHUNK_BYTES), 0, time.perf_counter()
        while written < DISK_BYTES and (not written or time.perf_counter() - began < 2 * self.share_s):
            file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            written += len(chunk)
        return written, time.perf_counter() - began

    def _read(self, path: Path, length: int) -> tuple[list[float], str]:
        """Seconds of each reading of the whole file, and past which caches it went."""
        buffer = mmap.mmap(-1, DISK_CHUNK_BYTES)  # on a page's boundary, as O_DIRECT wants it
        direct = getattr(os, "O_DIRECT", None)
        if direct is not None:
            with contextlib.suppress(OSError):
                return self._read_all(path, os.O_RDONLY | direct, buffer, length), "past the page cache (O_DIRECT)"
        note = "page cache dropped before" if hasattr(os, "posix_fadvise") else "through the page cache: an upper bound"
        return self._read_all(path, os.O_RDONLY | getattr(os, "O_BINARY", 0), buffer, length), note

    def _read_all(self, path: Path, flags: int, buffer: mmap.mmap, length: int) -> list[float]:
        times: list[float] = []
        while not times or (len(times) < FEWEST_REPEATS and sum(times) < 2 * self.share_s):
            if hasattr(os, "posix_fadvise"):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with open(os.open(path, flags), "rb", buffering=0) as file:
                began, done = time.perf_counter(), 0
                while (got := file.readinto(buffer)) and done < length:
                    done += got
                times.append(time.perf_counter() - began)
        return times

    def _random(self, dtype: Dtype, *shape: int) -> torch.Tensor:
        import torch

        from autoft.trainer.recipe import torch_dtype

        return torch.randn(*shape, device=self.device).to(torch_dtype(dtype))

    def _fits(self, seconds: float) -> bool:
        """Whether something that takes so long each time can be repeated often enough."""
        left = self.until - time.monotonic()
        return (FEWEST_REPEATS + 1) * seconds < min(left, 4 * self.share_s)

    def _times(self, run: Callable[[], Any]) -> list[float]:
        """Seconds of each repeat, after one to warm up, until this thing's share of the budget is used.

        Raises: _NoTime where not even the fewest repeats fit.
        """
        warm_up = self._once(run)
        if self.kind == "cuda" or not self._fits(warm_up):  # the first may compile or load
            warm_up = self._once(run)
        if not self._fits(warm_up):
            raise _NoTime
        # many launches of a quick kernel count as one repeat: a card takes a moment to raise its clocks
        launches = max(1, min(MOST_LAUNCHES, int(REPEAT_S / max(warm_up, 1e-6)))) if self.kind == "cuda" else 1
        times: list[float] = []
        began = time.monotonic()
        while len(times) < FEWEST_REPEATS or (len(times) < MOST_REPEATS and time.monotonic() - began < self.share_s):
            times.append(self._once(run, launches))
        return times

    def _once(self, run: Callable[[], Any], launches: int = 1) -> float:
        """Seconds of each of so many launches."""
        if self.kind == "cuda":
            return self._once_on_cuda(run, launches)
        began = self.clock()
        for _ in range(launches):
            run()
        return (self.clock() - began) / launches

    def _once_on_cuda(self, run: Callable[[], Any], launches: int) -> float:
        """By the device's own clock: what the host takes to launch hides behind what was launched before."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device):
            start.record()
            for _ in range(launches):
                run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / launches

    def let_go(self) -> None:
        """Give memory back, so that the next thing finds all of it."""
        if self.kind == "cuda":
            import torch

            torch.cuda.empty_cache()


def _itemsize(dtype: Dtype) -> int:
    return 4 if dtype == "float32" else 2


def _reading(
    what: str, unit: str, amount: float, times: Sequence[float], dtype: str = "", shape: tuple[int, ...] = (),
    note: str = "",
) -> Reading:  # fmt: skip
    """amount: FLOPs or bytes of one repeat. A clock too coarse for a repeat counts as a nanosecond."""
    seconds = [max(second, 1e-9) for second in times]
    return check(
        Reading(
            what=what,
            unit=unit,
            median=amount / statistics.median(seconds),
            least=amount / max(seconds),
            most=amount / min(seconds),
            repeats=len(times),
            dtype=dtype,
            shape=shape,
            note=note,
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))
    # Right after a backward Python's own end may abort: PyTorch's device threads then ask for a lock that is gone
    sys.stderr.flush()
    os._exit(0)
