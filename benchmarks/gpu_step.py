"""One recipe, run for real in this process: peaks of memory phase by phase, seconds of a step, where memory ran out.

    python benchmarks/gpu_step.py < request.json      what gpu_validate.py asks of a fresh process
    python benchmarks/gpu_step.py --serve             a request a line, each in a fork that the libraries are loaded in

request: recipe, weights (a folder), device, gpu (UUID), card_bytes and cap_bytes (both may be null), alone (whether no
other run is on the device: only then are there seconds, what the card holds beside PyTorch's own, and where the GPU's
time goes), accumulation (1 where left out; two micro-batches stand for more, since gradients live through the second
forward as through all later ones), timed (true where left out), after (false where left out: an evaluation's loss and a
checkpoint follow the steps). The result is one JSON object on a line; a second line adds where the GPU's time goes, as
the profiler may take the process with it. Bytes on a GPU are PyTorch's own counts, on a CPU the growth of the process.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from child import tell, work_and_leave

from autoft.trainer.runtime import environment, peak_memory

TIMED_STEPS = 3
# Words in the names of kernels, by what they are for; the first kind that has one
KERNELS = {
    "attention": ("flash", "fmha", "attention"),
    "matrix products": ("gemm", "cutlass", "nvjet", "cublas", "xmma"),
    "dequantization": ("Dequant", "dequant"),
    "copies": ("Memcpy", "Memset"),
}
Json = dict[str, Any]


def main() -> None:
    environment.prepare()
    if sys.argv[1:] == ["--serve"]:
        _serve()
    else:
        for record in measure(json.load(sys.stdin)):
            tell(record)


def _serve() -> None:
    """Answer the requests of standard input in forks. What they share touches no device: it is there before CUDA is."""
    import torch
    import torch._dynamo

    for line in sys.stdin:
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                print(json.dumps({"error": f"ended with {os.waitstatus_to_exitcode(status)}"}), flush=True)
            continue
        assert not torch.cuda.is_initialized()
        code = 0
        try:
            measured: Json = {}
            for record in measure(json.loads(line)):
                measured |= record
            print(json.dumps(measured))
        except BaseException as error:  # noqa: BLE001 - told to whoever asked; the next request is another's
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread of PyTorch's may want Python's lock while Python ends, and abort


def measure(request: Json) -> Iterator[Json]:
    """Load and train for a few steps; peaks in bytes, seconds of a step, and where memory ran out if it did.

    Then, of a timed step, where the GPU's time goes.
    """
    from autoft.trainer.recipe import Recipe

    device = request["device"]
    used_before = used_bytes(request["gpu"])
    import torch

    recipe, weights = Recipe.from_dict(request["recipe"]), Path(request["weights"])
    if device == "cpu":
        Run(recipe, weights, "meta")  # imports what is imported late, which would pass for the model's memory
    if device == "cuda":
        torch.cuda.init()  # its counters are not there before
    _cap(request)
    baseline = peak_memory.resident_bytes()
    phases: dict[str, tuple[int, int]] = {}
    after = request.get("after", False)
    at = "load"

    def phase(name: str, step: int | None, work: Any) -> Any:
        nonlocal at
        at = name if step is None else f"{name} of step {step}"
        with peak_memory.PeakMemory(device, baseline) as peak:
            result = work()
            if device == "cuda":
                torch.cuda.synchronize()
        found = (peak.peak_bytes, peak.peak_reserved_bytes or 0)
        key = name if step in (None, 2) else "first_step"
        before = phases.get(key, (0, 0))
        phases[key] = (max(before[0], found[0]), max(before[1], found[1]))
        return result

    measured: Json = {}
    try:
        run = phase("load", None, lambda: Run(recipe, weights, device))
        for step in (1, 2):
            for _ in range(min(2, request.get("accumulation", 1))):
                run.batch, loss = {}, None
                loss = phase("forward", step, run.forward)
                phase("backward", step, loss.backward)
            phase("optimizer", step, run.optimize)
            del loss  # as the trainer, which reads it after the step
            run.forget()
        if after:
            phase("evaluation", None, run.evaluate)
            phase("save", None, run.save)
        at = "timed steps"
        seconds = [_seconds(run) for _ in range(TIMED_STEPS)] if request.get("timed", True) else []
        if request["alone"] and seconds:
            measured["step_time_s"] = statistics.median(seconds)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        measured["died_in"] = at
    steady = [phases[name] for name in ("forward", "backward", "optimizer") if name in phases]
    if len(steady) == 3:
        measured["peak_allocated_bytes"] = max(allocated for allocated, _ in steady)
        if device == "cuda":
            measured["peak_reserved_bytes"] = max(reserved for _, reserved in steady)
    measured["phases"] = {name: allocated for name, (allocated, _) in phases.items()}
    if device == "cuda":
        measured["reserved"] = {name: reserved for name, (_, reserved) in phases.items()}
        measured["retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
    if device == "cuda" and request["alone"]:
        context = used_bytes(request["gpu"]) - used_before - torch.cuda.memory_reserved()
        measured["context_bytes"] = context
        measured["device_bytes"] = context + max((reserved for _, reserved in phases.values()), default=0)
    yield measured
    if device == "cuda" and "step_time_s" in measured:
        yield {"gpu_time": _gpu_time(run, measured["step_time_s"])}


def _seconds(run: Run) -> float:
    """Of one step."""
    began = time.perf_counter()
    run.forward().backward()
    run.optimize()
    run.forget()
    if run.device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - began


def _gpu_time(run: Run, step_time_s: float) -> dict[str, float]:
    """Shares of a step's seconds by what the GPU does in them; in the rest it waits for the host."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        _seconds(run)
    shares = dict.fromkeys([*KERNELS, "other"], 0.0)
    for kernel in seen.key_averages():
        kind = next((kind for kind, words in KERNELS.items() if any(word in kernel.key for word in words)), "other")
        shares[kind] += kernel.self_device_time_total / 1e6 / step_time_s
    return {kind: round(share, 3) for kind, share in shares.items()}


