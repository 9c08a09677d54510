"""One training step of a Recipe: model, optimizer and loss, built by the functions that trainer and planner share."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from autoft.errors import ModelError
from autoft.trainer.data.tokens import Example
from autoft.trainer.evaluation.evaluate import generate, mean_loss
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives.loss import IGNORED, compute_loss
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.recipe import Recipe
from tests.conftest import make_tokenizer

FP32 = {"base_dtype": "float32", "loss": "selected", "micro_batch": 2, "seq_len": 16}
QLORA = {**FP32, "method": "qlora", "quant_type": "nf4", "double_quant": True}
INT8 = {**FP32, "method": "qlora", "quant_type": "int8"}


def build(tiny_model, **settings):
    recipe = Recipe(**settings)
    return recipe, build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")


def make_batch(rows=2, length=16, prompt=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 250, (rows, length), generator=generator)
    labels = ids.clone()
    for row in range(rows):
        labels[row, : prompt + row] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def frozen_digest(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_weights_that_are_not_those_of_the_config_are_refused(tiny_model, tmp_path) -> None:
    """transformers would make them up and only log it."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for settings in (FP32, QLORA):
        with pytest.raises(ModelError, match=r"1 weights of a llama model are not there, model\.layers\.1\.self_attn"):
            build(folder, **settings)


def test_the_three_losses_are_one_loss_with_one_gradient(tiny_model) -> None:
    found = {}
    for loss in ("fused", "selected", "logits"):
        recipe, model = build(tiny_model, **{**FP32, "loss": loss})
        value = compute_loss(model, make_batch(), recipe)
        value.backward()
        found[loss] = (value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for loss in ("fused", "selected"):
        torch.testing.assert_close(found[loss], found["logits"], rtol=1e-4, atol=1e-6)


def test_batches_with_many_counts_of_trained_columns_have_few_shapes_of_logits(tiny_model, monkeypatch) -> None:
    """Each shape costs a CPU kernels that stay, and memory that fits no later tensor. The loss is the same."""
    recipe, model = build(tiny_model, **{**FP32, "seq_len": 48})
    shapes, cross_entropy = set(), torch.nn.functional.cross_entropy

    def noted(logits, *arguments, **settings):
        shapes.add(tuple(logits.shape))
        return cross_entropy(logits, *arguments, **settings)

    for prompt in range(2, 46):
        batch = make_batch(rows=1, length=48, prompt=prompt)
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "cross_entropy", noted)
            value = compute_loss(model, batch, recipe)
        whole = compute_loss(model, batch, Recipe(**{**FP32, "seq_len": 48, "loss": "logits"}))
        torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-6)
    assert sorted(count for count, _ in shapes) == [16, 32, 47]  # of the 47 columns that have a next token


