"""The contract at the edge: help, JSON on stdout, exit codes, and what start-up does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from autoft.cli.main import COMMANDS

TINYLLAMA = "tinyllama-1.1b-chat-v1.0"


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-m", "autoft", *words], capture_output=True, text=True, check=False, env=settings
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An AUTOFT_HOME of these tests: a question that two of them ask is rehearsed for one, and kept for the other."""
    return str(tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_json(autoft, command) -> None:
    for flag in ("-h", "--help"):
        done = autoft(command, flag)
        assert done.code == 0
        assert f"autoft {command}" in done.out
        assert "--json" in done.out
        assert "--debug" in done.out


def test_help_lists_every_command_with_its_line(autoft) -> None:
    out = " ".join(autoft("--help").out.split())
    assert all(f"{name} {line}" in out for name, line in COMMANDS.items())
    assert autoft("--version").out.startswith("autoft ")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["probe", "--json"], ["profiles", "--json"], ["run", "--help"], ["plan", "-h"], ["runs", "list"]],
)
def test_start_up_imports_neither_torch_nor_transformers(words) -> None:
    code = (
        "import sys\nfrom autoft.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_plan_without_data_explains_itself(autoft, monkeypatch, kept) -> None:
    monkeypatch.setenv("AUTOFT_HOME", kept)
    done = autoft("plan", TINYLLAMA, "--gpu", "rtx-3060", "--seq-len", 1024)
    assert done.code == 0
    for part in ("Why", "Instead", "no --data: assuming", "Next: autoft run", "More: --explain"):
        assert part in done.out


def test_plan_json_is_one_object_that_reads_back(autoft, monkeypatch, kept) -> None:
    from autoft.planner.plan.record import Plan

    monkeypatch.setenv("AUTOFT_HOME", kept)
    done = autoft("plan", TINYLLAMA, "--gpu", "rtx-3060", "--seq-len", 1024, "--json")
    plan = Plan.from_dict(json.loads(done.out))
    assert plan.job.model == TINYLLAMA
    assert plan.alternatives


def test_estimate_json_has_the_contract_s_keys(autoft) -> None:
    done = autoft(
        "estimate", TINYLLAMA, "--gpu", "rtx-4090", "--method", "qlora", "--rank", 8, "--micro-batch", 2, "--json"
    )
    assert done.code == 0, done.err
    estimate = json.loads(done.out)
    keys = {
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "device_bytes",
        "fits",
        "phases",
        "components",
        "step_time_s",
    }
    assert set(estimate) >= keys | {"tokens_per_s", "trainable_params", "total_params"}
    assert set(estimate["step_time_s"]) == {"lower", "upper"}
    assert estimate["recipe"]["micro_batch"] == 2
    assert estimate["recipe"]["rank"] == 8
    assert estimate["fits"] == "yes"


def test_what_does_not_fit_exits_with_three(autoft, wide_shape) -> None:
    done = autoft("estimate", wide_shape, "--vram", 2, "--seq-len", 2048, "--micro-batch", 64, "--json")
    assert done.code == 3
    assert json.loads(done.out)["fits"] == "no"
    plan = autoft("plan", wide_shape, "--vram", 0.6, "--json")
    assert plan.code == 3
    assert json.loads(plan.out)["error"]["exit_code"] == 3


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_plans_and_estimates_fit_the_width(autoft, monkeypatch, kept, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("AUTOFT_HOME", kept)
    for words in (
        ("plan", TINYLLAMA, "--gpu", "rtx-3060", "--seq-len", 1024),
        ("estimate", TINYLLAMA, "--gpu", "rtx-3060"),
        ("profiles",),
    ):
        done = autoft(*words)
        assert done.code == 0
        assert max(map(len, done.out.splitlines())) <= width
        assert "\x1b" not in done.out


def test_nothing_is_sent_anywhere_unless_the_user_turns_it_on() -> None:
    code = (
        "from autoft.trainer.runtime import environment\nenvironment.prepare()\n"
        "from huggingface_hub import constants\nassert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "from autoft.trainer.loop.engine import Engine, _arguments\n"
        "from autoft.trainer.job import Job\nfrom autoft.trainer.recipe import Recipe\nfrom pathlib import Path\n"
        "args = _arguments(Job(model='m', recipe=Recipe(base_dtype='float32')), Path('x'))\n"
        "assert args.report_to == [], args.report_to\nassert not args.push_to_hub\n"
    )
    env = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key and key != "CI"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def test_python_m_autoft_is_autoft() -> None:
    assert run("--version").stdout.startswith("autoft ")
