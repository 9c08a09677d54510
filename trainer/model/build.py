"""The model of one Recipe: base, quantization, adapter, checkpointing. Trainer and planner build it here and only here.

With `device="meta"` the same calls make a model without storage, from the configuration alone.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.trainer.adapters import kind_of
from autoft.trainer.model.new_rows import give_rows, trained_tokens
from autoft.trainer.model.rope import scaled_config
from autoft.trainer.objectives import objective_of
from autoft.trainer.recipe import Attention, Recipe, torch_dtype
from autoft.trainer.runtime import environment
from autoft.trainer.sources.suitable import (
    auto_class,
    has_towers,
    missing_library,
    refuse_other_inputs,
    refuse_unsuitable,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from autoft.trainer.model.shared_host import SharedHost


def build_model(
    recipe: Recipe,
    *,
    config: Any,
    weights: Path | None,
    device: str,
    seed: int = 0,
    shared: SharedHost | None = None,
    pieces: Sequence[Sequence[int]] = (),
) -> PeftModel | PreTrainedModel:
    """The model that a step of `recipe` trains, in training mode: base weights frozen and an adapter, or all trainable.

    config: a transformers configuration. weights: folder of safetensors; None only with device "meta".
    seed: of the adapter's random initialization. shared: of a base that several processes stream.
    pieces: of each new token, the ids that its word had before.
    Raises: ModelError when the model cannot take this recipe.
    """
    import torch

    from autoft.trainer.model.offload import offload_checkpoints

    if weights is not None:
        refuse_moving(recipe, device)
    base = build_whole_base(recipe, config, weights, device, shared=shared, pieces=pieces)
    torch.manual_seed(seed)
    if recipe.method == "full":
        for name in towers(base):
            base.get_submodule(name).requires_grad_(False)
        model = base
    else:
        model = add_adapter(base, recipe, device)
    if recipe.gradient_checkpointing:
        checkpoint_layers(model, recipe.checkpoint_every)
        if recipe.offload_checkpoints:
            offload_checkpoints(model)
    if torch.device(device).type == "cuda":
        # what loading used in passing goes back to the device, so that the steps find it as the rehearsal does
        torch.cuda.empty_cache()
    return model.train()


def without_adapter(model: Any) -> PreTrainedModel:
    """The transformers model in what `build_model` has built."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def checkpoint_layers(model: Any, every: int = 1) -> None:
    """Have every `every`-th layer run again in the backward. Raises: ModelError where layers cannot be told apart."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if every > 1 and not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise ModelError(
            f"{type(without_adapter(model)).__name__} checkpoints all of its layers or none",
            fix="leave checkpoint_every out",
        )
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
    )


def build_whole_base(
    recipe: Recipe,
    config: Any,
    weights: Path | None,
    device: str,
    *,
    for_loss: bool = True,
    shared: SharedHost | None = None,
    pieces: Sequence[Sequence[int]] = (),
) -> PreTrainedModel:
    """The base as the adapter is trained on it.

    for_loss: with what the recipe's loss needs. shared: as `stream` has it; the first process alone reads weights.
    pieces: as `build_model` has them.
    Raises: as build_base.
    """
    streams = recipe.streamed_layers > 0 and device.startswith("cuda")
    borrows = shared is not None and not shared.first
    base = build_base(recipe, config, None if borrows else weights, device, onto="cpu" if streams else device)
    if recipe.new_tokens:
        give_rows(base, recipe, pieces)
    if recipe.kbit_upcast:
        _upcast(base)
    if streams:
        from autoft.trainer.model.stream import stream

        stream(base, recipe, device, shared)
    if for_loss and recipe.loss == "fused":
        _add_fused_head(base, recipe)
    return base


def build_base(
    recipe: Recipe, config: Any, weights: Path | None = None, device: str = "meta", *, onto: str | None = None
) -> PreTrainedModel:
    """The base of `recipe`, its linear layers in 4 or 8 bits where the recipe says so.

    device: where it runs. onto: where its weights are loaded to, None for the same.
    Raises: ModelError when there is no such model, or it cannot be quantized.
    """
    environment.import_libraries()
    refuse_unsuitable(config)
    refuse_other_inputs(config)
    config = scaled_config(config, recipe)
    if recipe.new_tokens:
        config = copy.deepcopy(config)  # which transformers changes where it adds rows
    if recipe.attention == "flash_attention_2" and weights is not None:
        _demand_flash_attention(device)
    try:
        base = (
            _ghost_base(recipe, config)
            if weights is None
            else _load_base(recipe, config, weights, device, onto or device)
        )
    except ImportError as error:
        raise missing_library(f"a {config.model_type} model", error) from error
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"transformers cannot build a causal {config.model_type} model with {recipe.attention} attention: {reason}",
            fix="choose another model, or --set attention=eager",
        ) from error
    if not base.can_generate():
        raise ModelError(f"{type(base).__name__} writes no text, and autoft trains on text", fix="choose another model")
    if recipe.quant_type is not None:
        _demand_quantized_layers(base, recipe)
        _forbid_repacking(base)
        _unpack_as_one_row()
        _let_go_of_inputs(base)
    if recipe.packing:
        _demand_packing(base, recipe)
    if recipe.experts_4bit:
        from autoft.trainer.model.experts import quantize_experts

        quantize_experts(base, recipe)
    text_config = base.config.get_text_config()
    if getattr(text_config, "output_router_logits", False):
        text_config.output_router_logits = False  # the loss is cross entropy alone, without experts' balance
    return base


def base_of(config: Any) -> tuple[Attention, PreTrainedModel]:
    """The attention that the model takes, sdpa or else eager, and its plain base without storage, which tells it.

    Raises: ModelError when there is no such model.
    """
    try:
        return "sdpa", build_base(Recipe(attention="sdpa"), config)
    except ModelError as error:
        if isinstance(error.__cause__, ImportError):
            raise
        return "eager", build_base(Recipe(attention="eager"), config)


def _ghost_base(recipe: Recipe, config: Any) -> PreTrainedModel:
    import torch
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    with torch.device("meta"), _flash_attention_for_a_ghost():
        model = auto_class(config).from_config(
            config,
            dtype=torch_dtype(recipe.weights_dtype),
            attn_implementation=recipe.attention,
            trust_remote_code=False,
        )
        model.tie_weights()
        if recipe.quant_type is not None:
            model.config._is_quantized = True
            keep = get_keys_to_not_convert(model)
            model = replace_with_bnb_linear(
                model, modules_to_not_convert=keep, quantization_config=_quantization(recipe)
            )
            if recipe.quant_type == "int8":
                model.is_loaded_in_8bit = True
                _round_linears(model, recipe)
            else:
                model.is_loaded_in_4bit = True
                _pack_linears(model, recipe)
    return model


def _pack_linears(model: PreTrainedModel, recipe: Recipe) -> None:
    """Give the 4-bit layers of a model without storage what loading gives them: packed weights, scales, biases."""
    import bitsandbytes as bnb

    from autoft.trainer.model.experts import pack_on_meta

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            loaded = module.weight.to(torch_dtype(recipe.base_dtype))
            packed, state = pack_on_meta(loaded, str(recipe.quant_type), recipe.double_quant)
            weight = bnb.nn.Params4bit.__new__(
                bnb.nn.Params4bit,
                packed,
                requires_grad=False,
                quant_type=recipe.quant_type,
                blocksize=state.blocksize,
                compress_statistics=recipe.double_quant,
                module=module,
                bnb_quantized=True,
            )
            weight.quant_state = module.quant_state = state
            module.weight = weight
            if module.bias is not None:
                module.bias.data = module.bias.data.to(torch_dtype(recipe.base_dtype))


def _round_linears(model: PreTrainedModel, recipe: Recipe) -> None:
    """Give the 8-bit layers of a model without storage what loading gives them: weights, a scale a row, biases."""
    import bitsandbytes as bnb
    import torch

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            rounded = torch.empty(module.out_features, module.in_features, dtype=torch.int8, device="meta")
            scales = torch.empty(module.out_features, dtype=torch.float32, device="meta")
            module.weight = bnb.nn.Int8Params(rounded, requires_grad=False, CB=rounded, SCB=scales)
            module.init_8bit_state()
            if module.bias is not None:
                module.bias.data = module.bias.data.to(torch_dtype(recipe.base_dtype))


def _load_base(recipe: Recipe, config: Any, weights: Path, device: str, onto: str) -> PreTrainedModel:
    """device: where it runs. onto: where its weights go.

    Raises: ModelError where a weight of the model is not in the folder: transformers would make it up at random."""
    quantization = _quantization(recipe) if recipe.quant_type is not None else None
    if recipe.experts_4bit or (recipe.quant_type is not None and onto != device):
        from autoft.trainer.model.quantizer import loading_config

        pack_on = None if onto == device else device
        quantization = loading_config(quantization, experts=recipe.experts_4bit, pack_on=pack_on)
    model, loading_info = auto_class(config).from_pretrained(
        weights,
        config=config,
        dtype=torch_dtype(recipe.weights_dtype),
        attn_implementation=recipe.attention,
        quantization_config=quantization,
        device_map={"": onto},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise ModelError(
            f"{weights}: {len(missing)} weights of a {config.model_type} model are not there, {missing[0]} for one",
            fix="the weights that belong to this config.json",
        )
    model.config.use_cache = False
    return model


def _quantization(recipe: Recipe) -> Any:
    from transformers import BitsAndBytesConfig

    if recipe.quant_type == "int8":
        # it tells in every forward of every layer that inputs are rounded through float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quant_type,
        bnb_4bit_use_double_quant=recipe.double_quant,
        bnb_4bit_compute_dtype=torch_dtype(recipe.base_dtype),
    )


def refuse_moving(recipe: Recipe, device: str) -> None:
    """Refuse what moves tensors between device and host where there is no device but the host. Raises: ModelError."""
    if not device.startswith("cpu"):
        return
    if recipe.offload_checkpoints:
        raise ModelError(
            "offload_checkpoints moves checkpoints from a GPU to the host's memory; on the CPU they are there already",
            fix="leave offload_checkpoints out",
        )
    if recipe.streamed_layers:
        raise ModelError(
            "streamed_layers keeps layers in the host's memory until a GPU runs them; the CPU has them there",
            fix="leave streamed_layers out",
        )


def refuse_flash_attention(device: str, capability: tuple[int, int] | None) -> None:
    """Refuse flash_attention_2 where its kernels do not run. capability: compute capability of the card, if it is one.

    Raises: ModelError.
    """
    if capability is None or capability < (8, 0):
        raise ModelError(
            f"flash_attention_2 needs a CUDA card of compute capability 8.0 or more, and {device} is none",
            fix="--set attention=sdpa",
        )


def _demand_flash_attention(device: str) -> None:
    import torch

    if torch.device(device).type != "cuda":
        refuse_flash_attention(device, None)
    if importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            "flash_attention_2 needs the package flash-attn, which is not installed here",
            fix="pip install flash-attn --no-build-isolation, or --set attention=sdpa",
        )
    refuse_flash_attention(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


@contextmanager
def _flash_attention_for_a_ghost() -> Iterator[None]:
    """Inside, models take flash_attention_2 where flash-attn is not installed: nothing is computed on meta."""
    from transformers import PreTrainedModel

    check = PreTrainedModel._check_and_adjust_attn_implementation

    def checked(model: PreTrainedModel, attention: str, *args: Any, **kwargs: Any) -> str:
        if attention != "flash_attention_2":
            return str(check(model, attention, *args, **kwargs))
        compatible = getattr(model, "_compatible_flash_implementations", None)
        if not (model._supports_flash_attn and (compatible is None or attention in compatible)):
            raise ValueError("its code takes no FlashAttention-2")
        return attention

    PreTrainedModel._check_and_adjust_attn_implementation = checked
    try:
        yield
    finally:
        PreTrainedModel._check_and_adjust_attn_implementation = check


def _demand_packing(base: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse a model whose examples would see each other in a row that they share.

    transformers tells them apart by positions that start anew, where a model hands these on to masking_utils, or to
    its layers for FlashAttention-2: OPT, Falcon and GPT-OSS do not, and Mamba or linear attention carry a state along
    the whole row.
    """
    text = base.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ("full_attention",))
    attention_alone = kinds <= {"full_attention", "sliding_attention", "chunked_attention"} and not base._is_stateful
    if not (attention_alone and _hands_positions_on(base, to_layers=recipe.attention == "flash_attention_2")):
        raise ModelError(
            f"{type(base).__name__} cannot tell packed examples apart: they would see each other",
            fix="leave packing out",
        )


