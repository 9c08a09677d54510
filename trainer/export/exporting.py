"""One export from folder to verdict: opened, refused or written aside, loaded again, judged, renamed."""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from pathlib import Path

from autoft.errors import AutoftError, ModelError, OptionError, near
from autoft.profiles.host import available_ram
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.export import EXPORTERS
from autoft.trainer.export.exporter import Bound, Export, Exporter, Order, Question
from autoft.trainer.export.scores import Drift, Quality, drift_of, quality_of, reference
from autoft.trainer.export.source import Source
from autoft.trainer.export.staging import check_target, files_of, written_aside
from autoft.trainer.export.texts import texts_of
from autoft.units import GIB, size

RUNTIME_BYTES = GIB  # assumption: Python and its libraries, and a row's activations
BYTES_EACH = {"float32": 4, "bfloat16": 2, "float16": 2}


def exporter_named(kind: str, quant: str | None) -> tuple[Exporter, str | None]:
    """The exporter of that name, and its quant, the default where None is asked for.

    Raises: OptionError for unknown names, or wheels that are not installed.
    """
    if kind not in EXPORTERS:
        raise OptionError(f"--to {kind}: not known.{near(kind, EXPORTERS)}", fix=f"one of: {', '.join(EXPORTERS)}")
    exporter = EXPORTERS[kind]
    if quant is not None and not exporter.quants:
        raise OptionError(f"--quant: {kind} has no choice of types", fix="leave --quant out")
    if quant is not None and quant not in exporter.quants:
        raise OptionError(
            f"--quant {quant}: not a type of {kind}.{near(quant, exporter.quants)}",
            fix=f"one of: {', '.join(exporter.quants)}",
        )
    missing = [name for name in exporter.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"--to {kind} needs {missing[0]}, which is not installed", fix="pip install 'autoft[gguf]'")
    return exporter, quant or (exporter.quants[0] if exporter.quants else None)


def export(exporter: Exporter, source: Source, order: Order) -> Export:
    """Write `source` to order.out as the exporter does, and load and judge it before it is there.

    Raises: ModelError, OptionError, OutputError before anything is written; AutoftError when what was written does not
    load again, or differs by more than its bound and order.force is not set. Nothing is left at order.out then.
    """
    began = time.perf_counter()
    exporter.check(source, order)
    check_target(order.out, is_folder=exporter.is_folder, force=order.force)
    dtype = dtype_for(source)
    texts = texts_of(source)
    needed_bytes = exporter.disk_bytes(source, order)
    with (
        tempfile.TemporaryDirectory(prefix="autoft-") as scratch,
        written_aside(order.out, is_folder=exporter.is_folder, force=order.force, needed_bytes=needed_bytes) as aside,
    ):
        order.say(f"writing {exporter.name}")
        written = exporter.write(source, aside, order)
        order.say(f"computing base and adapter on {texts.origin}")
        logits = Path(scratch, "logits.safetensors")
        reference_logprobs = reference(source, texts, dtype, logits)
        gc.collect()
        order.say(f"loading {exporter.name} again in a process of its own")
        answer = exporter.reopen(source, written, order, Question(texts=texts, logits=logits, dtype=dtype))
        drift = drift_of(answer.logprobs, reference_logprobs, answer.max_logit)
        was, now = quality_of(reference_logprobs), quality_of(answer.logprobs)
        bound = exporter.bound(order)
        is_past = _measured(bound, was, now, drift) > bound.nats
        if is_past and not order.force:
            raise AutoftError(f"{order.out}: {_past(bound, was, now, drift)}", fix=_remedy(exporter))
        files = files_of(written)
    notes = [*source.notes, *([texts.note] if texts.note else []), *answer.notes]
    if is_past:
        notes.append(f"kept by --force: {_past(bound, was, now, drift)}")
    return Export(
        kind=exporter.name,
        path=str(order.out),
        quant=order.quant,
        files=files,
        bytes=sum(files.values()),
        texts=texts.origin,
        scored_tokens=texts.num_scored,
        computed_in=dtype,
        reference=was,
        quality=now,
        drift=drift,
        bound=bound,
        kept_past_bound=is_past,
        seconds=round(time.perf_counter() - began, 1),
        commands=exporter.commands(source, order),
        notes=tuple(notes),
        lineage=source.lineage(),
    )


def _measured(bound: Bound, was: Quality, now: Quality, drift: Drift) -> float:
    """What the bound limits, in nats; NaN counts as too much."""
    measured = drift.mean_logprob if bound.of == "distance" else was.mean_logprob - now.mean_logprob
    return measured if measured == measured else float("inf")


def _past(bound: Bound, was: Quality, now: Quality, drift: Drift) -> str:
    measured = _measured(bound, was, now, drift)
    what = "log-probs differ from base and adapter by" if bound.of == "distance" else "the mean log-prob fell by"
    return f"{what} {measured:.4f} nats, more than the bound of {bound.nats:g}"


def _remedy(exporter: Exporter) -> str:
    if len(exporter.quants) > 1:
        return "--quant with more bits, or --force to keep it"
    return "--force to keep it, after `autoft eval` on the run"


def dtype_for(source: Source) -> str:
    """In which the models are computed: float32 where memory allows, else as the base is stored.

    Raises: ModelError where the host's memory is too small for either.
    """
    weights_bytes = sum(path.stat().st_size for path in source.weights.glob("*.safetensors"))
    stored = str(source.config.dtype or "bfloat16").removeprefix("torch.")
    stored = stored if stored in BYTES_EACH else "bfloat16"
    params = weights_bytes / BYTES_EACH[stored]
    adapter_bytes = (source.folder / ADAPTER).stat().st_size if source.adapter is not None else 0
    _, available = available_ram()
    for dtype in ("float32", stored):
        needed = int(params * BYTES_EACH[dtype]) + adapter_bytes + RUNTIME_BYTES
        if needed <= available:
            return dtype
    raise ModelError(
        f"{source.base}: to load it needs {size(needed)} of RAM, and {size(available)} are available",
        fix="end other programs, or export on a machine with more memory",
    )
