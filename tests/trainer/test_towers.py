"""Vision-language checkpoints trained on text: the adapter is in the language model, and plain peft opens it."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel

from autoft.trainer.job import Job
from autoft.trainer.model.build import build_model, towers
from autoft.trainer.recipe import Recipe
from autoft.trainer.report.wording import snippet
from autoft.trainer.result import RunResult
from autoft.trainer.run.session import run
from tests.conftest import make_tokenizer
from tests.trainer.wrappers import TEXT_ALONE, WRAPPERS, wrapper_config


@pytest.mark.parametrize(("number", "name"), [*enumerate(WRAPPERS)], ids=list(WRAPPERS))
def test_text_trains_the_language_model_alone_and_plain_peft_opens_it(
    number, name, tmp_path, data_file, monkeypatch
) -> None:
    tokenizer = make_tokenizer()
    config = wrapper_config(name, tokenizer)
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "out"
    transformers.AutoModelForMultimodalLM.from_config(config).save_pretrained(base)  # with its towers
    tokenizer.save_pretrained(base)
    recipe = Recipe(
        method="lora" if number % 2 else "qlora",
        quant_type=None if number % 2 else "nf4",
        base_dtype="float32",
        seq_len=64,
        micro_batch=4,
        gradient_checkpointing=number % 4 < 2,
        target_modules=("q_proj", "v_proj") if number % 4 == 1 and "phi" not in name else "all-linear",
    )
    job = Job(model=str(base), data=str(data_file), recipe=recipe, max_steps=2, eval_rows=4, max_new_tokens=4)
    result: RunResult = run(job, out, plan_toml="")
    causal = (*TEXT_ALONE, "gemma3", "gemma4", "phi-4-multimodal")
    assert result.auto_class == ("AutoModelForCausalLM" if name in causal else "AutoModelForMultimodalLM")
    # PEFT warns of adapter weights that are missing or fit nothing, and a warning is an error here
    opened = PeftModel.from_pretrained(getattr(transformers, result.auto_class).from_pretrained(base), out)
    trained = {name: parameter for name, parameter in opened.named_parameters() if "lora_B" in name}
    assert trained
    assert all(parameter.any() for parameter in trained.values())  # each was loaded, and each has learnt
    left = towers(opened.get_base_model())
    assert bool(left) == (name not in ("qwen3.5", "llama-4"))
    assert not any(name.startswith(f"base_model.model.{part}.") for name in trained for part in left)
    monkeypatch.chdir(base.parent)  # the snippet has the base by its folder's name
    places: dict[str, object] = {}
    code = snippet(result).replace('folder = "."', f"folder = {str(out)!r}").replace("print(", "answer = (")
    exec(compile(code, "snippet", "exec"), places)
    assert isinstance(places["answer"], str)


def test_a_tower_is_frozen_where_all_weights_are_trained() -> None:
    config = wrapper_config("llava", make_tokenizer())
    model = build_model(Recipe(method="full"), config=config, weights=None, device="meta")
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"language_model", "weight"}  # and the head
