"""What a run has trained, as a model in MLflow: the adapter with a reference to its base, or the whole model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.trainer.adapters.initial import FROM_WEIGHTS
from autoft.trainer.job import Job

NAME = "model"  # of the logged model, in the MLflow run
TASK = "text-generation"
PACKAGES = ("torch", "transformers", "peft", "accelerate")  # that loading it takes


def log_model(job: Job, folder: Path, model: Any, tokenizer: Any, base: Path, tell: Callable[[str], None]) -> None:
    """Log the model of a finished run to the MLflow run that its training reported to, and register it if asked.

    MLflow's flavour for transformers: `mlflow.transformers.load_model` gives a pipeline. Of an adapter it keeps the
    adapter alone, and loads the base from `base`.
    Args:
        folder: the run's, with all that is saved.
        base: folder of the base's weights.
        tell: takes a sentence where nothing was logged; a tracker that fails does not end a run.
    """
    if job.recipe.init in FROM_WEIGHTS:
        tell(f"mlflow: the model was not logged: with init {job.recipe.init} it is saved in another form")
        return
    try:
        _log(job, folder, model, tokenizer, base)
    except Exception as error:  # noqa: BLE001 - whatever a service and its client may do
        why = " ".join(str(error).split())[:200] or type(error).__name__
        tell(f"mlflow: logging the model failed: {why}")


def _log(job: Job, folder: Path, model: Any, tokenizer: Any, base: Path) -> None:
    import mlflow
    from huggingface_hub import ModelCard

    from autoft.trainer.storage.ownership import CARD

    reported = mlflow.last_active_run()
    if reported is None:
        raise RuntimeError("no MLflow run was begun")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    base_of_adapter = {} if job.recipe.method == "full" else {"base_model_path": str(base)}
    going_on = mlflow.active_run() is not None
    if not going_on:
        mlflow.start_run(run_id=reported.info.run_id)
    try:
        mlflow.transformers.log_model(
            {"model": model, "tokenizer": tokenizer},
            **base_of_adapter,
            name=NAME,
            task=TASK,
            model_card=ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True),
            pip_requirements=_requirements(),
            registered_model_name=job.mlflow_register,
        )
    finally:
        if not going_on:
            mlflow.end_run()


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
