"""`--set report_to=mlflow`: the trained model is logged, registered when asked, and generates when it is loaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.conftest import write_forty_rows

mlflow_is_here = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
# of mlflow's own imports, and its databases are closed by the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")

LOADED = """
import json, sys, mlflow
uri, prompt, base = sys.argv[1:]
pipe = mlflow.transformers.load_model(uri, **({"base_model_path": base} if base else {}))
answer = pipe(prompt, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
print(json.dumps({"kind": type(pipe.model).__name__, "answer": answer}))
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A tracking server of two files in a folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model, folder, *settings: str):
    """`autoft run` in a process of its own: mlflow keeps the first server that it is told of."""
    data = write_forty_rows(folder / "data.jsonl")
    chosen = ("max_steps=3", "max_new_tokens=0", "base_dtype=float32", "loss=selected", "report_to=mlflow", *settings)
    words = [word for setting in chosen for word in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "autoft",
        "run",
        model,
        "--data",
        data,
        "--gpu",
        "cpu",
        "-o",
        folder / "out",
        *words,
    ]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def loaded(uri: str, prompt: str, base: str = "") -> dict[str, str]:
    """What a process of its own makes of the logged model."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, uri, prompt, base], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(folder, prompt: str) -> str:
    """What the run's own folder answers."""
    import torch

    from autoft.trainer.evaluation.open_run import load_run_tokenizer, load_trained, open_result

    model, tokenizer = load_trained(folder, open_result(folder)), load_run_tokenizer(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@mlflow_is_here
@pytest.mark.parametrize("settings", [("method=lora", "learning_rate=0.05"), ("method=full", "learning_rate=0.01")])
def test_the_trained_model_is_registered_and_generates(tiny_model, store, settings) -> None:
    done = run(tiny_model, store, *settings, "mlflow_register=numbers")
    assert done.returncode == 0, done.stderr
    assert "mlflow: " not in done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (version,) = client.search_model_versions("name='numbers'")
    (tracked,) = client.search_runs(["0"])
    assert version.run_id == tracked.info.run_id
    assert tracked.info.status == "FINISHED"
    weights = list((store / "mlruns").rglob("*.safetensors"))
    whole = settings[0] == "method=full"
    assert [path.name for path in weights] == ["model.safetensors" if whole else "adapter_model.safetensors"]
    answer = loaded("models:/numbers/1", "number 7")
    assert answer["kind"] == ("LlamaForCausalLM" if whole else "PeftModelForCausalLM")
    assert answer["answer"] == expected(store / "out", "number 7")


@mlflow_is_here
def test_an_adapter_is_loaded_on_a_base_elsewhere(tiny_model, store) -> None:
    import shutil

    base = shutil.copytree(tiny_model, store / "first")
    done = run(base, store, "learning_rate=0.05", "mlflow_register=moved")
    assert done.returncode == 0, done.stderr
    answer = expected(store / "out", "number 7")
    base.rename(store / "second")
    assert loaded("models:/moved/1", "number 7", str(store / "second"))["answer"] == answer


@mlflow_is_here
def test_a_model_that_cannot_be_logged_ends_no_run(tiny_model, store) -> None:
    done = run(tiny_model, store, "mlflow_register=a/b:c")
    assert done.returncode == 0, done.stderr
    assert "mlflow: logging the model failed" in done.stderr
    assert (store / "out" / "result.json").is_file()


@mlflow_is_here
def test_first_values_from_the_base_are_not_logged_and_that_is_said(tiny_model, store) -> None:
    done = run(tiny_model, store, "init=olora")
    assert done.returncode == 0, done.stderr
    assert "mlflow: the model was not logged: with init olora" in done.stderr


def test_a_name_without_mlflow_is_refused(autoft, tiny_model, data_file, tmp_path) -> None:
    words = ("--gpu", "cpu", "-o", tmp_path / "out", "--set", "mlflow_register=numbers")
    done = autoft("run", tiny_model, "--data", data_file, *words)
    assert done.code == 2
    assert "mlflow_register needs MLflow: add mlflow to report_to" in done.err
