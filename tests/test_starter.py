"""The starter for real, in short runs: SmolLM2-135M-Instruct on the bundled task; benchmarks/starter.py is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.errors import ModelError
from autoft.trainer.data.support_desk import FIELDS
from tests.conftest import HOME_OF_THE_USER

pytestmark = pytest.mark.slow

MESSAGE = "Hello, my Nordlys Kettle (order DE55-1234) leaks. Please send me a new one. Kind regards, Ada Quist"


@pytest.fixture(scope="module")
def starter_env() -> dict[str, str]:
    """An environment with the starter in its cache: the user's own, so that it is fetched once and not for every test.

    All threads, since this model is not tiny; but one that waits sleeps, since other tests run beside it. Where threads
    spin for cores that other processes want, a run was seen to take six times its CPU time.
    """
    env = {key: value for key, value in os.environ.items() if key not in ("AUTOFT_HOME", "OMP_NUM_THREADS")}
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    if HOME_OF_THE_USER:
        env["AUTOFT_HOME"] = HOME_OF_THE_USER
    code = "from autoft.trainer.sources.starter import starter_folder; starter_folder(print)"
    fetched = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        if "could not be fetched" in fetched.stderr:
            pytest.skip(f"the starter model could not be fetched: {fetched.stderr.splitlines()[-1]}")
        raise ModelError(fetched.stderr)
    # From here on without a network
    return {**env, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}


def autoft(env: dict[str, str], *words: object) -> dict[str, object]:
    command = [sys.executable, "-m", "autoft", *map(str, words), "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


# Of one row, and as fast as it can learn: 50 rows instead of the 384 that the plan's 24 steps would be
SMALL_STEPS = ("--set", "micro_batch=1", "--set", "accumulation=1", "--set", "learning_rate=1e-3")


@pytest.fixture(scope="module")
def finished(starter_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("starter") / "out"
    autoft(starter_env, "run", "-o", out, *SMALL_STEPS, "--set", "max_steps=50", "--set", "eval_rows=5")
    return out


def test_a_few_steps_teach_it_json_and_chat_speaks_it(starter_env: dict[str, str], finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    assert before["json_valid"] <= 0.1
    assert after["json_valid"] >= 0.8
    assert after["loss"] < 0.2 * before["loss"]
    answer = autoft(starter_env, "chat", finished, "-p", MESSAGE)["answer"]
    assert isinstance(answer, str)
    assert list(json.loads(answer)) == list(FIELDS)


def test_llama_cpp_computes_what_base_and_adapter_do(
    starter_env: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "starter"
    written = autoft(starter_env, "export", finished, "--to", "ollama", "-o", out)
    assert written["quant"] == "f16"
    assert written["drift"]["mean_logprob"] < 0.01  # type: ignore[index]
    assert written["reference"]["mean_logprob"] > -1.0  # type: ignore[index]
    assert sorted(written["files"]) == ["Modelfile", "autoft_export.json", "model.gguf"]  # type: ignore[call-overload]
    text = (out / "Modelfile").read_text(encoding="utf-8")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert text.count("You are a helpful AI assistant named SmolLM") == 1


def test_qlora_trains_the_same_model_in_four_bits(starter_env: dict[str, str], tmp_path: Path) -> None:
    words = ("--method", "qlora", "--set", "max_steps=10", "--set", "eval_rows=4", "--set", "max_new_tokens=0")
    smaller_steps = ("--set", "micro_batch=1", "--set", "accumulation=2")  # it is the steps that count, not their rows
    result = autoft(starter_env, "run", "-o", tmp_path / "out", *smaller_steps, *words)
    assert result["job"]["recipe"]["quant_type"] == "nf4"  # type: ignore[index]
    assert result["after"]["loss"] < 0.5 * result["before"]["loss"]  # type: ignore[index]