def test_accumulated_micro_batches_sum_to_the_whole_batch(tiny_model) -> None:
    recipe, model = build(tiny_model, **FP32)
    batch = make_batch()
    trained = int((batch["labels"][:, 1:] != IGNORED).sum())
    whole = compute_loss(model, batch, recipe)
    parts = [
        compute_loss(model, {k: v[i : i + 1] for k, v in batch.items()}, recipe, num_trained_tokens=trained)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    "settings",
    [
        FP32,
        QLORA,
        INT8,
        {**FP32, "gradient_checkpointing": True},
        {**FP32, "use_dora": True},
        {**QLORA, "use_dora": True},
    ],
    ids=["lora", "qlora", "int8", "checkpointed", "dora", "dora on 4 bits"],
)
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit"])
def test_training_moves_the_adapter_alone_and_the_loss_falls(tiny_model, settings, optimizer) -> None:
    recipe, model = build(tiny_model, **{**settings, "optimizer": optimizer})
    before = frozen_digest(model)
    stepper = build_optimizer([p for p in model.parameters() if p.requires_grad], recipe, learning_rate=1e-2)
    losses = []
    for _ in range(20):
        loss = compute_loss(model, make_batch(), recipe)
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert frozen_digest(model) == before
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_checkpointing_recomputes_and_changes_nothing(tiny_model) -> None:
    values = []
    for settings, expected in (
        ({}, [False, False]),
        ({"gradient_checkpointing": True}, [True, True]),
        ({"gradient_checkpointing": True, "checkpoint_every": 2}, [True, False]),
    ):
        recipe, model = build(tiny_model, **FP32, **settings)
        assert [layer.gradient_checkpointing for layer in model.get_base_model().model.layers] == expected
        loss = compute_loss(model, make_batch(), recipe)
        loss.backward()
        values.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"checkpoint_every": 2}, "checkpoint_every needs gradient_checkpointing"),
        (
            {**QLORA, "gradient_checkpointing": True, "checkpoint_every": 2, "experts_4bit": True},
            "experts_4bit checkpoints every layer",
        ),
    ],
)
def test_every_second_layer_is_refused_where_it_means_nothing(settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(**settings)


def test_layers_that_cannot_be_told_apart_are_not_checkpointed_in_part(tiny_model, monkeypatch) -> None:
    import transformers.modeling_layers

    class Other:
        pass

    monkeypatch.setattr(transformers.modeling_layers, "GradientCheckpointingLayer", Other)
    with pytest.raises(ModelError, match="LlamaForCausalLM checkpoints all of its layers or none"):
        build(tiny_model, **FP32, gradient_checkpointing=True, checkpoint_every=2)


def test_the_fused_optimizer_makes_the_plain_one_s_steps(tiny_model) -> None:
    found = []
    for optimizer in ("adamw_torch", "adamw_torch_fused"):
        recipe, model = build(tiny_model, **FP32, optimizer=optimizer)
        trained = [p for p in model.parameters() if p.requires_grad]
        stepper = build_optimizer(trained, recipe, learning_rate=1e-2, weight_decay=0.1)
        for _ in range(3):
            compute_loss(model, make_batch(), recipe).backward()
            stepper.step()
            stepper.zero_grad()
        found.append([p.detach() for p in trained])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_rslora_scales_by_the_root_of_the_rank(tiny_model) -> None:
    for use_rslora, scale in ((False, 32 / 16), (True, 32 / 4)):
        _, model = build(tiny_model, **FP32, use_rslora=use_rslora)
        assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {scale}


def test_dora_begins_as_the_base_and_trains_the_length_of_every_row(tiny_model) -> None:
    recipe, model = build(tiny_model, **FP32, use_dora=True)
    _, base = build(tiny_model, **FP32)
    torch.testing.assert_close(compute_loss(model, make_batch(), recipe), compute_loss(base, make_batch(), recipe))
    lengths = {n: p for n, p in model.named_parameters() if "lora_magnitude_vector" in n}
    assert len(lengths) == 2 * 7
    for name, length in lengths.items():
        weight = model.get_parameter(name.replace("lora_magnitude_vector.default", "base_layer"))
        torch.testing.assert_close(length, weight.norm(dim=1))
        assert length.requires_grad


def test_dora_is_refused_over_8_bits() -> None:
    with pytest.raises(ValueError, match="use_dora needs a base in 16 or 4 bits"):
        Recipe(**INT8, use_dora=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_are_the_recipe_s(tiny_model, dtype) -> None:
    _, model = build(tiny_model, **{**FP32, "base_dtype": "bfloat16", "adapter_dtype": dtype})
    wanted = getattr(torch, dtype)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {wanted}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_qlora_really_holds_four_bits(tiny_model) -> None:
    import bitsandbytes as bnb

    _, model = build(tiny_model, **QLORA)
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert all(m.weight.dtype == torch.uint8 and m.weight.quant_state.nested for m in layers)


def test_an_8_bit_base_holds_8_bits_close_to_the_weights(tiny_model) -> None:
    import bitsandbytes as bnb

    _, whole = build(tiny_model, **FP32)
    _, model = build(tiny_model, **INT8)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear8bitLt)}
    assert len(layers) == 2 * 7
    batch = make_batch()
    near, exact = (compute_loss(m, batch, Recipe(**FP32)) for m in (model, whole))
    assert abs(near - exact) < 0.01
    for name, layer in layers.items():
        weight = whole.get_submodule(name).weight
        assert layer.weight.dtype == torch.int8
        rounded = layer.weight.float() * layer.state.SCB[:, None] / 127
        assert (rounded - weight).abs().amax() <= layer.state.SCB.amax() / 127  # half a step, and float16's


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_8_bit_layer_lets_go_of_its_input(tiny_model, checkpointing) -> None:
    """The gradients need no input of a frozen layer; bitsandbytes would hold it until the backward."""
    import bitsandbytes as bnb

    recipe, model = build(tiny_model, **INT8, gradient_checkpointing=checkpointing)
    layer = next(m for n, m in model.named_modules() if n.endswith("down_proj.base_layer"))
    assert isinstance(layer, bnb.nn.Linear8bitLt)
    x = torch.randn(3, layer.in_features, requires_grad=True)
    out = layer(x)
    assert out.grad_fn.A is None
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, (layer.weight.float() * layer.state.SCB[:, None] / 127).sum(0).expand(3, -1))
    compute_loss(model, make_batch(), recipe).backward()