def _hands_positions_on(base: PreTrainedModel, *, to_layers: bool) -> bool:
    """Whether a forward asks transformers which of its positions begin another example; it is stopped there.

    to_layers: whether it hands them to its first layer instead.
    """
    import torch
    from transformers import masking_utils
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Asked(Exception):  # noqa: N818 - an answer, no error
        pass

    def stop(_: Any) -> None:
        if not to_layers:
            raise Asked

    def at_layer(_layer: Any, _inputs: Any, named: dict[str, Any]) -> None:
        raise Asked if named.get("position_ids") is not None else ValueError

    layers = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)] if to_layers else []
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    real, masking_utils.find_packed_sequence_indices = masking_utils.find_packed_sequence_indices, stop
    hooks = [layer.register_forward_pre_hook(at_layer, with_kwargs=True) for layer in layers]
    ids = torch.zeros(1, 2, dtype=torch.long, device=base.device)
    try:
        with torch.no_grad():
            base(input_ids=ids, position_ids=ids, use_cache=False)
    except Asked:
        return True
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # on meta, past the masks, where values are asked for
    finally:
        masking_utils.find_packed_sequence_indices = real
        for hook in hooks:
            hook.remove()
    return False


def _demand_quantized_layers(base: PreTrainedModel, recipe: Recipe) -> None:
    import bitsandbytes as bnb

    if not any(isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) for module in base.modules()):
        bits = 8 if recipe.quant_type == "int8" else 4
        raise ModelError(
            f"no layer of {type(base).__name__} can be quantized to {bits} bits: it has no plain linear layers but its "
            "head",
            fix="--method lora",
        )


