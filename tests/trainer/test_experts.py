"""Experts of mixture-of-experts models in 4 bits: the outputs of weights rounded to 4 bits, in a quarter the memory."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type
from peft import PeftModel
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from autoft.errors import ModelError
from autoft.trainer.evaluation.evaluate import generate
from autoft.trainer.model import experts, quantizer
from autoft.trainer.model.build import add_adapter, build_base, build_model
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.finish import _stored_params
from tests.conftest import make_tokenizer

QLORA = {
    "method": "qlora",
    "quant_type": "nf4",
    "base_dtype": "float32",
    "loss": "selected",
    "micro_batch": 2,
    "seq_len": 16,
}
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Layouts: [E, out, in] in most; [E, in, out] with biases in gpt_oss; bmm in llama4; a loop over experts in jetmoe;
# shared experts beside the others in qwen2_moe and deepseek_v2.
FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16},
    "mixtral": {"intermediate_size": 96, "num_local_experts": 4},
    "gpt_oss": {
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "jetmoe": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "llama4_text": {
        "intermediate_size": 96,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "head_dim": 16,
        "moe_layers": [0, 1],
        "no_rope_layers": [1, 0],
        "layer_types": ["full_attention", "full_attention"],
    },
    "qwen2_moe": {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 4},
    "deepseek_v2": {
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 8,
    },
    "granitemoe": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
}
PACKED_TENSORS = {family: 8 if family == "jetmoe" else 4 for family in FAMILIES}  # jetmoe's attention has experts too


@pytest.fixture(scope="session")
def moe_models(tmp_path_factory):
    """A folder of two-layer random models by family, each saved when it is first asked for."""
    root = tmp_path_factory.mktemp("moe")

    def folder(family):
        path = root / family
        if not path.exists():
            torch.manual_seed(0)
            config = CONFIG_MAPPING[family](**{**SHAPE, **FAMILIES[family]})
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(path)
        return path

    return folder


def make_recipe(family, **settings):
    # all-linear: PEFT takes llama4's router, a subclass of Linear, for a linear layer and fails in the first step
    targets = {"target_modules": ("q_proj", "v_proj")} if family == "llama4_text" else {}
    return Recipe(**{**QLORA, "attention": "eager", **targets, **settings})


def load(folder, recipe):
    return build_base(recipe, AutoConfig.from_pretrained(folder), folder, "cpu")


def build(folder, family, **settings):
    recipe = make_recipe(family, experts_4bit=True, **settings)
    return recipe, build_model(recipe, config=AutoConfig.from_pretrained(folder), weights=folder, device="cpu")


def build_reference(folder, family, **settings):
    """The same model as `build`, its experts rounded to 4 bits but held in full."""
    recipe = make_recipe(family, **settings)
    base = load(folder, recipe)
    for module, name in experts.expert_weights(base):
        weight = module.get_parameter(name)
        weight.data = rounded(weight.data, recipe.quant_type)
    torch.manual_seed(0)
    return add_adapter(base, make_recipe(family, experts_4bit=True, **settings), "cpu").train()


def rounded(weight, quant_type):
    """Each of 64 weights in a row to the nearest code times the largest of them: the formula, in plain PyTorch."""
    code = get_4bit_type(quant_type, device="cpu")
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] / largest[..., None] - code).abs().argmin(dim=-1)
    return (code[nearest] * largest).reshape(weight.shape)


def make_batch():
    ids = torch.randint(3, 250, (2, 16), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=make_batch()["input_ids"], use_cache=False).logits


def gradients(model, recipe):
    model.zero_grad()
    loss = compute_loss(model, make_batch(), recipe)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def packed_weights(model):
    return {n: p for n, p in model.named_parameters() if n.endswith(".original")}


class Unpacked:
    """Counts what is unpacked, and the bytes of it that are alive."""

    def __init__(self):
        self.count = self.live_bytes = self.peak_bytes = 0

    def __call__(self, packed, state):
        weight = dequantize_4bit(packed, state)
        self.count += 1
        self.live_bytes += weight.nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(weight.untyped_storage(), self.drop, weight.nbytes)
        return weight

    def drop(self, nbytes):
        self.live_bytes -= nbytes


@pytest.fixture
def unpacked(monkeypatch):
    counter = Unpacked()
    monkeypatch.setattr(experts, "dequantize_4bit", counter)
    return counter


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_rounded_weights(moe_models, family) -> None:
    folder = moe_models(family)
    recipe, model = build(folder, family)
    reference = build_reference(folder, family)
    assert len(packed_weights(model)) == PACKED_TENSORS[family]
    (loss, grads), (wanted_loss, wanted_grads) = gradients(model, recipe), gradients(reference, recipe)
    torch.testing.assert_close(grads, wanted_grads, rtol=0, atol=0)
    torch.testing.assert_close(loss, wanted_loss, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), logits(reference), rtol=0, atol=0)
    assert all("lora_" in name for name in grads)
    assert parametrize._cache_enabled == 0
    assert parametrize._cache == {}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_only_rounding_parts_it_from_the_whole_model(moe_models, family, quant_type, double_quant) -> None:
    folder = moe_models(family)
    settings = {"quant_type": quant_type, "double_quant": double_quant}
    whole = load(folder, make_recipe(family, **settings))
    quantized = load(folder, make_recipe(family, **settings, experts_4bit=True))
    for path, module in quantized.named_modules():
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:
                weight = whole.get_submodule(path).get_parameter(name)
                error = (getattr(module, name) - weight).norm() / weight.norm()
                # NF4 is off by 9.3 % of a normal weight, root mean square (measured: 0.09 to 0.10), FP4 by more
                assert 0.07 < error < (0.11 if quant_type == "nf4" else 0.16)
    assert not torch.equal(logits(quantized), logits(whole))


@pytest.mark.parametrize("double_quant", [False, True])
def test_experts_take_half_a_byte_a_weight_and_their_scales(moe_models, double_quant) -> None:
    folder = moe_models("mixtral")
    base = load(folder, make_recipe("mixtral", experts_4bit=True, double_quant=double_quant))
    gate_up, down = 4 * 2 * 96 * 64, 4 * 96 * 64  # weights of a layer
    packed = packed_weights(base).values()
    states = [p.quant_state for p in packed]
    assert sum(p.nbytes for p in packed) == 2 * (gate_up + down) / 2
    if double_quant:  # a byte a block of 64 weights, four a block of 256 such scales
        scale_bytes = gate_up / 64 + down / 64 + 4 * (3 + 2)
        assert sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states) == 2 * scale_bytes
    else:
        assert sum(s.absmax.nbytes for s in states) == 2 * 4 * (gate_up + down) / 64
    assert not [n for n, p in base.named_parameters() if "expert" in n and p.is_floating_point()]


def test_biases_of_experts_stay_as_they_are(moe_models) -> None:
    base = load(moe_models("gpt_oss"), make_recipe("gpt_oss", experts_4bit=True))
    biases = [p for n, p in base.named_parameters() if "experts" in n and n.endswith("_bias")]
    assert [(p.ndim, p.dtype) for p in biases] == [(2, torch.float32)] * 4


def test_parameters_are_counted_by_what_they_stand_for(moe_models) -> None:
    folder = moe_models("qwen3_moe")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    base = load(folder, make_recipe("qwen3_moe", experts_4bit=True, double_quant=True))
    assert _stored_params(base) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_training_learns_and_the_saved_adapter_gives_the_same_logits(
    moe_models, family, checkpointing, tmp_path
) -> None:
    folder = moe_models(family)
    recipe, model = build(folder, family, gradient_checkpointing=checkpointing, double_quant=True)
    packed = {n: (p.clone(), p.quant_state.absmax.clone()) for n, p in packed_weights(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = compute_loss(model, make_batch(), recipe)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in packed_weights(model).items():
        torch.testing.assert_close((parameter.data, parameter.quant_state.absmax), packed[name], rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(folder, recipe), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    untrained = load(folder, recipe)
    assert not torch.allclose(logits(untrained), logits(model), atol=0.1)
    # The adapter fits the unquantized model too, with no key missing or left over, which PEFT would warn of
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)


def test_checkpointing_changes_no_gradient(moe_models) -> None:
    found = [
        gradients(model, recipe)
        for recipe, model in (build(moe_models("qwen3_moe"), "qwen3_moe", gradient_checkpointing=c) for c in (0, 1))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("checkpointing", "backward_share"), [(False, 2 / 3), (True, 1)], ids=["plain", "checkpointed"]
)
def test_no_more_than_one_layer_is_ever_unpacked(moe_models, unpacked, checkpointing, backward_share) -> None:
    """gate_up_proj is two thirds of a layer's experts, down_proj one."""
    recipe, model = build(moe_models("qwen3_moe"), "qwen3_moe", gradient_checkpointing=checkpointing)
    layer_bytes = 4 * 8 * 3 * 32 * 64
    loss = compute_loss(model, make_batch(), recipe)
    assert (unpacked.count, unpacked.peak_bytes, unpacked.live_bytes) == (4, layer_bytes, 0)
    unpacked.peak_bytes = 0
    loss.backward()
    assert (unpacked.count, unpacked.live_bytes) == (8, 0)
    assert unpacked.peak_bytes == int(layer_bytes * backward_share)