@pytest.mark.parametrize("name", ["double_quant", "experts_4bit"])
def test_what_is_of_4_bits_is_refused_beside_int8(name) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a quant_type of 4 bits, nf4 or fp4, not int8"):
        Recipe(**INT8, **{name: True})


@pytest.mark.parametrize("settings", [FP32, QLORA, INT8], ids=["lora", "qlora", "int8"])
def test_an_evaluation_before_a_step_changes_nothing(tiny_model, settings) -> None:
    """bitsandbytes repacks 4-bit weights in an evaluation on some CPUs, and has no gradient through them then."""
    recipe, model = build(tiny_model, **settings)

    def gradients():
        model.zero_grad()
        compute_loss(model, make_batch(), recipe).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    digest, before = frozen_digest(model), gradients()
    example = make_batch()["input_ids"][0].tolist()
    mean_loss(model, make_tokenizer(), [Example(example, example)], recipe)
    generate(model, make_tokenizer(), [example], batch=1, max_new_tokens=3, stop=[2])
    torch.testing.assert_close(gradients(), before, rtol=0, atol=0)
    assert frozen_digest(model) == digest


def test_k_bit_upcast_raises_norms_and_embeddings_only(tiny_model) -> None:
    _, model = build(tiny_model, **{**QLORA, "base_dtype": "bfloat16", "kbit_upcast": True})
    dtypes = {n: p.dtype for n, p in model.named_parameters() if "lora_" not in n}
    assert {d for n, d in dtypes.items() if "norm" in n or "embed" in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if "proj" in n} == {torch.uint8}


@pytest.mark.parametrize("settings", [FP32, INT8], ids=["lora", "int8"])
def test_the_same_builder_makes_a_ghost_of_the_same_shapes(tiny_model, settings) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    recipe = Recipe(**settings)
    real = build_model(recipe, config=config, weights=tiny_model, device="cpu")
    ghost = build_model(recipe, config=config, weights=None, device="meta")
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in ghost.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in real.named_parameters()
    }
    assert {p.device.type for p in ghost.parameters()} == {"meta"}


def test_unknown_target_modules_are_refused(tiny_model) -> None:
    with pytest.raises(ModelError, match=r"target_modules \('nope',\)"):
        build(tiny_model, **FP32, target_modules=("nope",))


def test_a_model_quantized_already_is_refused(tiny_model) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match=r"already quantized \(gptq\)"):
        build_model(Recipe(**FP32), config=config, weights=tiny_model, device="cpu")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", "flash_attention_2 needs a CUDA card of compute capability 8.0 or more, and cpu is none"),
        ("cuda", "flash_attention_2 needs the package flash-attn, which is not installed here"),
    ],
)
def test_flash_attention_is_refused_where_it_cannot_run(tiny_model, device, said) -> None:
    recipe = Recipe(attention="flash_attention_2")
    config = AutoConfig.from_pretrained(tiny_model)
    with pytest.raises(ModelError) as refused:
        build_model(recipe, config=config, weights=tiny_model, device=device)
    assert refused.value.what == said
    with pytest.raises(ValueError, match="flash_attention_2 needs a 16-bit base_dtype"):
        Recipe(attention="flash_attention_2", base_dtype="float32")
