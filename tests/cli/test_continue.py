"""`--from-adapter`: training goes on from the weights of a run's adapter, or of another tool's, on the same base."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from autoft.cli.main import main
from autoft.errors import OptionError, Resumable
from autoft.home import sha256
from autoft.planner.plan.record import read_plan
from autoft.planner.search.continued import reason
from autoft.trainer.evaluation.open_adapter import open_adapter
from autoft.trainer.events import Step
from autoft.trainer.run.session import resume, run
from tests.conftest import save_tiny_model, write_forty_rows, write_jsonl
from tests.trainer.exports import save_adapter

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SHORT = ("max_steps=2", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4", "max_new_tokens=0")
LEARNS = ("learning_rate=0.01", "base_dtype=float32")
STAYS = ("learning_rate=1e-30", "base_dtype=float32")  # an update that no float32 weight shows


def words(*settings: str) -> list[str]:
    return ["--gpu", "cpu", *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory) -> Path:
    """`first`, a run on `data.jsonl`, and `peft`, a folder of PEFT on the same base."""
    folder = tmp_path_factory.mktemp("continued")
    write_forty_rows(folder / "data.jsonl")
    settings = ("rank=4", "alpha=12", "use_rslora=true", "target_modules=q_proj,down_proj")
    given = ["run", tiny_model, "--data", folder / "data.jsonl", "-o", folder / "first"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*given, *words(*SHORT, *LEARNS, *settings))])
    assert not ended.value.code
    save_adapter(tiny_model, folder / "peft", r=3, lora_alpha=5, target_modules=["v_proj", "o_proj"], use_dora=True)
    return folder


def test_a_run_goes_on_from_another_run(autoft, here, tiny_model, tmp_path) -> None:
    first, out = json.loads((here / "first" / "result.json").read_text(encoding="utf-8")), tmp_path / "second"
    given = ("--from-adapter", here / "first", "--data", here / "data.jsonl")
    done = autoft("run", *given, "-o", out, *words(*SHORT, *LEARNS), "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    names = ("adapter", "rank", "alpha", "use_rslora", "target_modules")
    recipe = {name: first["job"]["recipe"][name] for name in names}
    assert {name: result["job"]["recipe"][name] for name in names} == recipe
    assert recipe["rank"] == 4
    assert result["before"]["loss"] == pytest.approx(first["after"]["loss"], abs=1e-4)
    assert result["after"]["loss"] < result["before"]["loss"]
    digest = sha256(here / "first" / ADAPTER)
    assert result["continued"] == {"name": "first", "sha256": digest}
    assert result["job"]["from_adapter"] == "first"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"Training continued from the adapter `first` (SHA-256 `{digest}`)." in card
    assert read_plan(out / "plan.toml").inputs.adapter_sha256 == digest
    assert read_plan(out / "plan.toml").job.from_adapter == str(here / "first")
    for path in (path for path in out.iterdir() if path.name != "local.json"):
        assert str(here).encode() not in path.read_bytes(), path

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    opened = PeftModel.from_pretrained(model, out)
    config = opened.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 12, True)
    assert set(config.target_modules) == {"q_proj", "down_proj"}


def test_the_plan_says_over_which_base_it_was_trained(here) -> None:
    adapter = open_adapter(here / "first")
    assert reason(adapter, "first").text.endswith("with its weights and layers")
    recipe = replace(adapter.result.job.recipe, method="qlora", quant_type="nf4")
    of_qlora = replace(adapter, result=replace(adapter.result, job=replace(adapter.result.job, recipe=recipe)))
    assert "so far trained over the base in nf4" in reason(of_qlora, "first").text


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_weights_of_a_peft_folder_are_where_it_begins(autoft, here, tiny_model, tmp_path, kind) -> None:
    folder = here / "peft"
    if kind == "ia3":
        targets = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        folder = save_adapter(tiny_model, tmp_path / "ia3", ia3=True, **targets)
    given = ("--from-adapter", folder, "--data", here / "data.jsonl", "-o", tmp_path / "out")
    done = autoft("run", *given, *words(*SHORT, *STAYS), "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["job"]["recipe"]["adapter"] == kind
    assert result["before"]["loss"] == pytest.approx(result["after"]["loss"], abs=1e-5)
    before, after = (load_file(path / ADAPTER) for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_plan_carries_the_adapter_and_notices_another(autoft, here, tmp_path) -> None:
    folder, plan = shutil.copytree(here / "peft", tmp_path / "adapter"), tmp_path / "plan.toml"
    given = ("--from-adapter", folder, "--data", here / "data.jsonl", *words(*SHORT, *STAYS))
    done = autoft("plan", *given, "-o", plan)
    assert done.code == 0, done.err
    assert "Continues" in done.out
    assert "autoft run" in done.out
    recipe = read_plan(plan).job.recipe
    assert (recipe.rank, recipe.alpha, recipe.use_dora, recipe.target_modules) == (3, 5.0, True, ("o_proj", "v_proj"))
    weights = load_file(folder / ADAPTER)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, folder / ADAPTER)
    done = autoft("run", plan, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert "Note: the adapter that it continues has changed since the plan was made" in done.err
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace("rank = 3", "rank = 5"), encoding="utf-8")
    done = autoft("run", plan, "-o", tmp_path / "none")
    assert done.code == 2
    assert f"the plan: job.recipe.rank is 5, and {folder} has 3" in done.err
    assert not (tmp_path / "none").exists()


class StopAt:
    """A listener that interrupts this process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: object) -> None:
        if isinstance(event, Step) and event.step == self.step:
            self.step = 0
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_needs_the_adapter_no_more_and_refuses_another(autoft, here, tmp_path) -> None:
    folder, plan = shutil.copytree(here / "first", tmp_path / "adapter"), tmp_path / "plan.toml"
    settings = words("max_steps=4", *SHORT[1:], *LEARNS)
    assert autoft("plan", "--from-adapter", folder, "--data", here / "data.jsonl", *settings, "-o", plan).code == 0
    job = read_plan(plan).job
    run(job, tmp_path / "whole", plan_toml="")
    for out in (tmp_path / "gone", tmp_path / "changed"):
        with pytest.raises(Resumable):
            run(job, out, plan_toml="", listener=StopAt(2))
    weights = load_file(folder / ADAPTER)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, folder / ADAPTER)
    with pytest.raises(OptionError, match=r"the adapter that it continues \(.+\) has changed"):
        resume(tmp_path / "changed", job)
    accepted = resume(tmp_path / "changed", job, accept_changes=True)
    shutil.rmtree(folder)
    resumed = resume(tmp_path / "gone", job)
    digest = sha256(here / "first" / ADAPTER)
    assert accepted.continued == resumed.continued
    assert resumed.continued.sha256 == digest
    for name in ("gone", "changed"):
        assert sha256(tmp_path / name / ADAPTER) == sha256(tmp_path / "whole" / ADAPTER)


