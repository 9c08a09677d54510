"""Options of every command that plans, and the Request they make."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from autoft import render
from autoft.cli import options, show_settings
from autoft.errors import ModelError, OptionError
from autoft.planner.request import Prefer
from autoft.trainer.recipe import Method

if TYPE_CHECKING:
    from rich.console import Console

    from autoft.planner.plan.recheck import Rechecked
    from autoft.planner.plan.record import Plan
    from autoft.planner.request import Request
    from autoft.profiles.hardware import Hardware
    from autoft.trainer.data.prepare import Prepared
    from autoft.trainer.job import Job

METHODS: tuple[str, ...] = get_args(Method)
PREFERENCES: tuple[str, ...] = get_args(Prefer)

DEVICE = (
    click.option(
        "--gpu",
        metavar="NAME[xN]",
        help='GPU to plan for, here or not ("RTX 3090", "RTX 3090 x2", cpu).',
    ),
    click.option("--vram", "vram_gib", type=float, metavar="GIB", help="GPU memory to assume, in GiB."),
)
HOSTS = (
    click.option(
        "--hosts", type=click.IntRange(min=1), metavar="N", help="Machines with these GPUs each (default: 1)."
    ),
    click.option("--link", metavar="NAME", help="Network between hosts: 10GbE or another Gbit/s."),
)
SETTINGS = (
    click.option(
        "--seq-len",
        type=click.IntRange(min=1),
        metavar="N",
        help="Longest sequence in tokens; longer examples are skipped and counted.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any field of the recipe or job (repeatable)."
    ),
    show_settings.OPTION,
)
RECIPE = (
    click.option(
        "--method",
        type=options.Choice(METHODS),
        help="lora (16-bit base), qlora (4-bit base) or full (all weights).",
    ),
    *SETTINGS,
)
START = (
    click.option(
        "--from-adapter",
        metavar="DIR",
        help="Continue this adapter: a run's folder, or PEFT's.",
    ),
    click.option("--base-run", metavar="DIR", help="Use the base of this finished run as MODEL."),
)
DATA = (
    click.option(
        "--data",
        metavar="PATH|ID",
        help="Training data: file, folder, quoted glob or hub dataset (owner/name).",
    ),
    click.option("--eval-data", metavar="PATH|ID", help="Evaluation data (default: held out of --data)."),
    click.option(
        "--map",
        "mapping",
        multiple=True,
        metavar="ROLE=COLUMN",
        help="Map columns: prompt=question,completion=answer; see docs/data.md (repeatable).",
    ),
    click.option(
        "--prefer",
        type=options.Choice(PREFERENCES),
        help="What to optimize for (default: balanced).",
    ),
    click.option("--preset", metavar="NAME", help="Use defaults for a purpose: chatbot, code, edge, ..."),
)
LIMITS = (
    click.option("--max-hours", type=float, metavar="H", help="Reject plans whose worst-case time exceeds H hours."),
    click.option("--max-memory", "max_memory_gib", type=float, metavar="GIB", help="Use at most this much GPU memory."),
    click.option(
        "--max-energy-kwh", type=float, metavar="KWH", help="Reject plans whose worst-case energy exceeds this."
    ),
    click.option("--min-rank", type=click.IntRange(min=1), metavar="N", help="Smallest adapter rank to accept."),
    click.option(
        "--for", "served_by", type=options.Choice(("vllm",)), help="Refuse an adapter that this server does not load."
    ),
)


def add(*decorators: options.Decorator) -> options.Decorator:
    """Several options as one decorator, shown by --help in their order."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


def request(
    model: str,
    *,
    gpu: str | None,
    vram_gib: float | None,
    method: str | None,
    seq_len: int | None,
    settings: tuple[str, ...],
    data: str | None = None,
    eval_data: str | None = None,
    mapping: tuple[str, ...] = (),
    prefer: str | None = None,
    preset: str | None = None,
    max_hours: float | None = None,
    max_memory_gib: float | None = None,
    max_energy_kwh: float | None = None,
    min_rank: int | None = None,
    from_adapter: str | None = None,
    served_by: str | None = None,
    hosts: int | None = None,
    link: str | None = None,
) -> Request:
    """The Request that the options make; the named ones are shorthand for --set."""
    from autoft.planner.request import Request

    pins = pinned(settings, {"method": method, "hosts": hosts, "link": link})
    return Request(
        model=model,
        data=data,
        eval_data=eval_data,
        mapping=",".join(mapping) or None,
        gpu=gpu,
        vram_gib=vram_gib,
        seq_len=seq_len,
        prefer=prefer,  # type: ignore[arg-type]
        preset=preset,
        settings=pins,
        max_hours=max_hours,
        max_memory_gib=max_memory_gib,
        max_energy_kwh=max_energy_kwh,
        min_rank=min_rank,
        from_adapter=from_adapter,
        served_by=served_by,
    )


