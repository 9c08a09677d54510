"""`autoft adapters`: what is listed and shown, and sums of adapters, compared with the arithmetic they stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from autoft.cli.adapters import METHODS
from autoft.cli.main import main
from autoft.home import sha256
from autoft.trainer.export import combine as combining
from tests.conftest import write_jsonl
from tests.trainer.exports import save_adapter

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SETTINGS = ("max_steps=8", "learning_rate=0.01", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4")
LAYERS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory) -> Path:
    """Runs `runs/yes` and `runs/no` on one base, and folders of PEFT: `one`, `two`, `wide` (rank 6), `ia3`, `ia3b`."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, word in (("yes", "yes"), ("no", "no no")):
        data = write_jsonl(folder / f"{name}.jsonl", [{"prompt": f"n {n}", "completion": word} for n in range(40)])
        words = ["run", tiny_model, "--data", data, "--gpu", "cpu", "-o", folder / "runs" / name]
        given = (*SETTINGS, "base_dtype=float32", "max_new_tokens=0", "rank=4")
        words += [part for setting in given for part in ("--set", setting)]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code
    save_adapter(tiny_model, folder / "one", target_modules=LAYERS)
    save_adapter(tiny_model, folder / "two", target_modules=LAYERS, std=0.2, lora_alpha=16, use_rslora=True)
    save_adapter(tiny_model, folder / "wide", target_modules=["q_proj", "v_proj"], r=6, use_rslora=True)
    targets = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    save_adapter(tiny_model, folder / "ia3", ia3=True, **targets)
    save_adapter(tiny_model, folder / "ia3b", ia3=True, std=0.3, **targets)
    return folder


def logits(base: Path, folder: Path) -> torch.Tensor:
    """Of plain PEFT on plain transformers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        return model(torch.arange(4, 20).unsqueeze(0)).logits


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to the weight of each layer, from its two files alone."""
    config, weights = json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / ADAPTER)
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    names = (name for name in weights if ".lora_A." in name)
    return {name: scale * weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in names}


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_the_sum_is_the_sum_of_the_updates(autoft, here, tmp_path, method) -> None:
    out = tmp_path / "sum"
    given = ("--method", method, "--weights", "1,-0.5", "-o", out, "--json")
    done = autoft("adapters", "combine", here / "one", here / "wide", *given)
    assert done.code == 0, done.err
    one, two, both = (updates(folder) for folder in (here / "one", here / "wide", out))
    assert both.keys() == one.keys() | two.keys()
    nonzero = [method == "cat"]
    for name, update in both.items():
        whole = one.get(name, torch.zeros(())) - 0.5 * two.get(name, torch.zeros(()))
        if method == "svd":  # as near as a matrix of the largest rank comes
            left = float(torch.linalg.svdvals(whole)[6])
            assert float(torch.linalg.svdvals(whole - update)[0]) == pytest.approx(left, rel=1e-3, abs=1e-4)
            nonzero.append(left > 1e-3)
        else:
            assert torch.allclose(update, whole, atol=1e-5)
    assert any(nonzero)  # the rank leaves something out
    combined = json.loads(done.out)
    assert (combined["rank"], combined["method"]) == ({"cat": 10, "svd": 6}[method], method)
    digests = [sha256(here / name / ADAPTER) for name in ("one", "wide")]
    assert [part["sha256"] for part in combined["parts"]] == digests
    assert [part["weight"] for part in combined["parts"]] == [1.0, -0.5]


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_each_method_of_peft_gives_what_peft_gives_on_the_whole_base(
    autoft, here, tiny_model, tmp_path, method
) -> None:
    density = None if method == "linear" else 0.6
    given = () if density is None else ("--density", density)
    out = tmp_path / "sum"
    done = autoft("adapters", "combine", here / "one", here / "one", "--method", method, *given, "-o", out, "--json")
    assert done.code == 0, done.err
    assert all(score["quality"]["perplexity"] > 0 for score in json.loads(done.out)["scores"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), here / "one", adapter_name="a")
    model.load_adapter(here / "one", adapter_name="b")
    torch.manual_seed(combining.SEED)
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum", combination_type=method, density=density)
    model.set_adapter("sum")
    with torch.no_grad():
        expected = model(torch.arange(4, 20).unsqueeze(0)).logits
    assert torch.allclose(logits(tiny_model, out), expected, atol=1e-4)


