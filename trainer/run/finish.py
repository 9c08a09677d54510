"""The end of a run: what is saved, and the result.json that tells of it."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import __version__
from autoft.home import sha256, share, write_text
from autoft.trainer.adapters import kind_of
from autoft.trainer.data.written import chat_of
from autoft.trainer.evaluation.samples import samples
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.report import report_html
from autoft.trainer.report.model_card import model_card
from autoft.trainer.result import Evaluation, Measured, Predicted, RunResult, Start
from autoft.trainer.run.fingerprint import versions
from autoft.trainer.sources.resolve import base_reference, hub_name, licence, load_config
from autoft.trainer.sources.suitable import auto_class
from autoft.trainer.storage.ownership import CARD, NOT_HASHED, REPORT, RESULT, is_of_training
from autoft.trainer.storage.places import forget_host, public_job, public_name, without_paths, write_places
from autoft.trainer.storage.progress import Progress

if TYPE_CHECKING:
    from autoft.trainer.run.setup import Loaded

Judged = tuple[Evaluation, list[str]]


def finish(
    job: Job,
    loaded: Loaded,
    progress: Progress,
    predicted: Predicted | None,
    before: Judged,
    after: Judged,
    *,
    folder: Path,
    name: str,
    run_id: str,
    identity: dict[str, Any],
) -> RunResult:
    """Save the model, its card and result.json in `folder`.

    name, run_id: of the run. identity: as `identity_of` has it.
    Raises: OSError when the disk is full.
    """
    write_places(folder, job, loaded.weights)
    forget_host(folder)
    _save(job, loaded, folder)
    prepared = loaded.prepared
    rate = progress.seconds or 1.0
    progress.settle()
    expected = chat_of(prepared.tokenizer).expected
    shown = samples(prepared.splits.heldout, before[1], after[1], expected) if job.max_new_tokens else ()
    result = RunResult(
        autoft_version=__version__,
        job=public_job(job),
        base=base_reference(loaded.ref, loaded.weights),
        auto_class=auto_class(load_config(loaded.ref, loaded.weights)).__name__,
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds={stage: round(seconds, 2) for stage, seconds in progress.stages.items()},
        energy_kwh=None if progress.energy_j is None else progress.energy_j / 3.6e6,
        steps=len(progress.losses),
        tokens=progress.tokens,
        trained_tokens=progress.trained_tokens,
        rows=len(prepared.splits.train) - len(prepared.train.too_long),
        rows_left_out=len(prepared.train.too_long),
        trainable_params=trainable_params(loaded.model),
        total_params=_stored_params(loaded.model),
        losses=tuple(progress.losses),
        predicted=predicted,
        measured=Measured(
            # the rehearsal's rows are the longest, which few steps may not have met
            peak_bytes=max(progress.phases["rehearse"], progress.phases["train"]),
            peak_reserved_bytes=progress.peak_reserved_bytes,
            step_time_s=progress.seconds / max(1, progress.timed_steps),
            tokens_per_s=progress.tokens / rate,
            trained_tokens_per_s=progress.trained_tokens / rate,
        ),
        before=before[0],
        after=after[0],
        sample=shown[0] if shown else None,
        system_prompt=prepared.splits.system_prompt,
        hardware=_hardware(job),
        versions=versions(),
        artifacts={},
        notes=without_paths(tuple(prepared.notes(job.recipe.seq_len)), job),
        memory=tuple(progress.memory),
        evaluations=progress.evaluated(),
        best_step=progress.best_step,
        phases=progress.phases,
        events=without_paths(tuple(progress.events), job),
        samples=shown,
        data_sha256=identity["data_sha256"],
        base_fingerprint=identity["base_fingerprint"],
        run_id=run_id,
        continued=_continued(job, identity),
    )
    write_text(folder / CARD, model_card(result, name, hub_name(loaded.ref), licence(loaded.ref)))
    result = replace(result, artifacts=_hashes(folder))
    write_text(folder / REPORT, report_html(result, name))
    write_text(folder / RESULT, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def _continued(job: Job, identity: dict[str, Any]) -> Start | None:
    """What the run began with, None for a new adapter."""
    if job.from_adapter is None or identity["adapter_sha256"] is None:
        return None
    folder = Path(job.from_adapter).expanduser().absolute()
    return Start(name=public_name(str(folder)), sha256=identity["adapter_sha256"])


def trainable_params(model: Any) -> int:
    """How many weights are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def written_params(model: Any, recipe: Recipe) -> int:
    """How many weights a checkpoint holds: of an adapter those too that stay as they are drawn."""
    owns = kind_of(recipe).owns
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad or owns(name))


def _save(job: Job, loaded: Loaded, folder: Path) -> None:
    """The adapter, or with method full the whole model, and the tokenizer."""
    try:
        if job.recipe.method == "full":
            loaded.model.config.use_cache = True
            if loaded.model.generation_config is not None:  # it has learnt to stop at these
                loaded.model.generation_config.eos_token_id = loaded.stop_ids
            loaded.model.save_pretrained(folder)
        else:
            loaded.model.peft_config["default"].base_model_name_or_path = base_reference(loaded.ref, loaded.weights)
            kind_of(job.recipe).save(loaded.model, job.recipe, folder)
        loaded.prepared.tokenizer.save_pretrained(folder)
    except Exception as error:
        if "os error" not in str(error):
            raise
        raise OSError(f"{folder}: {error}") from error  # safetensors' and tokenizers' word for a full disk
    for path in folder.glob("*.safetensors"):
        share(path)  # which safetensors writes as the user's alone


def _stored_params(model: Any) -> int:
    """Weights of the model, each counted once, 4-bit ones by what they stand for and not by their packed bytes."""
    return sum(
        p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel()
        for p in model.parameters()
    )


def _hashes(folder: Path) -> dict[str, str]:
    """Of all that stays in the folder, by the path in it."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stays = {name: path for name, path in files.items() if name not in NOT_HASHED and not is_of_training(name)}
    return {name: sha256(path) for name, path in stays.items()}


def _hardware(job: Job) -> str:
    import torch

    if job.device == "cuda":
        name = torch.cuda.get_device_name(0)
        return f"{job.num_gpus} x {name}" if job.num_gpus > 1 else name
    processes = f"{job.num_gpus} processes of " if job.num_gpus > 1 else ""
    return f"{platform.processor() or platform.machine()}, {processes}{torch.get_num_threads()} threads"