def named_model(model: str | None, words: dict[str, Any], *, fetches: bool) -> str | None:
    """MODEL, or the base that --base-run, taken out of `words`, or --from-adapter names; None where nothing does.

    fetches: download the base of a run that is not here, to compare it with that of the run.
    Raises: OptionError where MODEL and --base-run are given; ModelError.
    """
    base_run, from_adapter = words.pop("base_run"), words["from_adapter"]
    if base_run is not None and model is not None:
        raise OptionError(f"--base-run {base_run} names the model, and so does {model}", fix="remove one of them")
    if base_run is not None:
        return _base_of_run(Path(base_run).expanduser(), fetches=fetches)
    if model is not None or from_adapter is None:
        return model
    from autoft.trainer.evaluation.open_adapter import model_of, open_adapter

    return model_of(open_adapter(Path(from_adapter).expanduser()))


def _base_of_run(folder: Path, *, fetches: bool) -> str:
    """What the run in `folder` began with. Raises: ModelError where that is not here, or not what it was."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.evaluation.open_adapter import model_of_run
    from autoft.trainer.evaluation.open_run import read_result
    from autoft.trainer.sources.resolve import fetch, fetched, resolve
    from autoft.trainer.sources.weights import fingerprint

    result = read_result(folder)
    model = model_of_run(folder, result)
    ref = resolve(model)
    console = render.console(stderr=True)
    weights = fetch(ref, lambda line: console.print(line, markup=False)) if fetches else fetched(ref)
    if weights is not None and result.base_fingerprint not in (None, fingerprint(weights)):
        raise ModelError(
            f"{model}: not the weights that {folder} was trained on",
            fix="give the run its base back, or name a MODEL in place of --base-run",
        )
    return model


def pinned(settings: tuple[str, ...], named: dict[str, Any]) -> tuple[str, ...]:
    """The words of --set, and those that options stand for. Raises: OptionError where both set a field, and differ."""
    pins = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in named.items()
        if value is not None
    }
    set_to = {key.strip(): value.strip() for key, _, value in (word.partition("=") for word in settings)}
    for key, value in pins.items():
        if set_to.get(key, value) != value:
            option = f"--{key.replace('_', '-')} {value}"
            raise OptionError(f"{option} and --set {key}={set_to[key]} differ", fix="remove one of them")
    return (*settings, *(f"{key}={value}" for key, value in pins.items()))


def kept_plan(wanted: Request, *, no_cache: bool) -> Plan:
    """As `plan`; what was asked before is answered without importing torch."""
    from autoft.profiles.detect import detect

    hardware = detect()
    with rehearsing():
        from autoft.planner.plan import cached_plans
        from autoft.planner.plan.corrected import corrected

        question = None if no_cache else cached_plans.ask(wanted, hardware)
        known = cached_plans.recall(question) if question is not None else None
        if known is not None:
            return corrected(known, wanted, hardware, _say)
        plan, _ = _plan(wanted, hardware, apart=False)
        if question is not None:
            cached_plans.keep(question, plan)
        return plan


def plan_to_train(wanted: Request, disk_path: Path) -> tuple[Plan, Prepared | None]:
    """The plan and its tokenized data. This process can still choose its GPUs afterwards.

    disk_path: where the run will write.
    """
    from autoft.profiles.detect import detect

    hardware = detect(disk_path)
    on_gpu = bool(hardware.gpus) and wanted.gpu != "cpu"
    with rare_collections() if on_gpu else rehearsing():
        return _plan(replace(wanted, assume_tokens=False), hardware, apart=on_gpu)


def _plan(wanted: Request, hardware: Hardware, *, apart: bool) -> tuple[Plan, Prepared | None]:
    """Plan, and set beside the plan what earlier runs here make expect."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.planner.plan.prefetch import begin

    with begin(wanted) as reading:  # before the imports that it is to go on beside
        from autoft.planner.plan.corrected import corrected
        from autoft.planner.plan.make import make_plan

        plan, prepared = make_plan(wanted, hardware, reading, apart=apart)
    return corrected(plan, wanted, hardware, _say), prepared


def _say(text: str) -> None:
    render.console(stderr=True).print(text, markup=False)


@contextmanager
def rehearsing() -> Iterator[None]:
    """For commands that plan and do not train: no GPU is visible to PyTorch, so none is touched.

    What asks for the GPUs of this machine asks before.
    """
    from autoft.trainer.runtime.environment import hidden_gpus

    with hidden_gpus(), rare_collections():
        yield


def recheck(planned: Plan, job: Job, folder: Path, console: Console, *, where: str, force: bool = False) -> Rechecked:
    """`planned`, with `job` for its job, as it stands on this machine, whose disk is that of `folder`.

    Raises: as planner/plan/recheck.py: recheck.
    """
    console.print(f"Checking {where}", markup=False)
    from autoft.profiles.detect import detect

    hardware, on_gpu = detect(folder), job.device == "cuda"
    with rare_collections() if on_gpu else rehearsing():
        from autoft.planner.plan.recheck import recheck

        checked = recheck(planned, job, hardware, where=where, force=force, apart=on_gpu)
    for note in checked.notes:
        console.print(f"Note: {note}", markup=False)
    return checked


@contextmanager
def rare_collections() -> Iterator[None]:
    """Imports and rehearsals make objects by the million and hardly a cycle: the search for cycles took a fifth."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
