"""TensorBoard, Weights & Biases and MLflow, through transformers' own callbacks, and only when the job asks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
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
CALLBACKS: dict[Tracker, str] = {
    "tensorboard": "TensorBoardCallback",
    "wandb": "WandbCallback",
    "mlflow": "MLflowCallback",
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


def trackers(job: Job, folder: Path, tell: Callable[[str], None]) -> list[Any]:
    """Callbacks for transformers' Trainer that tell the job's trackers of it; none unless the job names any.

    folder: the run's. TensorBoard writes to its `tensorboard` unless TENSORBOARD_LOGGING_DIR says where; where the
    others send, their own settings say (WANDB_*, MLFLOW_*). tell: takes a sentence when a tracker fails.
    Raises: OptionError when check_trackers does, or a package is there and cannot be imported.
    """
    check_trackers(job)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its use would be reported to its makers
    callbacks = {name: _callback(name, folder) for name in job.report_to}
    return [Trackers(callbacks, tell)] if callbacks else []


class Trackers:
    """A callback that passes all on. A tracker that fails is left out from then on: it does not end the run."""

    def __init__(self, callbacks: dict[Tracker, Any], tell: Callable[[str], None]) -> None:
        self.callbacks = callbacks
        self._tell = tell

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def pass_on(*args: Any, **kwargs: Any) -> None:
            for name, callback in list(self.callbacks.items()):
                try:
                    getattr(callback, event)(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - whatever a service and its client may do
                    del self.callbacks[name]
                    why = " ".join(str(error).split())[:200] or type(error).__name__
                    self._tell(f"{name} is not told of the run any more: {why}")

        return pass_on


def _callback(name: Tracker, folder: Path) -> Any:
    from transformers.integrations import integration_utils

    try:
        callback = getattr(integration_utils, CALLBACKS[name])()
    except (ImportError, RuntimeError) as error:
        raise OptionError(
            f"job.report_to: {name} cannot be used: {' '.join(str(error).split())[:200]}",
            fix=f"pip install --upgrade {PACKAGES[name][0]}, or leave it out",
        ) from None
    if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        callback.logging_dir = str(folder / "tensorboard")
    return callback
