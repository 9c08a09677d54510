"""Who is told of a run: nobody unless asked, and nobody who fails ends it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from autoft.errors import OptionError
from autoft.trainer.job import Job, Tracker
from autoft.trainer.loop.trackers import Trackers, check_trackers, trackers
from autoft.trainer.recipe import Recipe

# A package of the name that the integration imports, with the few calls that it makes.
STAND_IN = """
from pathlib import Path
class SummaryWriter:
    def __init__(self, log_dir):
        Path(log_dir).mkdir(parents=True)
        self.file = open(Path(log_dir) / "told", "w")
    def add_text(self, *words): pass
    def add_scalar(self, *words): print(*words, file=self.file)
    def flush(self): self.file.flush()
    def close(self): self.file.close()
"""


def job(*names: Tracker) -> Job:
    return Job(model="m", recipe=Recipe(base_dtype="float32"), report_to=names)


def is_missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


def test_nobody_is_told_unless_asked(tmp_path: Path) -> None:
    assert trackers(job(), tmp_path, pytest.fail) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_the_way_to_get_it(name: Tracker) -> None:
    if not is_missing(name) or not is_missing("tensorboardX"):
        pytest.skip(f"{name} is installed here")
    with pytest.raises(OptionError) as refused:
        check_trackers(job(name))
    assert str(refused.value) == (
        f"job.report_to: {name} is not installed\nTo fix: pip install {name}, or leave it out"
    )


@pytest.fixture
def tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one where it is installed."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if is_missing("tensorboard") and is_missing("tensorboardX"):
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "tensorboardX.py").write_text(STAND_IN)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)


class Broken:
    """A tracker whose service is away."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to\nthe host")

    def on_log(self, *_: Any, **__: Any) -> None:
        raise AssertionError("told again after it failed")


@pytest.mark.usefixtures("tensorboard")
def test_transformers_calls_them_and_one_that_fails_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    (told,) = trackers(job("tensorboard"), run, said.append)
    told.callbacks["wandb"] = Broken()
    handler = CallbackHandler([DefaultFlowCallback, told], SimpleNamespace(config=None), None, None, None)
    args, state, control = TrainingArguments(str(tmp_path / "x"), use_cpu=True), TrainerState(), TrainerControl()
    handler.on_train_begin(args, state, control)
    for state.global_step in (1, 2):
        handler.on_log(args, state, control, {"loss": 0.5, "learning_rate": 1e-4})
    assert handler.on_train_end(args, state, control) is control
    assert said == ["wandb is not told of the run any more: no route to the host"]
    (written,) = (run / "tensorboard").iterdir()
    assert written.stat().st_size > 0
    if written.name == "told":
        assert "train/loss 0.5 2" in written.read_text()


def test_what_is_no_event_is_no_attribute() -> None:
    assert not hasattr(Trackers({}, print), "state")
