"""TensorBoard, Weights & Biases and MLflow, through transformers' own callbacks, and only when the job asks."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from autoft.errors import OptionError
from autoft.trainer.job import Job, Tracker

# What each needs: any one of these packages, the first of which is proposed
PACKAGES: dict[Tracker, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}


def check_trackers(job: Job) -> None:
    """Imports nothing.

    Raises: OptionError for a tracker of the job whose package is not installed.
    """
    for name in job.report_to:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise OptionError(
                f"job.report_to: {name} is not installed", fix=f"pip install {PACKAGES[name][0]}, or leave it out"
            )


def trackers(job: Job, folder: Path) -> list[Any]:
    """The callbacks for transformers' Trainer, none unless the job names them.

    folder: the run's. TensorBoard writes to its `tensorboard` unless TENSORBOARD_LOGGING_DIR says where; where the
    others send is for their own settings to say (WANDB_*, MLFLOW_*).
    Raises: OptionError as check_trackers does.
    """
    check_trackers(job)
    if not job.report_to:
        return []
    from transformers.integrations import integration_utils

    names = {"tensorboard": "TensorBoardCallback", "wandb": "WandbCallback", "mlflow": "MLflowCallback"}
    found = []
    for name in dict.fromkeys(job.report_to):
        callback = getattr(integration_utils, names[name])()
        if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            callback.logging_dir = str(folder / "tensorboard")
        found.append(callback)
    return found
