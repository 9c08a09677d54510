"""Faults on a real GPU: memory that ends there, and runs that are killed while they hold it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoft.trainer.run.session import run
from tests.conftest import write_jsonl
from tests.faults.conftest import STEPS
from tests.faults.scene import SETTINGS, at_step
from tests.faults.test_memory import learnt

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]
KILLED = """
import os, signal, sys
from autoft.trainer.runtime import environment
environment.prepare()
from tests.faults.scene import at_step
from autoft.cli.main import main
at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))()
main(sys.argv[1:])
"""


def only(bytes_held: float) -> None:
    """Let this process have no more of the card."""
    torch.cuda.set_per_process_memory_fraction(bytes_held / torch.cuda.get_device_properties(0).total_memory)


@pytest.fixture
def job(make_job, tmp_path, monkeypatch):
    """Steps of 16 rows of 500 tokens: hundreds of MiB beside some of weights. What a test takes of the card is back."""
    from autoft.trainer.loop.callbacks import Watch

    monkeypatch.setattr(Watch, "on_step_end", Watch.on_step_end)
    rows = write_jsonl(tmp_path / "long.jsonl", [{"prompt": f"n {n}", "completion": f"{n} " * 160} for n in range(80)])
    recipe = {"dropout": 0.0, "micro_batch": 16, "seq_len": 512, "loss": "logits"}
    yield replace(make_job(recipe=recipe, accumulation=1, max_new_tokens=8), data=str(rows), device="cuda")
    only(torch.cuda.get_device_properties(0).total_memory)


def test_when_the_card_has_less_micro_batches_are_smaller_and_the_weights_are_the_same(job, tmp_path) -> None:
    quiet = run(job, tmp_path / "quiet", plan_toml="")
    held, peak = quiet.memory[-1][1], quiet.measured.peak_bytes

    def shrink() -> None:
        torch.cuda.empty_cache()
        only(held + 0.7 * (peak - held))

    at_step(2, shrink)()
    result = run(job, tmp_path / "out", plan_toml="")
    recovered = [event for event in result.events if event["event"] == "recovered"]
    assert {(event["step"], event["change"]) for event in recovered} == {(3, "micro_batch")}
    assert "out of memory" in recovered[0]["reason"]
    wanted = learnt(tmp_path / "quiet")
    for name, value in learnt(tmp_path / "out").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)


def test_when_others_take_all_the_rest_of_the_card_a_run_does_not_notice(job, tmp_path) -> None:
    at_step(1, lambda: only(torch.cuda.memory_reserved()))()
    result = run(job, tmp_path / "out", plan_toml="")
    assert result.steps == STEPS
    assert result.events == ()


def test_a_plan_that_is_too_large_is_found_out_by_its_rehearsal(job, tmp_path) -> None:
    quiet = run(job, tmp_path / "quiet", plan_toml="")
    only(quiet.memory[0][1] + 0.7 * (quiet.measured.peak_bytes - quiet.memory[0][1]))
    result = run(job, tmp_path / "out", plan_toml="")
    assert {event["step"] for event in result.events} == {0}
    wanted = learnt(tmp_path / "quiet")
    for name, value in learnt(tmp_path / "out").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "lora"),
        ("--method", "qlora"),
        ("--method", "qlora", "--set", "gradient_checkpointing=true", "--set", "offload_checkpoints=true"),
        ("--method", "lora", "--set", "optimizer=adamw_8bit"),
        ("--method", "lora", "--set", "optimizer=paged_adamw_8bit"),
    ],
    ids=" ".join,
)
def test_a_killed_run_is_resumed_to_the_same_weights(autoft, tiny_model, data_file, tmp_path, words) -> None:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    asked = ["run", tiny_model, "--data", data_file, *words, *settings, "--set", f"max_steps={STEPS}"]
    assert autoft(*asked, "-o", tmp_path / "quiet").code == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, asked), "-o", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = autoft("resume", tmp_path / "out")
    assert resumed.code == 0, resumed.err
    wanted = learnt(tmp_path / "quiet")
    for name, value in learnt(tmp_path / "out").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
