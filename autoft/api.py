"""autoft from Python: what the commands probe, plan, estimate and run do, with typed results. docs/python.md."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import training
from autoft.errors import OptionError

if TYPE_CHECKING:
    from autoft.planner.estimate import Estimate
    from autoft.planner.plan.recheck import Rechecked
    from autoft.planner.plan.record import Plan
    from autoft.planner.request import Prefer
    from autoft.profiles.hardware import Hardware
    from autoft.trainer.events import Listener
    from autoft.trainer.job import Job
    from autoft.trainer.result import RunResult


def probe() -> Hardware:
    """This machine, read now: GPUs, memory, CPU, disk. No GPU is touched."""
    from autoft.profiles.detect import detect

    return detect()


def plan(
    model: str,
    data: str | Path | None = None,
    *,
    eval_data: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    from_adapter: str | Path | None = None,
    gpu: str | None = None,
    vram_gib: float | None = None,
    seq_len: int | None = None,
    prefer: Prefer | None = None,
    preset: str | None = None,
    max_hours: float | None = None,
    max_memory_gib: float | None = None,
    max_energy_kwh: float | None = None,
    min_rank: int | None = None,
    served_by: str | None = None,
    **settings: object,
) -> Plan:
    """The best settings to fine-tune a model on this machine or on `gpu`, with reasons, memory and time.

    Args:
        model: a hub id, a local folder, a .gguf file, a name from `autoft profiles models`, or "starter".
        data, eval_data: a file, a folder, a glob or a hub dataset (owner/name).
        mapping: columns of the data by role, as --map has them: {"prompt": "question", "completion": "answer"}.
        from_adapter: the folder of an adapter to go on training.
        gpu: as --gpu has it, "RTX 3090 x2" or "cpu"; None is this machine.
        served_by: "vllm" refuses an adapter that vLLM does not load, as --for does.
        settings: fields of docs/settings.md, as --set has them: rank=8, epochs=2, method="qlora".

    Raises: AutoftError of several kinds, with `what` and `fix`; DoesNotFit when nothing fits.
    """
    from autoft.planner.request import Request

    if served_by not in (None, "vllm"):
        raise OptionError(f"served_by={served_by!r}: not known", fix='served_by="vllm", or leave it out')
    request = Request(
        model=model,
        data=_text(data),
        eval_data=_text(eval_data),
        mapping=",".join(f"{role}={column}" for role, column in mapping.items()) if mapping else None,
        from_adapter=_text(from_adapter),
        gpu=gpu,
        vram_gib=vram_gib,
        seq_len=seq_len,
        prefer=prefer,
        preset=preset,
        max_hours=max_hours,
        max_memory_gib=max_memory_gib,
        max_energy_kwh=max_energy_kwh,
        min_rank=min_rank,
        served_by=served_by,
        settings=_words(settings),
    )
    hardware = probe()
    with _quiet():
        from autoft.planner.plan.corrected import corrected
        from autoft.planner.plan.make import make_plan
        from autoft.trainer.runtime.environment import hidden_gpus

        with hidden_gpus():
            made, _ = make_plan(request, hardware)
        return corrected(made, request, hardware, _say_nothing)


def estimate(
    model: str, *, gpu: str | None = None, vram_gib: float | None = None, seq_len: int | None = None, **settings: object
) -> Estimate:
    """Memory and time of one exact recipe; what `settings` leave out is the trainer's default for the device.

    Raises: AutoftError of several kinds, with `what` and `fix`. A recipe that does not fit raises nothing: see `fits`.
    """
    from autoft.planner.request import Request

    request = Request(model=model, gpu=gpu, vram_gib=vram_gib, seq_len=seq_len, settings=_words(settings))
    hardware = probe()
    with _quiet():
        from autoft.planner.plan.exact import make_estimate
        from autoft.trainer.runtime.environment import hidden_gpus

        with hidden_gpus():
            return make_estimate(request, hardware).estimate


def run(
    plan: Plan,
    output: str | Path,
    *,
    data: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> RunResult:
    """Train as planned, evaluate before and after, and write the result to `output`.

    The plan is checked against this machine first. Ctrl-C saves and stops: `autoft resume OUTPUT` goes on.

    Args:
        data: in place of the plan's own.
        force: replace a finished run at `output`, or train although it may not fit.
        listener: is called with each event of autoft.trainer.events.

    Raises: AutoftError of several kinds, with `what` and `fix`; Resumable when the run can be taken up again.
    """
    from autoft.trainer.runtime.environment import own_choice_of_gpus
    from autoft.trainer.storage.run_folder import check_output

    out = Path(output)
    check_output(out, force=force)
    job = plan.job if data is None else replace(plan.job, data=_text(data))
    if job.data is None:
        raise OptionError("the plan names no data to train on", fix="run(plan, output, data=FILE)")
    with _quiet(), own_choice_of_gpus():
        checked = _checked(plan, job, out, force=force)
        training.check_folder(checked.plan, out, force=force)
        gpus = training.take_devices(checked.plan)
        return training.train(
            checked.plan,
            checked.prepared,
            out,
            gpus=gpus,
            display=nullcontext(listener or _say_nothing),
            say=_say_nothing,
            force=force,
        )


def _checked(plan: Plan, job: Job, out: Path, *, force: bool) -> Rechecked:
    """The plan on this machine. A process that is to train on a GPU does not hide it."""
    from autoft.planner.plan.recheck import recheck
    from autoft.profiles.detect import detect
    from autoft.trainer.runtime.environment import hidden_gpus

    hardware, on_gpu = detect(out.absolute().parent), job.device == "cuda"
    with nullcontext() if on_gpu else hidden_gpus():
        return recheck(plan, job, hardware, where="the plan", force=force, apart=on_gpu)


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries as autoft needs them; their warnings, which the command line leaves out too, are left out within."""
    from autoft.trainer.runtime import environment

    environment.set_defaults()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _words(settings: Mapping[str, object]) -> tuple[str, ...]:
    """As --set takes them; None leaves a setting as it would be."""
    return tuple(f"{name}={_word(value)}" for name, value in settings.items() if value is not None)


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _say_nothing(_: Any) -> None:
    pass