class Run:
    """A model in training, as the trainer builds it: `build_model`, the objective's loss, `build_optimizer`."""

    def __init__(self, recipe: Any, weights: Path, device: str) -> None:
        from transformers import AutoConfig

        from autoft.trainer.model.build import build_model
        from autoft.trainer.optimizers.optim import build_optimizer

        config = AutoConfig.from_pretrained(weights)
        self.recipe, self.device, self.vocabulary = recipe, device, config.vocab_size
        folder = None if device == "meta" else weights
        self.model = build_model(recipe, config=config, weights=folder, device=device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.trained, recipe, learning_rate=1e-4)
        self.batch: Json = {}

    def forward(self) -> Any:
        import torch
        from packed_rows import packed_batch

        from autoft.trainer.objectives import objective_of

        objective = objective_of(self.recipe)
        if self.recipe.packing:
            rows = packed_batch(self.recipe, self.vocabulary)
        else:
            ids_BS = torch.randint(self.vocabulary, (self.recipe.micro_batch, self.recipe.seq_len))
            rows = objective.dummy_batch(self.recipe, ids_BS)
        self.batch = {name: tensor.to(self.device) for name, tensor in rows.items()}
        return objective.loss(self.model, self.batch, self.recipe)

    def optimize(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def evaluate(self) -> float:
        """The held-out loss of as many of the longest rows as an evaluation takes at once."""
        from types import SimpleNamespace

        from autoft.trainer.data.tokens import Example
        from autoft.trainer.evaluation.evaluate import longest_batch, mean_loss

        ids = list(range(3, 3 + self.recipe.seq_len))
        ids = [number % self.vocabulary for number in ids]
        batch = longest_batch([Example(ids, ids)], self.recipe)
        return mean_loss(self.model, SimpleNamespace(pad_token_id=0), batch, self.recipe)

    def save(self) -> None:
        """A checkpoint of weights and optimizer, to a folder that goes."""
        from autoft.trainer.storage.checkpoint import write_checkpoint

        weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        state = {"weights": weights, "optimizer": self.optimizer.state_dict()}
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), 1, state, {}, run_id="", identity={})

    def forget(self) -> None:
        """What ends with a step: its batch and its gradients."""
        self.batch = {}
        self.optimizer.zero_grad()


def _cap(request: Json) -> None:
    """Keep this process to `cap_bytes`, on a GPU to the allocator's and on a CPU on top of what imports have taken."""
    cap, card = request["cap_bytes"], request["card_bytes"]
    if cap is None:
        return
    if request["device"] == "cpu":
        import resource

        import psutil

        limit = psutil.Process().memory_info().vms + cap
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0, cap) / total)
    # transformers sizes its first block by what the card has
    torch.cuda.mem_get_info = lambda device=None: (max(0, cap - torch.cuda.memory_reserved()), card)


def used_bytes(gpu: str | None) -> int:
    """Of the whole GPU, by any process. NVML, so that asking takes no memory there."""
    if gpu is None:
        return 0
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(gpu)).used)


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        # under a cap oneDNN, too, has no memory for the code that it makes
        if peak_memory.is_out_of_memory(error) or "could not create a primitive" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    work_and_leave(main)
