"""Models of this year, tiny ones of their real classes, through the command line: plan, run, plain peft, chat."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import PeftModel

from tests.conftest import make_tokenizer
from tests.planner.families import family_config
from tests.trainer.wrappers import wrapper_config

SETTINGS = ("max_steps=2", "seq_len=64", "micro_batch=4", "accumulation=1", "rank=4", "eval_rows=4", "max_new_tokens=4")


@pytest.mark.parametrize("name", ["qwen3.5", "gemma4", "ministral-3", "lfm2-vl", "gpt_oss"])
def test_it_is_planned_trained_saved_opened_and_asked(autoft, tmp_path, data_file, name) -> None:
    tokenizer, base, out = make_tokenizer(), tmp_path / "base", tmp_path / "out"
    torch.manual_seed(0)
    if name == "gpt_oss":
        config = family_config(name, num_hidden_layers=2, vocab_size=len(tokenizer))
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = transformers.AutoModelForMultimodalLM.from_config(wrapper_config(name, tokenizer))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]

    planned = autoft("plan", base, "--data", data_file, *settings, "--json")
    assert planned.code == 0, planned.err
    recipe = json.loads(planned.out)["job"]["recipe"]
    done = autoft("run", base, "--data", data_file, "-o", out, *settings, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["steps"], result["job"]["recipe"]) == (2, recipe)

    opened = PeftModel.from_pretrained(getattr(transformers, result["auto_class"]).from_pretrained(base), out)
    learnt = [parameter for name, parameter in opened.named_parameters() if "lora_B" in name]
    assert learnt
    assert all(parameter.any() for parameter in learnt)
    asked = autoft("chat", out, "-p", "number 7", "--max-new-tokens", 4, "--json")
    assert asked.code == 0, asked.err
    assert isinstance(json.loads(asked.out)["answer"], str)
