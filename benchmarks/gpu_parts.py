"""The parts of gpu_evidence.py, each a process: one line of JSON for each piece of it as soon as that is there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_plans
import gpu_run
import gpu_validate
import trainer_speed
from child import tell, work_and_leave
from gpu_step import used_bytes
from shapes import add_tokenizer
from side_by_side import GIB, SideBySide, Weights

from autoft.errors import AutoftError
from autoft.planner.estimator.target import target_of
from autoft.planner.search.parallel import end_with_parent
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Gpu, Hardware
from autoft.trainer.runtime import environment

Json = dict[str, Any]
Piece = tuple[str, Json]
# Of gpu_cases.jsonl, the most telling first, and few shapes: weights take their time to write
RECIPES = (
    "llama-3.2-1b-qlora-s2048-b2-ckpt",
    "llama-3.2-1b-lora-s512-b8",
    "qwen2.5-0.5b-lora-s1024-b4",
    "qwen2.5-0.5b-lora-s8192-b1-ckpt",
    "llama-3.2-1b-lora-s2048-b2-packing=true",
    "llama-3.2-1b-qlora-s1024-b4-quant_type=int8",
    "llama-3.1-8b-qlora-s2048-b1-ckpt-paged_adamw_8bit",
    "llama-3.1-8b-lora-s1024-b2-ckpt",
    "llama-3.1-8b-qlora-s2048-b2-ckpt-streamed_layers=32",
    "llama-3.1-8b-qlora-s512-b1",
    "llama-3.1-8b-qlora-s1024-b8-ckpt",
    "llama-3.1-8b-qlora-s8192-b1-ckpt",
    "llama-3.1-8b-qlora-s2048-b1-ckpt-quant_type=int8",
    "llama-3.1-8b-qlora-s4096-b2-ckpt-offload_checkpoints=true-packing=true",
    "tinyllama-1.1b-lora-s2048-b2-eager",
    "gemma-3-1b-lora-s2048-b2-ckpt",
    "qwen2.5-1.5b-qlora-s1024-b4",
    "qwen3-4b-qlora-s4096-b1-ckpt-adamw_8bit",
    "qwen3-4b-lora-s2048-b2-ckpt",
    "gemma-2-2b-lora-s2048-b1-ckpt-eager",
    "olmoe-1b-7b-qlora-s2048-b2-ckpt-experts_4bit=True",
)
CAPPED = (
    gpu_plans.Case("llama-3.2-1b", 2048, 8),
    gpu_plans.Case("qwen3-4b", 2048, 12),
    gpu_plans.Case("llama-3.1-8b", 2048, 16),
    gpu_plans.Case("llama-3.1-8b", 4096, 24),
)
SMOKE_CAPPED = gpu_plans.Case("tiny-llama", 32768, 2.1)  # on a GPU: with checkpointing it fits, and without it does not
# Of a whole run, and of the trainers side by side
SHAPE, PARAMS, CAP_GIB = "llama-3.2-1b", 1_235_814_400, 8.0
SMOKE_SHAPE, SMOKE_PARAMS = "tiny-smollm2", 8_000_000
BENCH_S, SMOKE_BENCH_S = 40, 120  # imports included
MANY_CORES = 8  # for planning and measuring at once
RUN_ROWS, SPEED_ROWS = 256, 48
KILLED = {"micro_batch": 8, "accumulation": 1, "eval_rows": 8, "max_new_tokens": 0, "dropout": 0.0}
# After which step of how many the killed run's memory shrinks, and how often its row says the same
LONG_RUN, SMOKE_RUN = ({"max_steps": 30, "save_steps": 4}, 20, 12), ({"max_steps": 8, "save_steps": 2}, 5, 3)
# Of doctor: what is about folders and the network, not about the card
NOT_OF_THE_CARD = ("AUTOFT_HOME", "HF_HOME", "hub", "token")


@dataclass(slots=True)
class Turn:
    """One call of a part. scratch: a folder for weights and runs. done: the pieces of earlier calls. until: epoch."""

    smoke: bool
    scratch: Path
    done: frozenset[str]
    until: float
    stopped: bool = False
    hardware: Hardware = field(default_factory=detect)
    _began: float | None = None
    _longest_s: float = 0.0

    def wants(self, piece: str) -> bool:
        """Whether this piece is to be done now: it is new, and there is time for one as long as the longest so far."""
        now = time.time()
        if self._began is not None:
            self._longest_s = max(self._longest_s, now - self._began)
        self._began = None
        if piece in self.done:
            return False
        if self.stopped or now + self._longest_s > self.until:
            self.stopped = True
            return False
        self._began = now
        return True

    @property
    def gpu(self) -> Gpu | None:
        """That a run would take; None is this CPU."""
        if not self.hardware.gpus:
            return None
        return target_of(self.hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda: None).gpu

    @property
    def room_bytes(self) -> float:
        """Of the card."""
        return math.inf if self.gpu is None else self.gpu.total_bytes

    def weights(self) -> Weights:
        """In the scratch folder, for all parts."""
        return Weights(self.scratch / "weights")

    def model(self) -> Path:
        """A folder that `autoft run` takes."""
        shape, params = (SMOKE_SHAPE, SMOKE_PARAMS) if self.smoke else (SHAPE, PARAMS)
        return add_tokenizer(self.weights().of(shape, params, SideBySide(1)))


def checks(turn: Turn) -> Iterator[Piece]:
    """What doctor finds, and what the bench of probe measures."""
    for name, pick, words in (
        ("doctor", _doctor, ()),
        ("probe", _probe, ("--bench", "--seconds", str(SMOKE_BENCH_S if turn.smoke else BENCH_S))),
    ):
        if turn.wants(name):
            try:
                yield name, pick(_autoft(name, *words, "--json"))
            except RuntimeError as error:
                yield name, {"error": str(error)}


def _doctor(found: Json) -> Json:
    kept = [finding for finding in found["findings"] if finding["name"] not in NOT_OF_THE_CARD]
    return {"findings": kept, "failed": [finding["name"] for finding in kept if finding["status"] == "failed"]}


def _probe(found: Json) -> Json:
    gpus = [{**gpu, "uuid": None, "processes": []} for gpu in found["gpus"]]
    return {"gpus": gpus, "notes": found["notes"], "bench": found["bench"]}


def recipes(turn: Turn) -> Iterator[Piece]:
    """Memory and step time of recipes, each alone on the card. The next is predicted while one is measured."""
    cases = {case["id"]: case for case in gpu_validate.read_cases()}
    wanted = gpu_validate.SMOKE_CASES[:2] if turn.smoke else [cases[name] for name in RECIPES]
    predict = gpu_validate.Predictor(turn.gpu, turn.scratch / "configs")
    weights, none = turn.weights(), SideBySide(1)
    running: tuple[str, Json, Future[Json]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for case in wanted:
            if not turn.wants(case["id"]):
                continue
            if running is not None and _cores() < MANY_CORES:  # what predicts would be in the way of what is timed
                yield _measured(running)
                running = None
            try:
                planned = predict(case, None) | {"alone": True, "case": case}
            except AutoftError as error:
                yield case["id"], {"case": case, "refused": error.what}
                continue
            if running is not None:
                yield _measured(running)
            folder = weights.of(case["shape"], planned["predicted"]["total_params"], none)
            keys = ("recipe", "device", "gpu", "card_bytes", "cap_bytes", "alone")
            request = {key: planned[key] for key in keys} | {"weights": str(folder)}
            running = (case["id"], planned, pool.submit(gpu_validate.run_child, request))
        if running is not None:
            yield _measured(running)


def _measured(running: tuple[str, Json, Future[Json]]) -> Piece:
    name, planned, measured = running
    return name, planned | {"gpu": None, "measured": measured.result()}


def context(turn: Turn) -> Iterator[Piece]:
    """Bytes of the card that this process holds beside what PyTorch has reserved, from one thing to the next."""
    gpu = turn.gpu
    if gpu is None or not turn.wants("context"):
        return
    assert gpu.uuid is not None
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    before = used_bytes(gpu.uuid)
    import torch

    stages: list[Json] = []
    for name, act in _stages(torch.bfloat16 if gpu.bf16 else torch.float16):
        error = None
        try:
            act()
        except (RuntimeError, ImportError) as failure:
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_reserved()
        free, total = torch.cuda.mem_get_info()
        stage = {"after": name, "reserved_bytes": reserved, "nvml_bytes": used_bytes(gpu.uuid) - before - reserved}
        stages.append({**stage, "mem_get_info_bytes": total - free - before - reserved, "error": error})
    assumed = target_of(turn.hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda: None).device_bytes(0)
    torch_total = torch.cuda.get_device_properties(0).total_memory
    yield (
        "context",
        {"stages": stages, "assumed_bytes": assumed, "nvml_total": gpu.total_bytes, "torch_total": torch_total},
    )


def _stages(dtype: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names, and what is done there: each loads libraries and kernels that take memory of the card."""
    import torch

    def tensor(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda").to(dtype).requires_grad_()

    def attention() -> None:
        q, k, v = (tensor(1, 8, 256, 64) for _ in range(3))
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    def four_bit() -> None:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(1024, 1024, bias=False, compute_dtype=dtype, quant_type="nf4").to("cuda")
        layer(tensor(64, 1024)).sum().backward()

    def triton() -> None:
        from autoft.trainer.doctor.compute import triton_kernel

        triton_kernel()

    def optimizer() -> None:
        weight = torch.nn.Parameter(tensor(1024, 1024).detach())
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], fused=True).step()

    yield "a first tensor", lambda: torch.zeros(1, device="cuda")
    yield "products", lambda: (tensor(512, 512) @ tensor(512, 512)).sum().backward()
    yield "attention", attention
    yield "4-bit products", four_bit
    yield "Triton", triton
    yield "fused AdamW", optimizer