def test_the_mean_of_factors(autoft, here, tmp_path) -> None:
    done = autoft("adapters", "combine", here / "ia3", here / "ia3b", "-o", tmp_path / "sum", "--json")
    assert done.code == 0, done.err
    one, two, both = (load_file(folder / ADAPTER) for folder in (here / "ia3", here / "ia3b", tmp_path / "sum"))
    assert all(torch.allclose(both[name], (one[name] + two[name]) / 2, atol=1e-6) for name in one)


def test_runs_are_scored_on_what_each_held_out(autoft, here, tiny_model, tmp_path) -> None:
    yes, no, out = here / "runs" / "yes", here / "runs" / "no", tmp_path / "both"
    done = autoft("adapters", "combine", yes, no, "-o", out, "--json")
    assert done.code == 0, done.err
    combined = json.loads(done.out)
    loss = {(score["adapter"], score["texts"]): -score["quality"]["mean_logprob"] for score in combined["scores"]}
    assert len(loss) == 8
    for name in ("yes", "no"):
        texts = f"held-out rows of {name}"
        result = json.loads((here / "runs" / name / "result.json").read_text(encoding="utf-8"))
        assert loss["base", texts] == pytest.approx(result["before"]["loss"], abs=0.01)
        assert loss[name, texts] == pytest.approx(result["after"]["loss"], abs=0.01)
        assert loss["combined", texts] < loss["base", texts]
    for path in (path for path in out.iterdir() if path.name != "local.json"):
        assert str(here).encode() not in path.read_bytes(), path
        assert str(tiny_model).encode() not in path.read_bytes(), path
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"| `yes` | 1 | `{sha256(yes / ADAPTER)}` |" in card
    # the folder is one that other commands take
    merged = autoft("merge", out, "-o", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.err
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(torch.arange(4, 20).unsqueeze(0)).logits
    assert torch.allclose(whole.float(), logits(tiny_model, out), atol=1e-3)
    again = autoft("adapters", "combine", yes, no, "-o", out)
    assert (again.code, again.out) == (2, "")
    assert "--force to replace it" in again.err
    assert autoft("adapters", "combine", yes, no, "--data", here / "no.jsonl", "-o", out, "--force").code == 0


def test_a_base_of_which_only_the_shape_is_here_is_enough(autoft, here, tiny_model, tmp_path) -> None:
    base = tmp_path / "shape"
    base.mkdir()
    shutil.copy(tiny_model / "config.json", base)
    given = ("--base", base, "-o", tmp_path / "sum")
    done = autoft("adapters", "combine", here / "one", here / "two", *given)
    assert done.code == 0, done.err
    assert "Note: not scored, and not loaded on the base: its weights are not on this machine" in done.out
    both, one, two = (updates(folder) for folder in (tmp_path / "sum", here / "one", here / "two"))
    assert all(torch.allclose(both[name], one[name] + two[name], atol=1e-5) for name in both)


REFUSED = {
    "ranks": (("{one}", "{wide}", "--method", "linear"), "{one} has rank 4, {wide} has rank 6: linear needs one rank"),
    "kinds": (("{one}", "{ia3}"), "kinds cannot be combined"),
    "one": (("{one}",), "one adapter: nothing to combine"),
    "none": (("{here}/none", "{one}"), "no adapter there, adapter_config.json is missing"),
    "weights": (("{one}", "{two}", "--weights", "1"), "--weights has 1 numbers for 2 adapters"),
    "words": (("{one}", "{two}", "--weights", "1,x"), "--weights 1,x: not numbers with commas"),
    "nan": (("{one}", "{two}", "--weights", "1,nan"), "--weights: not finite, or all 0"),
    "no density": (("{one}", "{two}", "--method", "ties"), "--method ties cuts values, and needs the share to keep"),
    "density": (("{one}", "{two}", "--density", "0.5"), "--density: cat cuts no values"),
    "a share": (("{one}", "{two}", "--method", "ties", "--density", "2"), "--density 2 is not a share"),
    "factors": (("{ia3}", "{ia3b}", "--weights", "1,1"), "which can only be averaged"),
    "method": (("{one}", "{two}", "--method", "lin"), "--method lin: not known. Did you mean linear"),
    "dora": (("{one}", "{dora}"), "DoRA's lengths of rows cannot be added"),
    "base": (("{one}", "{elsewhere}"), "different bases: {one} is for tiny, {elsewhere} for other"),
    "data": (("{one}", "{two}", "--data", "{here}/none.jsonl"), "none.jsonl"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_combined_is_refused_and_leaves_nothing(autoft, here, tiny_model, tmp_path, case) -> None:
    names = {name: str(here / name) for name in ("one", "two", "wide", "ia3", "ia3b")}
    names |= {"here": str(here), "dora": str(tmp_path / "dora"), "elsewhere": str(tmp_path / "elsewhere")}
    if case == "dora":
        save_adapter(tiny_model, tmp_path / "dora", use_dora=True, target_modules=LAYERS)
    shutil.copytree(here / "two", tmp_path / "elsewhere")
    config = json.loads((here / "two" / CONFIG).read_text(encoding="utf-8"))
    (tmp_path / "elsewhere" / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/models/other"}))
    words, message = REFUSED[case]
    done = autoft("adapters", "combine", *(word.format(**names) for word in words), "-o", tmp_path / "out")
    assert done.code == 2, (done.out, done.err)
    assert message.format(**names) in done.err
    assert "Traceback" not in done.err
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == []


def test_runs_on_different_bases_are_refused(autoft, here, tmp_path) -> None:
    other = Path(shutil.copytree(here / "runs" / "no", tmp_path / "no"))
    result = json.loads((other / "result.json").read_text(encoding="utf-8"))
    (other / "result.json").write_text(json.dumps({**result, "base_fingerprint": "0" * 64}), encoding="utf-8")
    done = autoft("adapters", "combine", here / "runs" / "yes", other, "-o", tmp_path / "out")
    assert done.code == 2
    assert "were trained on different bases" in done.err


def test_a_list_of_runs_and_others(autoft, here, tmp_path) -> None:
    done = autoft("adapters", "list", here / "runs", here / "one", "--json")
    assert done.code == 0, done.err
    no, yes, one = json.loads(done.out)["adapters"]
    assert (yes["name"], yes["base"], yes["rank"], yes["data"], yes["rows"]) == ("yes", "tiny", 4, "yes.jsonl", 36)
    assert no["after"]["loss"] < no["before"]["loss"]
    assert (one["base"], one["data"], one["alpha"]) == ("tiny", None, 8.0)
    assert one["params"] == sum(tensor.numel() for tensor in load_file(here / "one" / ADAPTER).values())
    shown = autoft("adapters", "list", here / "runs", here / "ia3").out
    assert "yes.jsonl, 36 rows" in shown
    assert "IA3" in shown
    broken = Path(shutil.copytree(here / "runs", tmp_path / "runs"))
    (broken / "no" / ADAPTER).unlink()
    done = autoft("adapters", "list", broken)
    assert done.code == 0
    assert "Note: left out:" in done.err
    assert "no.jsonl" not in done.out
    assert autoft("adapters", "list", here / "none").code == 2


def test_one_is_shown_with_what_it_was_made_from(autoft, here, tmp_path) -> None:
    out = tmp_path / "both"
    assert autoft("adapters", "combine", here / "one", here / "two", "--weights", "1,0.5", "-o", out).code == 0
    shown = " ".join(autoft("adapters", "show", out).out.split())
    for part in ("LoRA, rank 8", "cat 0.5 x two, SHA-256", sha256(out / ADAPTER), "down_proj, q_proj"):
        assert part in shown
    summary = json.loads(autoft("adapters", "show", out, "--json").out)
    assert [part["name"] for part in summary["parts"]] == ["one", "two"]
    (out / "autoft_export.json").write_text('{"parts": [1]}')
    assert autoft("adapters", "show", out).code == 0


def test_the_command_line_names_every_method() -> None:
    assert set(METHODS) == set(combining.METHODS)


def test_an_action_that_is_not_there(autoft) -> None:
    done = autoft("adapters", "merge", "one", "two")
    assert done.code == 2
    assert "adapters merge: not known" in done.err