@pytest.mark.parametrize("family", ["qwen3_moe", "jetmoe"])
def test_a_loop_over_experts_unpacks_each_weight_once(moe_models, unpacked, family) -> None:
    recipe, model = build(moe_models(family), family)
    if family == "qwen3_moe":
        model.get_base_model().set_experts_implementation("eager")
    compute_loss(model, make_batch(), recipe)
    assert unpacked.count == PACKED_TENSORS[family]
    assert unpacked.live_bytes == 0


def test_an_evaluation_before_a_step_changes_nothing(moe_models) -> None:
    recipe, model = build(moe_models("qwen3_moe"), "qwen3_moe")
    before = gradients(model, recipe)
    generate(model, make_tokenizer(), [[5, 6, 7]], batch=1, max_new_tokens=3, stop=[2])
    torch.testing.assert_close(gradients(model, recipe), before, rtol=0, atol=0)


def test_loading_packs_each_weight_before_the_next_is_read(moe_models, monkeypatch) -> None:
    folder, pack, alive = moe_models("qwen3_moe"), quantizer.pack, []
    shapes = {(8, 64, 64), (8, 64, 32)}  # of gate_up_proj and down_proj

    def watched(weight, *args):
        stored = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not o.is_meta]
        alive.append(len({t.untyped_storage().data_ptr() for t in stored if tuple(t.shape) in shapes}))
        return pack(weight, *args)

    monkeypatch.setattr(quantizer, "pack", watched)
    load(folder, make_recipe("qwen3_moe", experts_4bit=True))
    assert alive == [1, 1, 1, 1]