def caps(turn: Turn) -> Iterator[Piece]:
    """Kept to the memory of smaller cards: the chosen plan lives, and the nearest that is too large dies."""
    gpu, configs, weights = turn.gpu, turn.scratch / "configs", turn.weights()
    hardware = replace(turn.hardware, gpus=(gpu,) if gpu else ())
    jobs = 4 if _cores() >= MANY_CORES else 1
    waiting: list[Json] = []
    with SideBySide(jobs, turn.room_bytes) as running:
        for case in _cases(turn):
            name = f"{case.shape}, {case.seq_len} tokens, {case.cap_gib:g} GiB"
            if case.cap_gib * GIB > turn.room_bytes or not turn.wants(name):
                continue
            plan = gpu_plans.planned(case, hardware, configs, rejects=1) | {"name": name}
            for run in plan["runs"]:
                folder = weights.of(case.shape, run["predicted"]["total_params"], running)
                running.start(run["card_bytes"], case.shape, partial(gpu_plans.try_run, plan, run, folder))
            waiting.append(plan)
            yield from _whole(waiting)
    yield from _whole(waiting)


def _cases(turn: Turn) -> tuple[gpu_plans.Case, ...]:
    """A card of the smoke test has more than 1.2 GiB: transformers leaves them out of the first block that it takes."""
    if not turn.smoke:
        return CAPPED
    return (SMOKE_CAPPED,) if turn.gpu else gpu_plans.SMOKE_CASES


