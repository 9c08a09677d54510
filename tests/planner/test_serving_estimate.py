"""`autoft estimate --serve`: memory to answer, against a real load and real answers on the CPU."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import pytest

from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import ByteCounter
from autoft.planner.memory.replay import replay
from autoft.planner.rehearsal.answering import answering, rehearse_answer
from autoft.planner.rehearsal.rehearse import Kept, find_depth
from autoft.trainer.recipe import Recipe

CONTEXT, ANSWER = 256, 8
SHAPE = {
    "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6,
    "intermediate_size": 512, "vocab_size": 2048,
}  # fmt: skip
FLOAT32 = {"base_dtype": "float32", "rank": 8, "micro_batch": 1, "seq_len": CONTEXT}
NF4 = {**FLOAT32, "method": "qlora", "quant_type": "nf4", "double_quant": True, "base_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def cpu_memory():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("cpu_memory")


def config_of(family: str, **changes: object):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **SHAPE, **changes)


def predicted(recipe: Recipe, config, adapters: int) -> tuple[int, int]:
    """(bytes when base and adapters are loaded, peak of answering)."""
    depth = find_depth(recipe, config)
    rehearsal = rehearse_answer(recipe, config, Device(None), depth=depth, adapters=adapters, kept=Kept())
    loaded = sum(int(phase.events[:, 1].sum()) for phase in rehearsal.phases[: rehearsal.steady])
    return loaded, replay(rehearsal, ByteCounter()).phases["prompt"]


def measured(cpu_memory, recipe: Recipe, config, adapters: int, folder: Path) -> tuple[int, int]:
    """The same of a model that is loaded as `autoft serve` does, and writes until the context is full."""
    import torch
    from torch.profiler import record_function
    from transformers import AutoModelForCausalLM

    from autoft.trainer.evaluation.open_run import FIRST, put_adapter, restore_dtype
    from autoft.trainer.model.build import add_adapter, build_whole_base

    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)

    def base():
        return build_whole_base(recipe, config, folder, "cpu", for_loss=False).eval()

    if adapters:
        add_adapter(base(), recipe, "cpu").save_pretrained(folder / "adapter")
    with cpu_memory.recorded() as record:
        model = base()
        model.config.use_cache = True
        for number in range(adapters):
            name = FIRST if number == 0 else f"adapter_{number}"
            model = put_adapter(model, folder / "adapter", name)
            restore_dtype(model, recipe, name)
        loaded = cpu_memory.stored_bytes(model)
        with record_function("phase answer"), torch.inference_mode():
            ids = torch.randint(3, config.vocab_size, (1, CONTEXT - ANSWER))
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER,
                           eos_token_id=None, pad_token_id=0)  # fmt: skip
    return loaded, cpu_memory.peaks_by_phase(record, loaded)["answer"]


@pytest.mark.parametrize("adapters", [0, 1, 3])
@pytest.mark.parametrize("settings", [FLOAT32, NF4], ids=["float32", "nf4"])
def test_what_weights_and_answers_take_is_met(cpu_memory, tmp_path, settings, adapters) -> None:
    recipe, config = answering(Recipe(**settings)), config_of("llama")
    loaded, peak = predicted(recipe, config, adapters)
    real_loaded, real_peak = measured(cpu_memory, recipe, config, adapters, tmp_path)
    # bitsandbytes keeps one map of 256 floats for the scales of all layers, in no layer
    assert loaded - real_loaded == (1024 if recipe.double_quant else 0)
    # the prompt that is planned fills the context; the real one leaves ANSWER tokens of it
    assert real_peak <= peak <= real_peak * (1 + 2 * ANSWER / CONTEXT)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("mistral", {"sliding_window": 64}), ("gemma2", {"head_dim": 64}), ("mixtral", {"num_local_experts": 4})],
)
def test_other_families_are_met(cpu_memory, tmp_path, family, changes) -> None:
    attention = "eager" if family == "gemma2" else "sdpa"
    recipe, config = answering(Recipe(**FLOAT32, attention=attention)), config_of(family, **changes)
    loaded, peak = predicted(recipe, config, 1)
    real_loaded, real_peak = measured(cpu_memory, recipe, config, 1, tmp_path)
    assert loaded == real_loaded
    assert real_peak <= peak <= real_peak * (1 + 2 * ANSWER / CONTEXT)


def serving(autoft, model, *words: str):
    done = autoft("estimate", model, "--serve", "--seq-len", "256", *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize("gpu", ["cpu", "rtx-3060"])
def test_each_adapter_adds_its_bytes_and_each_token_its_keys_and_values(autoft, wide_shape, gpu) -> None:
    by_adapters = [serving(autoft, wide_shape, "--gpu", gpu, "--adapters", str(n)) for n in (0, 1, 2, 3)]
    one = by_adapters[1]
    peaks = [answer["peak_allocated_bytes"] for answer in by_adapters]
    growth = [more - less for less, more in itertools.pairwise(peaks[1:])]
    assert growth == [pytest.approx(one["adapter_bytes"], rel=0.01)] * 2
    assert peaks[0] < peaks[1]
    assert sum(one["components"].values()) == one["peak_allocated_bytes"]
    assert one["components"]["weights"] == one["base_bytes"]
    longer = serving(autoft, wide_shape, "--gpu", gpu, "--micro-batch", "2", "--adapters", "1")
    assert longer["kv_cache_bytes"] == 2 * one["kv_cache_bytes"]
    config = json.loads((Path(wide_shape) / "config.json").read_text(encoding="utf-8"))
    heads = config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = 2 if one["recipe"]["base_dtype"] != "float32" else 4
    assert one["kv_cache_bytes"] == config["num_hidden_layers"] * 2 * heads * size * 256 * width


def test_a_4_bit_base_takes_less_and_full_fine_tuning_has_no_adapter(autoft, wide_shape) -> None:
    words = ("--gpu", "rtx-3060", "--method")
    lora, qlora, full = (serving(autoft, wide_shape, *words, method) for method in ("lora", "qlora", "full"))
    assert qlora["base_bytes"] < lora["base_bytes"] == full["base_bytes"]
    assert (lora["adapters"], qlora["adapters"], full["adapters"]) == (1, 1, 0)
    pissa = serving(autoft, wide_shape, *words, "lora", "--set", "init=pissa")
    assert pissa["adapter_bytes"] == 2 * lora["adapter_bytes"]  # saved as LoRA of twice the rank


def test_the_screen_names_base_adapters_and_cache(autoft, wide_shape) -> None:
    done = autoft("estimate", wide_shape, "--serve", "--adapters", "3", "--gpu", "rtx-3060", "--rank", "8")
    assert done.code == 0, done.err
    assert "1 prompt x 2,048 tokens" in done.out
    assert "3 x " in done.out
    assert "(LoRA rank 8)" in done.out
    assert "a token)" in done.out


def test_what_does_not_fit_exits_with_3(autoft, wide_shape) -> None:
    done = autoft("estimate", wide_shape, "--serve", "--vram", "0.6")
    assert done.code == 3
    assert "does not fit" in done.out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--adapters", "2"), "--adapters 2 goes with --serve"),
        (("--serve", "--explain"), "not of --serve"),
        (("--serve", "--gpu", "t4x2"), "--serve uses one GPU"),
        (("--serve", "--method", "full", "--adapters", "2"), "method full trains no adapter"),
        (("--serve", "--checkpointing"), "gradient_checkpointing only matters in training"),
        (("--serve", "--set", "epochs=2"), "not a setting of the recipe"),
    ],
)
def test_what_does_not_go_together_is_refused(autoft, wide_shape, words, what) -> None:
    done = autoft("estimate", wide_shape, *words)
    assert done.code == 2
    assert what in done.err
    assert "To fix:" in done.err