def test_a_loaded_model_is_quantized_tensor_by_tensor_too(moe_models) -> None:
    """quantize_experts alone, on a base whose experts are there in full."""
    folder = moe_models("mixtral")
    recipe = make_recipe("mixtral", experts_4bit=True)
    base = load(folder, make_recipe("mixtral"))
    experts.quantize_experts(base, recipe)
    torch.testing.assert_close(logits(base), logits(load(folder, recipe)), rtol=0, atol=0)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ghost_has_the_real_model_s_shapes(moe_models, family, double_quant) -> None:
    folder = moe_models(family)
    recipe, real = build(folder, family, double_quant=double_quant)
    ghost = build_model(recipe, config=AutoConfig.from_pretrained(folder), weights=None, device="meta")
    assert {n: p.requires_grad for n, p in ghost.named_parameters()} == {
        n: p.requires_grad for n, p in real.named_parameters()
    }
    wanted, found = packed_weights(real), packed_weights(ghost)
    assert {n: describe(p) for n, p in found.items()} == {n: describe(p) for n, p in wanted.items()}
    tensors = [t for p in found.values() for t in (p, *state_tensors(p.quant_state).values())]
    assert {t.device.type for t in tensors} == {"meta"}


def describe(packed):
    state = packed.quant_state
    tensors = {name: (t.shape, t.dtype) for name, t in state_tensors(state).items()}
    return packed.shape, packed.dtype, state.shape, state.dtype, state.blocksize, state.quant_type, tensors


def state_tensors(state):
    tensors = {"absmax": state.absmax, "code": state.code}
    if state.nested:
        tensors |= {"offset": state.offset, "absmax2": state.state2.absmax, "code2": state.state2.code}
    return tensors


@pytest.mark.parametrize("ghost", [False, True], ids=["loaded", "ghost"])
def test_a_model_without_experts_is_refused(tiny_model, ghost) -> None:
    with pytest.raises(ModelError) as refused:
        build_base(
            Recipe(**QLORA, experts_4bit=True),
            AutoConfig.from_pretrained(tiny_model),
            None if ghost else tiny_model,
            "meta" if ghost else "cpu",
        )
    assert str(refused.value) == ("LlamaForCausalLM has no experts to hold in 4 bits\nTo fix: leave experts_4bit out")


@pytest.mark.parametrize("ghost", [False, True], ids=["loaded", "ghost"])
def test_a_tensor_that_bitsandbytes_cannot_count_is_refused(moe_models, monkeypatch, ghost) -> None:
    folder = moe_models("mixtral")
    monkeypatch.setattr(experts, "MOST_WEIGHTS", 4 * 192 * 64 - 1)
    with pytest.raises(ModelError, match=r"gate_up_proj of MixtralForCausalLM has 49,152 weights"):
        build_base(
            make_recipe("mixtral", experts_4bit=True),
            AutoConfig.from_pretrained(folder),
            None if ghost else folder,
            "meta" if ghost else "cpu",
        )


def test_adapters_on_experts_in_4_bits_are_refused(moe_models) -> None:
    names = ("q_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(ModelError, match="experts in 4 bits get no adapter"):
        build(moe_models("qwen3_moe"), "qwen3_moe", target_modules=names)


def test_the_adapter_names_linear_layers_alone(moe_models) -> None:
    """PEFT reads "all-linear" of these families as experts and router too, and would save their names."""
    for family in ("qwen3_moe", "mixtral"):
        _, model = build(moe_models(family), family)
        config = model.peft_config["default"]
        assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert not config.target_parameters
        trained = Counter(n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad)
        assert set(trained) == config.target_modules


def test_experts_4bit_needs_a_quant_type() -> None:
    with pytest.raises(ValueError, match="experts_4bit needs a quant_type"):
        Recipe(experts_4bit=True)