def _whole(waiting: list[Json]) -> Iterator[Piece]:
    """Those of which all runs have ended; they are no longer waiting."""
    for plan in [plan for plan in waiting if all("measured" in run for run in plan["runs"])]:
        waiting.remove(plan)
        runs = [{**run, "gpu": None, "as_told": gpu_plans.as_told(run)} for run in plan["runs"]]
        yield plan["name"], {**plan, "runs": runs}


def whole_runs(turn: Turn) -> Iterator[Piece]:
    """`autoft run` to its end; another that is killed, resumed, and short of memory in a step."""
    # all of one length, so that each step takes what the longest takes
    steps, shrink_after, repeats = SMOKE_RUN if turn.smoke else LONG_RUN
    question, answer = "What comes next? " * repeats, "What comes next is this. " * repeats
    made = [{"question": f"{n:04} {question}", "answer": answer} for n in range(RUN_ROWS)]
    rows = turn.scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    environment.prepare()
    if turn.wants("run"):
        cap_gib = CAP_GIB if turn.gpu is None else min(CAP_GIB, turn.gpu.total_bytes // GIB)
        case = gpu_run.SMOKE_CASES[0] if turn.smoke else gpu_run.Case(SHAPE, PARAMS, cap_gib)
        card = int(case.cap_gib * GIB)
        target = target_of(turn.hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda: None)
        capped = (card - target.device_bytes(0), card)
        yield "run", gpu_run.run_case(case, turn.model(), rows, _out(turn, "run"), capped)
    if turn.wants("killed and resumed"):
        out, settings = _out(turn, "killed"), KILLED | steps
        run = gpu_run.killed_and_resumed(turn.model(), rows, out, settings, shrink_after=shrink_after)
        yield "killed and resumed", run


def _out(turn: Turn, name: str) -> Path:
    """A folder that no earlier call has written to."""
    return turn.scratch / f"{name}-{time.time_ns()}"


def speed(turn: Turn) -> Iterator[Piece]:
    """Seconds of a step beside TRL's own trainer."""
    folder = turn.scratch / "speed"
    folder.mkdir(exist_ok=True)
    trainer_speed.write_rows(None, 16 if turn.smoke else SPEED_ROWS, folder / "rows.jsonl")
    for method in ("lora",) if turn.smoke else ("lora", "qlora"):
        if not turn.wants(method):
            continue
        setup = trainer_speed.Setup(str(turn.model()), method, trainer_speed.dtype_here(), checkpointing=False)
        try:
            yield method, trainer_speed.compared(folder, 1, "same", setup)
        except RuntimeError as error:
            yield method, {"error": str(error)[-500:]}


def _autoft(*words: str) -> Json:
    """What a command answers. Raises: RuntimeError where that is an error, or no JSON."""
    command = [sys.executable, "-P", "-m", "autoft", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        found = dict(json.loads(done.stdout))
    except ValueError:
        raise RuntimeError(f"autoft {words[0]}: exit {done.returncode}: {done.stderr[-500:]}") from None
    if "error" in found:
        raise RuntimeError(f"autoft {words[0]}: {found['error']['what']}")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0))


PARTS: dict[str, Callable[[Turn], Iterator[Piece]]] = {
    "a": checks,
    "b": recipes,
    "c": context,
    "d": caps,
    "e": whole_runs,
    "f": speed,
}
PLAN_ONLY = ("b", "d")  # parts whose own process must see no GPU: it plans


def main(request: Json) -> None:
    """Tell each piece, and at last whether all were done."""
    end_with_parent(os.getppid())
    environment.prepare()
    turn = Turn(
        smoke=request["smoke"],
        scratch=Path(request["scratch"]),
        done=frozenset(request["done"]),
        until=request["until"],
    )
    if request["part"] in PLAN_ONLY:
        environment.hide_gpus()
    for piece, record in PARTS[request["part"]](turn):
        tell({"piece": piece, "record": record})
    tell({"finished": not turn.stopped})


if __name__ == "__main__":
    work_and_leave(partial(main, json.load(sys.stdin)))
