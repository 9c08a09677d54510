"""Rows longer than the model was made for: scaled RoPE in ghost and trainer, and in what plain peft makes of a run."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from autoft.errors import ModelError
from autoft.trainer.evaluation.chat import open_run
from autoft.trainer.model.build import build_base
from autoft.trainer.model.rope import scaled_config
from autoft.trainer.recipe import Recipe
from tests.conftest import write_jsonl
from tests.planner.families import family_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NATIVE = 64  # of the model that is trained here


def recipe(scaling: str, seq_len: int = 2048) -> Recipe:
    return Recipe.from_dict({"rope_scaling": scaling, "seq_len": seq_len, "base_dtype": "float32"})


@pytest.fixture
def short_model(tiny_model, tmp_path) -> Path:
    """The tiny model, made for rows of 64 tokens."""
    folder = tmp_path / "short"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": NATIVE}), encoding="utf-8")
    return folder


@pytest.fixture
def long_rows(tmp_path) -> Path:
    rows = [{"prompt": f"number {n} {'and on ' * 12}", "completion": f"it is {n}"} for n in range(24)]
    return write_jsonl(tmp_path / "long.jsonl", rows)


def test_linear_makes_every_position_a_fraction_and_yarn_the_slow_ones_alone() -> None:
    """Of 512 tokens four times as many: arXiv:2306.15595, and arXiv:2309.00071, sections 3.2 to 3.4."""
    config = family_config("llama2")
    rope = [
        importlib.import_module("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding(each)
        for each in (config, *(scaled_config(config, recipe(kind)) for kind in ("linear", "yarn")))
    ]
    plain, linear, yarn = (each.inv_freq for each in rope)
    torch.testing.assert_close(linear, plain / 4)
    assert yarn[0] == plain[0]  # turns often within 512 tokens
    torch.testing.assert_close(yarn[-1], plain[-1] / 4)  # never once
    assert [each.attention_scaling for each in rope] == [1, 1, pytest.approx(0.1 * 1.3862944 + 1)]
    assert config.max_position_embeddings == 512  # the caller's own is as it was
    assert scaled_config(config, recipe("yarn", 512)) is config


@pytest.mark.parametrize(
    ("family", "scaling", "why"),
    [
        ("gpt2", "yarn", "gpt2 has no RoPE that transformers could scale"),
        ("opt", "linear", "opt has no RoPE"),
        ("falcon_rw", "yarn", "falcon has no RoPE"),
        ("llama3", "yarn", r"its RoPE is scaled already \(llama3\), to 512 tokens"),
        ("phi4", "yarn", r"scaled already \(longrope\)"),
        ("gemma3", "yarn", "the layers of gemma3_text have several kinds of RoPE"),
        ("mixtral", "yarn", "transformers cannot compute it for mixtral"),
    ],
)
def test_what_cannot_be_scaled_is_refused(family, scaling, why) -> None:
    with pytest.raises(ModelError, match=why):
        build_base(recipe(scaling), family_config(family))


@pytest.mark.parametrize("family", ["qwen3", "mistral", "phi2", "pythia"])
@pytest.mark.parametrize("scaling", ["yarn", "linear"])
def test_the_model_that_is_built_has_the_scaling(family, scaling) -> None:
    base = build_base(recipe(scaling), family_config(family, num_hidden_layers=2))
    assert {module.rope_type for module in base.modules() if hasattr(module, "rope_type")} == {scaling}
    assert base.config.max_position_embeddings == 2048


@pytest.mark.parametrize("scaling", ["yarn", "linear"])
def test_the_rehearsal_meets_real_steps_beyond_the_context(scaling) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        cpu_memory = importlib.import_module("cpu_memory")
    shape = cpu_memory.GROUPED | {"max_position_embeddings": 64}
    case = cpu_memory.Case("llama", shape, cpu_memory.FLOAT32 | {"rope_scaling": scaling})
    row = cpu_memory.compared(case, steps=2)
    assert abs(row["error_percent"]) <= 0.5
    assert all(abs(figures["error_percent"]) <= 0.5 for figures in row["phases"].values())


def test_a_run_beyond_the_context_is_opened_the_same_by_its_readme(
    autoft, short_model, long_rows, tmp_path, monkeypatch
) -> None:
    out, words = tmp_path / "out", ("--data", long_rows, "--gpu", "cpu", "-o", tmp_path / "out")
    settings = [w for s in ("max_steps=6", "learning_rate=0.01", "max_new_tokens=0") for w in ("--set", s)]
    done = autoft("run", short_model, *words, *settings, "--set", "rope_scaling=yarn", "--json")
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    trained = result["job"]["recipe"]
    assert (trained["rope_scaling"], trained["seq_len"] > NATIVE, result["rows_left_out"]) == ("yarn", True, 0)
    assert result["after"]["loss"] < result["before"]["loss"]
    talker = open_run(out)
    made: dict[str, object] = {}
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(short_model.parent)  # it has the base by its folder's name
    exec(code[1].replace('folder = "."', f"folder = {str(out)!r}"), made)
    ids = torch.arange(3, 103).unsqueeze(0)
    with torch.inference_mode():
        ours, theirs = talker.model(input_ids=ids).logits, made["model"].eval()(input_ids=ids).logits
    torch.testing.assert_close(theirs.to(ours.dtype), ours)
    plain = AutoConfig.from_pretrained(short_model)
    assert made["config"].rope_parameters["factor"] == trained["seq_len"] / plain.max_position_embeddings


def test_a_whole_model_carries_its_scaling_itself(autoft, short_model, long_rows, tmp_path) -> None:
    words = ("--data", long_rows, "--gpu", "cpu", "-o", tmp_path / "out", "--set", "method=full")
    settings = [w for s in ("max_steps=1", "max_new_tokens=0", "rope_scaling=linear") for w in ("--set", s)]
    done = autoft("run", short_model, *words, *settings, "--json")
    assert done.code == 0, done.err
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["rope_type"] == "linear"
    assert open_run(tmp_path / "out").model.config.rope_parameters["factor"] > 1


def test_the_opt_in_is_named_and_goes_no_further_than_its_source(autoft, short_model, long_rows) -> None:
    def asked(*words: object) -> tuple[int, str]:
        done = autoft("plan", short_model, "--gpu", "cpu", *words)
        return done.code, " ".join(done.err.split())

    code, told = asked("--seq-len", 128)
    assert (code, "--seq-len 128 is more than" in told, "rope_scaling=yarn" in told) == (2, True, True)
    code, told = asked("--seq-len", 64, "--set", "rope_scaling=yarn")
    assert (code, "is within the 64 tokens" in told) == (2, True)
    code, told = asked("--seq-len", 1088, "--set", "rope_scaling=linear")
    assert (code, "more than 16 times" in told, "arXiv:2306.15595" in told) == (2, True, True)
    code, told = asked("--seq-len", 128, "--set", "rope_scaling=dynamic")
    assert code == 2
    code, told = asked("--data", long_rows)
    assert (code, "all 22 rows" in told, "rope_scaling=yarn" in told) == (2, True, True)
    with long_rows.open("a", encoding="utf-8") as file:
        file.writelines(f'{{"prompt": "{n}", "completion": "{n}"}}\n' for n in range(24))
    done = autoft("plan", short_model, "--gpu", "cpu", "--data", long_rows, "--json")
    assert any("rope_scaling=yarn stretches it" in note for note in json.loads(done.out)["notes"])
