"""`autoft run` and `autoft chat` end to end on a tiny model, as a user would use them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.home import sha256
from autoft.planner.plan.record import read_plan
from autoft.trainer.result import RunResult
from autoft.trainer.storage.places import forget_host, public_job

# What a user does who has never heard of autoft: transformers and peft alone.
PLAIN_PEFT = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
answers = []
for prompt in prompts:
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)
    answers.append(tokenizer.decode(out[0, ids["input_ids"].size(1):], skip_special_tokens=True).strip())
assert not any(name == "autoft" or name.startswith("autoft.") for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture
def finished(autoft, tiny_model, data_file, tmp_path) -> Path:
    out = tmp_path / "out"
    words = (
        "--set",
        "max_steps=6",
        "--set",
        "base_dtype=float32",
        "--set",
        "max_new_tokens=24",
        "--set",
        "learning_rate=0.01",
    )
    done = autoft("run", tiny_model, "--data", data_file, "--gpu", "cpu", "-o", out, *words, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["output"] == str(out)
    return out


def test_the_folder_is_what_other_tools_open(finished, tiny_model) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"}
    assert not list(finished.parent.glob("*.unfinished"))
    assert not list(finished.parent.glob(".*lock"))
    config = json.loads((finished / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == tiny_model.name
    card = (finished / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlibrary_name: "peft"\n')
    assert 'tags: ["autoft", "lora"]\n' in card


def test_result_json_says_what_happened(finished) -> None:
    result = RunResult.from_dict(json.loads((finished / "result.json").read_text(encoding="utf-8")))
    assert result.steps == len(result.losses) == 6
    assert result.losses[-1][1] < result.losses[0][1]
    assert result.after.loss < result.before.loss
    assert result.predicted is not None
    assert result.predicted.method == "rehearsal"
    assert result.measured.peak_bytes > 0
    assert result.trainable_params < result.total_params
    assert result.artifacts["adapter_model.safetensors"] == sha256(finished / "adapter_model.safetensors")
    unhashed = {"result.json", "events.jsonl", "report.html", "local.json", ".gitignore"}
    assert set(result.artifacts) == {path.name for path in finished.iterdir()} - unhashed
    assert public_job(read_plan(finished / "plan.toml").job) == result.job


def test_what_is_published_names_no_path_of_this_machine(finished, tiny_model, autoft, tmp_path) -> None:
    private = str(tiny_model.parent), str(Path.home())
    for path in finished.iterdir():
        if path.name != "local.json":
            text = path.read_bytes().decode(errors="replace")
            assert not [word for word in private if word in text], path.name
    assert (finished / ".gitignore").read_text().splitlines()[-1] == "local.json"
    assert read_plan(finished / "plan.toml").job.model == str(tiny_model)  # for this machine they are kept
    elsewhere = shutil.copytree(finished, tmp_path / "elsewhere", ignore=lambda *_: ["local.json"])
    done = autoft("chat", elsewhere, "-p", "number 7")
    assert done.code == 2
    assert f"its base {tiny_model.name} is not on this machine" in done.err
    fix = done.err.split("To fix: ")[1].replace(f"/the/path/to/{tiny_model.name}", str(tiny_model))
    subprocess.run(fix, shell=True, check=True)
    assert autoft("chat", elsewhere, "-p", "number 7").code == 0


def test_the_files_of_tensorboard_forget_the_machine(tmp_path) -> None:
    (tmp_path / "tensorboard").mkdir()
    log = tmp_path / "tensorboard" / f"events.out.tfevents.17.{socket.gethostname()}.4.0"
    log.write_bytes(b"log")
    forget_host(tmp_path)
    assert [path.name for path in log.parent.iterdir()] == ["events.out.tfevents.17.host.4.0"]


def test_plain_peft_gives_the_same_answers(finished, tiny_model, autoft) -> None:
    questions = ["number 7", "number 123", "something else"]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, str(finished), json.dumps(prompts)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tiny_model.parent,  # the adapter has its base by name
    )
    assert done.returncode == 0, done.stderr
    for question, plain in zip(questions, json.loads(done.stdout), strict=True):
        chat = autoft("chat", finished, "-p", question, "--max-new-tokens", 24, "--json")
        assert json.loads(chat.out) == {"prompt": question, "answer": plain}


def test_chat_streams_the_same_answer_from_a_pipe(finished, autoft) -> None:
    whole = json.loads(autoft("chat", finished, "-p", "number 7", "--max-new-tokens", 24, "--json").out)["answer"]
    env = {**os.environ, "NO_COLOR": "1"}
    words = [sys.executable, "-m", "autoft", "chat", str(finished), "--max-new-tokens", "24"]
    piped = subprocess.run(words, input="number 7\n", capture_output=True, text=True, check=False, env=env)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.strip() == whole


def test_a_plan_file_runs_as_planned_and_again_gives_the_same_weights(autoft, tiny_model, data_file, tmp_path) -> None:
    plan = tmp_path / "plan.toml"
    words = ("--gpu", "cpu", "--set", "max_steps=3", "--set", "base_dtype=float32", "--set", "dropout=0.1")
    assert autoft("plan", tiny_model, "--data", data_file, "-o", plan, *words).code == 0
    digests = []
    for name in ("one", "two"):
        done = autoft("run", plan, "-o", tmp_path / name)
        assert done.code == 0, done.err
        digests.append(sha256(tmp_path / name / "adapter_model.safetensors"))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_qlora_trains_on_the_cpu_and_says_so(autoft, tiny_model, data_file, tmp_path, quant_type) -> None:
    out = tmp_path / "out"
    words = (
        "--method",
        "qlora",
        "--set",
        f"quant_type={quant_type}",
        "--set",
        "max_steps=20",
        "--set",
        "learning_rate=0.01",
        "--set",
        "max_new_tokens=0",
    )
    done = autoft("run", tiny_model, "--data", data_file, "--gpu", "cpu", "-o", out, *words, "--json")
    assert done.code == 0, done.err
    result = RunResult.from_dict({k: v for k, v in json.loads(done.out).items() if k != "output"})
    assert result.job.recipe.quant_type == quant_type
    assert result.after.loss < 0.9 * result.before.loss
    assert autoft("chat", out, "-p", "number 7", "--max-new-tokens", 8, "--json").code == 0


def test_packed_rows_train_in_fewer_steps_that_are_planned(autoft, tiny_model, data_file, tmp_path) -> None:
    results = {}
    for packing in ("false", "true"):
        words = ("--seq-len", 192, "--gpu", "cpu", "--set", f"packing={packing}", "--set", "epochs=4")
        more = ("--set", "learning_rate=0.01", "--set", "max_new_tokens=0", "--set", "accumulation=1")
        plan, out = tmp_path / f"{packing}.toml", tmp_path / packing
        rows = ("--set", "micro_batch=1")
        assert autoft("plan", tiny_model, "--data", data_file, "-o", plan, *words, *more, *rows).code == 0
        done = autoft("run", plan, "-o", out, "--json")
        assert done.code == 0, done.err
        result = RunResult.from_dict({k: v for k, v in json.loads(done.out).items() if k != "output"})
        assert result.steps == read_plan(plan).steps
        results[packing] = result
    packed, alone = results["true"], results["false"]
    assert (packed.rows, packed.tokens, packed.trained_tokens) == (36, alone.tokens, alone.trained_tokens)
    assert (packed.steps, alone.steps) == (4 * 8, 4 * 36)  # five rows of 37 or 38 tokens in 192
    assert packed.after.loss < 0.9 * packed.before.loss


def test_a_finished_run_is_replaced_only_by_force(finished, autoft, tiny_model, data_file) -> None:
    before = sha256(finished / "result.json")
    words = ("run", tiny_model, "--data", data_file, "--gpu", "cpu", "-o", finished, "--set", "max_steps=1")
    refused = autoft(*words)
    assert refused.code == 2
    assert "holds a finished run" in refused.err
    assert sha256(finished / "result.json") == before
    assert autoft(*words, "--force").code == 0
    assert sha256(finished / "result.json") != before
    assert not list(finished.parent.glob("*.replaced"))


def test_without_output_each_run_gets_a_folder_of_its_own(autoft, tiny_model, data_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "run",
        tiny_model,
        "--data",
        data_file,
        "--gpu",
        "cpu",
        "--set",
        "max_steps=1",
        "--set",
        "max_new_tokens=0",
    )
    assert autoft(*words).code == 0
    assert autoft(*words).code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tiny", "tiny-2"}


@pytest.mark.parametrize("width", [40, 100])
def test_what_a_run_prints_fits_the_width(autoft, tiny_model, data_file, tmp_path, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    words = ("--gpu", "cpu", "--set", "max_steps=1", "--set", "max_new_tokens=4")
    done = autoft("run", tiny_model, "--data", data_file, "-o", tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    tables = [line for line in done.out.splitlines() if "autoft " not in line]
    assert max(map(len, tables)) <= width
    assert "step 1/1" in done.err