def other_base(here: Path, tiny_model: Path) -> str:
    """A fine-tune of the base: all shapes are the same."""
    folder = Path(shutil.copytree(tiny_model, here / "other"))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def wider_base(here: Path) -> str:
    folder = save_tiny_model(here / "wider")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128, "head_dim": 16}))
    (folder / "model.safetensors").unlink()
    return str(folder)


def test_another_base_is_refused(autoft, here, tiny_model, tmp_path) -> None:
    other = other_base(tmp_path, tiny_model)
    for command in (("plan",), ("run", "-o", tmp_path / "out")):
        done = autoft(*command, other, "--from-adapter", here / "first", "--data", here / "data.jsonl", *words(*SHORT))
        assert done.code == 2
        assert f"Error: {other}: not the weights that {here / 'first'} was trained on" in done.err
    done = autoft("plan", wider_base(tmp_path), "--from-adapter", here / "peft", *words())
    assert done.code == 2
    assert "lora_A.weight is 3 x 64, and wider takes 3 x 128" in done.err
    assert [path for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def config_of(**changes: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps({**config, **changes}), encoding="utf-8")

    return change


def rename(folder: Path) -> None:
    (folder / ADAPTER).rename(folder / "adapter_model.bin")


def one_less(folder: Path) -> None:
    save_file(dict(sorted(load_file(folder / ADAPTER).items())[1:]), folder / ADAPTER)


DAMAGE = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "no adapter there, adapter_config.json is missing"),
    "config cut": (lambda folder: (folder / CONFIG).write_text("{"), "adapter_config.json:1: not JSON"),
    "config a list": (lambda folder: (folder / CONFIG).write_text("[]"), "adapter_config.json: not a JSON object"),
    "a pickle": (rename, "is missing, only a pickle, which can run any code"),
    "cut": (lambda folder: (folder / ADAPTER).write_bytes(b"\x08"), "not a whole safetensors file"),
    "a weight less": (one_less, "lora_A.weight is missing; 1 weights in all do not fit"),
    "another kind": (config_of(peft_type="LOHA"), "peft_type is 'LOHA', and autoft opens LORA, IA3"),
    "no list": (config_of(target_modules="all-linear"), "target_modules is not a list of layers' names"),
    "saved modules": (config_of(modules_to_save=["lm_head"]), "modules_to_save is ['lm_head'], and autoft trains no"),
    "patterns": (config_of(rank_pattern={"q_proj": 8}), "rank_pattern is {'q_proj': 8}"),
    "PiSSA": (config_of(init_lora_weights="pissa"), "init_lora_weights is pissa"),
    "another rank": (config_of(r=5), "lora_A.weight is 3 x 64, and tiny takes 5 x 64"),
    "a rank of text": (config_of(r="x"), "rank = 'x'"),
    "no base": (config_of(base_model_name_or_path=None), "names no base\nTo fix: name the base as MODEL"),
    "base gone": (config_of(base_model_name_or_path="/gone"), "its base /gone is not here"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_cannot_be_continued_is_refused(autoft, here, tmp_path, damage) -> None:
    folder = Path(shutil.copytree(here / "peft", tmp_path / "adapter"))
    hurt, message = DAMAGE[damage]
    hurt(folder)
    done = autoft("run", "--from-adapter", folder, "--data", here / "data.jsonl", "-o", tmp_path / "out", *words())
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--set", "rank=8"), "--set rank=8 and --from-adapter {first} differ: the adapter has 4"),
        (("--set", "adapter=ia3"), "--set adapter=ia3 and --from-adapter {first} differ: the adapter has lora"),
        (("--set", "target_modules=q_proj"), "differ: the adapter has q_proj,down_proj"),
        (("--method", "full"), "--from-adapter {first} and method=full exclude each other"),
        (("--min-rank", "8"), "--min-rank 8 and --from-adapter {first} exclude each other: its rank is 4"),
    ],
)
def test_what_contradicts_the_adapter_is_refused(autoft, here, given, message) -> None:
    done = autoft("plan", "--from-adapter", here / "first", *words(), *given)
    assert done.code == 2, done.err
    assert message.format(first=here / "first") in done.err