def _forbid_repacking(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from changing the 4-bit weights when they are first evaluated on a CPU with AVX-512 BF16.

    bitsandbytes 0.50 repacks them for a product that has no gradient, rounds their scales, and never packs them back:
    training after an evaluation would then learn through the residual stream alone, silently.
    """
    import bitsandbytes as bnb

    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@functools.cache
def _unpack_as_one_row() -> torch.library.Library | None:
    """Have bitsandbytes unpack weights on a CPU as one long row where their rows are no whole blocks.

    Its AVX-512 kernel, in 0.50, begins a new block with each row, which quantization does not: weights of 32, 48 or 96
    columns in blocks of 64 come out wrong by half. Returns what has to live as long as that holds; None where there is
    no such kernel.
    """
    import bitsandbytes  # noqa: F401 - registers its kernels
    import torch

    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    name, device = "bitsandbytes::dequantize_4bit", "CPU"
    kernel = torch.library.get_kernel(name, device)

    def by_blocks(
        keys: Any, packed: Any, scales: Any, blocksize: int, quant_type: str, shape: tuple[int, ...], dtype: Any
    ) -> Any:
        row = shape if shape[-1] % blocksize == 0 else (1, math.prod(shape))
        return kernel.call_boxed(keys, packed, scales, blocksize, quant_type, row, dtype).reshape(shape)

    library = torch.library.Library("bitsandbytes", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*[Oo]verrid", UserWarning)
        library.impl(  # type: ignore[no-untyped-call]
            "dequantize_4bit", by_blocks, device, with_keyset=True, allow_override=True
        )
    return library


def _let_go_of_inputs(base: PreTrainedModel) -> None:
    """Keep 8-bit layers from holding their inputs until the backward, which needs them for no frozen weight.

    bitsandbytes 0.50 hangs them on the node of the graph itself, where checkpointing cannot drop them either.
    """
    import bitsandbytes as bnb

    def let_go(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        node: Any = output.grad_fn
        if hasattr(node, "tensors"):  # of MatMul8bitLt
            node.tensors = (None, None, None)
        if hasattr(node, "A"):  # of MatMul8bitFp
            node.A = None

    for module in base.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.register_forward_hook(let_go)


def _upcast(base: PreTrainedModel) -> None:
    """Norms, embeddings and biases of a quantized base to float32, as PEFT's prepare_model_for_kbit_training does."""
    import bitsandbytes as bnb
    import torch

    for parameter in base.parameters():
        if parameter.is_floating_point() and not isinstance(parameter, bnb.nn.Params4bit):
            parameter.data = parameter.data.to(torch.float32)


def _add_fused_head(base: PreTrainedModel, recipe: Recipe) -> None:
    from transformers import PreTrainedModel
    from trl.trainer.utils import add_fused_lm_head

    if base.base_model is base:  # Llama 4's text model gives the name of a part that only the whole of it has
        parts = (name for name, part in base.named_children() if isinstance(part, PreTrainedModel))
        base.base_model_prefix = next(parts, "")
    if base.base_model is base or base.base_model.get_output_embeddings() is not None:
        raise ModelError(
            f"{type(base).__name__} has no backbone beside its head to fuse",
            fix=f"--set loss={objective_of(recipe).losses[-1]}",
        )
    add_fused_lm_head(base, outputs=("log_probs",))


def add_adapter(base: PreTrainedModel, recipe: Recipe, device: str = "meta") -> PeftModel:
    """An adapter of the recipe's kind, in recipe.adapter_dtype, on the target modules; everything else is frozen.

    Raises: ModelError when the target modules are not there.
    """
    import torch
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    by_type = recipe.target_modules == "all-linear"
    kind = kind_of(recipe)
    config = kind.config(
        recipe,
        _linear_layers(base) if by_type else list(recipe.target_modules),
        exclude_modules=_within(towers(base)),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2's weights are transposed
        **({"trained_tokens": trained_tokens(base, recipe)} if recipe.new_tokens else {}),
    )
    try:
        if hasattr(config, "target_parameters") and (by_type or recipe.experts_4bit):
            _leave_experts(config, base, named=not by_type)
        with torch.device(device), warnings.catch_warnings():
            # PEFT 0.21 sets patterns for the experts that are named, then looks for them among modules alone
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
            warnings.filterwarnings("ignore", "Invalid `oft_block_size`", UserWarning)  # OFT's `begin` refuses it
            model = get_peft_model(base, config)
            kind.begin(model, recipe)
    except ValueError as error:
        raise ModelError(
            f"target_modules {recipe.target_modules!r}: {' '.join(str(error).split())[:160]}",
            fix="--set target_modules=all-linear",
        ) from error
    except TypeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"adapter {kind.name}: {reason}", fix="--set adapter=lora") from error
    kind.mend(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch_dtype(recipe.adapter_dtype))
            parameter.requires_grad_(kind.trains(name, recipe))
    return model


