"""`autoft eval --tasks`: lm-eval's own evaluation of a run, on a task of a local file; without lm-eval one line."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.conftest import write_forty_rows, write_jsonl

lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
# sqlitedict, rouge_score and evaluate, which lm-eval imports
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")

TASK = """
task: number_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "number {{{{n}}}}"
doc_to_choice: "{{{{['it is ' ~ n, 'zzzzzzz']}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = write_jsonl(folder / "rows.jsonl", [{"n": n} for n in range(12)])
    (folder / "number_words.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, tiny_model, tmp_path_factory):
    """A run that has learnt to answer "it is N"."""
    from autoft.cli.main import main

    folder = tmp_path_factory.mktemp(request.param)
    data = write_forty_rows(folder / "data.jsonl")
    settings = (
        "max_steps=60",
        "micro_batch=4",
        "learning_rate=0.02",
        "max_new_tokens=0",
        "base_dtype=float32",
        "loss=selected",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(tiny_model), "--data", str(data), "--gpu", "cpu", "--method", request.param,
              "-o", str(folder / "out"), *words])  # fmt: skip
    assert not stopped.value.code
    return folder / "out"


@lm_eval
def test_base_and_trained_model_are_judged_by_lm_eval(autoft, trained, task_dir) -> None:
    words = ("eval", trained, "--tasks", "number_*", "--task-dir", task_dir)
    done = autoft(*words, "--rows", "8", "--json")
    assert done.code == 0, done.err
    judged = json.loads(done.out)
    assert judged["run"] == str(trained)
    assert judged["tasks"]["asked_for"] == ["number_words"]
    (score,) = judged["tasks"]["scores"]
    assert (score["task"], score["metric"], score["rows"], score["higher_is_better"]) == (
        "number_words",
        "acc",
        8,
        True,
    )
    before, after = accuracies(trained, 8)
    assert (score["before"], score["after"]) == (before, after)
    assert before < after
    assert 0 <= score["after_stderr"] < 0.5
    shown = autoft(*words)
    assert shown.code == 0, shown.err
    assert "number_words" in shown.out
    assert " ± " in shown.out


def accuracies(folder, rows: int) -> tuple[float, float]:
    """Of the base and of the trained model, by sums of log-probabilities of our own."""
    import torch

    from autoft.trainer.evaluation.open_run import load_base, load_run_tokenizer, load_trained, open_result

    result, tokenizer = open_result(folder), load_run_tokenizer(folder)

    def log_prob(model, prompt: str, answer: str) -> float:
        begun, whole = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (prompt, f"{prompt} {answer}"))
        with torch.inference_mode():
            logs_BTV = model(input_ids=whole).logits.log_softmax(-1)
        picked = logs_BTV[0, :-1].gather(1, whole[0, 1:, None])[begun.shape[1] - 1 :]
        return float(picked.sum())

    def accuracy(model) -> float:
        prompts = {n: f"number {n}" for n in range(rows)}
        right = [log_prob(model, text, f"it is {n}") > log_prob(model, text, "zzzzzzz") for n, text in prompts.items()]
        return sum(right) / rows

    return accuracy(load_base(folder, result)), accuracy(load_trained(folder, result))


@lm_eval
def test_an_unknown_task_is_answered_with_near_names(autoft, tmp_path) -> None:
    done = autoft("eval", tmp_path, "--tasks", "arc_eazy")
    assert done.code == 2
    assert "--tasks arc_eazy: not a task of lm-eval. Did you mean arc_easy" in done.err


@lm_eval
def test_a_task_that_cannot_be_loaded_is_one_line(autoft, trained, tmp_path) -> None:
    (tmp_path / "number_words.yaml").write_text(TASK.format(rows=tmp_path / "gone.jsonl"), encoding="utf-8")
    done = autoft("eval", trained, "--tasks", "number_words", "--task-dir", tmp_path)
    assert done.code == 2
    assert "--tasks number_words: lm-eval cannot run them" in done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_one_line_says_how_to_get_it(autoft, tmp_path) -> None:
    done = autoft("eval", tmp_path, "--tasks", "arc_easy")
    assert done.code == 2
    assert "--tasks needs lm-eval, which is not installed" in done.err
    assert "To fix: pip install 'autoft[tasks]'" in done.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--task-dir", "."), "--task-dir goes with --tasks"),
        (("--tasks", "arc_easy", "--data", "x.jsonl"), "--tasks has rows of its own"),
        (("--tasks", " , "), "no task is named"),
    ],
)
def test_what_does_not_go_together_is_refused(autoft, tmp_path, words, what) -> None:
    done = autoft("eval", tmp_path, *words)
    assert done.code == 2
    assert what in done.err