def test_a_run_s_adapter_that_was_changed_is_refused(autoft, here, tmp_path) -> None:
    folder = Path(shutil.copytree(here / "first", tmp_path / "first"))
    config_of(r=8)(folder)
    done = autoft("plan", "--from-adapter", folder, *words())
    assert done.code == 2
    assert f"{folder / CONFIG}: not the file that the run wrote" in done.err


def test_what_agrees_with_the_adapter_is_taken(autoft, here) -> None:
    done = autoft(
        "plan", "--from-adapter", here / "first", *words("rank=4", "target_modules=down_proj,q_proj"), "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["job"]["recipe"]["rank"] == 4


def test_the_base_of_a_run_is_trained_on_again(autoft, here, tiny_model, tmp_path) -> None:
    given = ("--base-run", here / "first", "--data", here / "data.jsonl", *words(*SHORT, *LEARNS, "rank=2"))
    done = autoft("run", *given, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    first, result = (
        json.loads((f / "result.json").read_text(encoding="utf-8")) for f in (here / "first", tmp_path / "out")
    )
    assert (result["base"], result["base_fingerprint"]) == (first["base"], first["base_fingerprint"])
    assert result["before"]["loss"] == pytest.approx(first["before"]["loss"], abs=1e-5)
    assert (result["continued"], result["job"]["recipe"]["rank"]) == (None, 2)
    both = autoft("plan", tiny_model, *given)
    assert both.code == 2
    assert f"--base-run {here / 'first'} names the model, and so does {tiny_model}" in both.err
    moved = Path(shutil.copytree(here / "first", tmp_path / "moved"))
    places = json.loads((moved / "local.json").read_text(encoding="utf-8"))
    other = other_base(tmp_path, tiny_model)
    (moved / "local.json").write_text(json.dumps({**places, "model": other, "base": other}), encoding="utf-8")
    record = json.loads((moved / "result.json").read_text(encoding="utf-8"))
    record["job"]["model"] = "other"
    (moved / "result.json").write_text(json.dumps(record), encoding="utf-8")
    for command in ("plan", "run"):
        done = autoft(command, "--base-run", moved, *given[2:])
        assert done.code == 2
        assert f"{other}: not the weights that {moved} was trained on" in done.err
    none = autoft("plan", "--base-run", tmp_path / "none", *words())
    assert (none.code, "holds no finished run" in none.err) == (2, True)


def test_a_whole_model_is_no_adapter(autoft, tiny_model, tmp_path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"n {n}", "completion": "yes"} for n in range(40)])
    given = ("run", tiny_model, "--data", data, "--method", "full", "-o", tmp_path / "full")
    assert autoft(*given, *words(*SHORT, "base_dtype=float32")).code == 0
    done = autoft("plan", "--from-adapter", tmp_path / "full", *words())
    assert done.code == 2
    assert "its run trained all weights and has no adapter\nTo fix: autoft run" in done.err