def _within(modules: tuple[str, ...]) -> str | None:
    """A pattern, as PEFT takes it, for the names of all modules within these."""
    return rf"({'|'.join(map(re.escape, modules))})\..*" if modules else None


def refused_by_peft(model_type: str) -> frozenset[str]:
    """Last names of linear layers that PEFT gives no adapter to: peft/tuners/tuners_utils.py, of Mamba's mixers."""
    mamba = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
    return frozenset(("out_proj", "conv1d")) if model_type in mamba else frozenset()


def towers(base: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules that no text passes: towers for pictures and sounds, projectors, layers across to them.

    They are beside the decoder, or in it models of their own (Phi-4 multimodal) or whole layers (Llama 3.2 Vision).
    """
    from transformers import PreTrainedModel

    decoder, text = base.get_decoder(), base.config.get_text_config()
    names = {module: name for name, module in base.named_modules()}
    whole = names.get(decoder, "")
    parent, _, own = whole.rpartition(".")
    across = tuple(f".layers.{number}" for number in getattr(text, "cross_attention_layers", None) or ())
    paths = [name for name in names.values() if across and name.startswith(whole) and name.endswith(across)]
    if whole and text is not base.config:
        head = base.get_output_embeddings()
        beside = base.get_submodule(parent).named_children()
        paths += [f"{parent}.{name}".lstrip(".") for name, module in beside if name != own and module is not head]
    for name, module in decoder.named_children() if has_towers(base.config) else ():
        models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
        if any(type(model.config) is not type(text) for model in models):
            paths.append(f"{whole}.{name}".lstrip("."))
    return tuple(paths)


def _linear_layers(base: PreTrainedModel) -> list[str]:
    """Last names of the linear layers, without head and routers; whole names where another module has the same last.

    Of a vision-language model those of the language model alone, and none that PEFT refuses.

    Routers are of classes of that name. PEFT's own "all-linear" takes those that are a Linear, and breaks Phi-3.5 MoE
    and Llama 4, where they return a tuple. Grouped projections have no one input for an adapter beside them.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    routers = tuple(f"{name}." for name, module in base.named_modules() if type(module).__name__.endswith("Router"))
    left_out = (*routers, *(f"{name}." for name in towers(base)))
    refused = refused_by_peft(base.config.model_type)
    taken, left = [], set()
    for name, module in base.named_modules():
        linear = isinstance(module, (torch.nn.Linear, Conv1D)) and name.rsplit(".", 1)[-1] not in refused
        linear = linear and not _is_grouped(module)
        if linear and module is not head and not f"{name}.".startswith(left_out):
            taken.append(name)
        else:
            left.add(name.rsplit(".", 1)[-1])
    return sorted({name if (last := name.rsplit(".", 1)[-1]) in left else last for name in taken})


def _is_grouped(module: Any) -> bool:
    """Whether a Linear multiplies groups of its input by blocks of its weights, as in DeepSeek V4."""
    return "GroupedLinear" in type(module).__name__


def _leave_experts(config: Any, base: PreTrainedModel, *, named: bool) -> None:
    """Take experts and routers out of `config`: they get an adapter only where the recipe names them, in 16 bits.

    In Mixtral, Qwen3 MoE and others like them PEFT 0.21 reads gate_proj, up_proj and down_proj, and so "all-linear"
    too, as the experts' tensors and the router. Each forward then builds a second copy of all experts of a layer to
    add the adapter to, which is as much as the layer itself; a router that moves sends tokens to other experts. It
    passes over tensors that are parametrized (in 4 bits) and says nothing, but the saved adapter would name them.
    Shared experts and dense layers have the same names there and get no adapter either.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    convert_peft_config_for_transformers(config, base, None)
    if config.target_parameters and named:
        raise ValueError("PEFT takes some of them for experts, and experts in 4 bits get no adapter")
    config.target_parameters, config.rank_pattern, config.alpha_pattern = None, {}, {}
