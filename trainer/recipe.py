"""The Recipe: everything that shapes one training step. The trainer and the planner's estimate both take it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt

from autoft.schema import Record
from autoft.settings import Setting, settings_of
from autoft.trainer.adapters import ADAPTERS
from autoft.trainer.adapters.initial import FROM_WEIGHTS
from autoft.trainer.objectives import OBJECTIVES

if TYPE_CHECKING:
    import torch

Method = Literal["lora", "qlora", "full"]
Dtype = Literal["float32", "bfloat16", "float16"]
QuantType = Literal["nf4", "fp4", "int8"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
ObjectiveName = Literal["sft", "dft"]
Loss = Literal["fused", "selected", "logits"]
Adapter = Literal["lora", "ia3", "oft", "prompt"]
Init = Literal["default", "orthogonal", "olora", "pissa", "pissa_niter_4", "pissa_niter_16"]
RopeScaling = Literal["yarn", "linear"]

PAD_MULTIPLE = 16  # tensor cores want multiples of 8
OF_EVERY_ADAPTER = ("adapter", "adapter_dtype")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Record):
    """One training step, exactly. Each field says what it is: docs/settings.md."""

    method: Annotated[
        Method,
        Setting(
            "train an adapter on a 16-bit base (lora), on a quantized one (qlora), or all weights",
            group="Method",
            more="lora trains an adapter on a base in base_dtype; qlora on a base whose linear layers are held in "
            "4 bits (arXiv:2305.14314) or, with quant_type int8, in 8 (LLM.int8, arXiv:2208.07339) and computed in "
            "base_dtype. full trains every weight, embeddings and head too: weights, gradients and optimizer state are "
            "in base_dtype, or with autocast in float32.",
            changes=("memory", "time", "quality"),
            alone=False,
            exported=True,
        ),
    ] = "lora"
    objective: Annotated[
        ObjectiveName,
        Setting(
            "what training minimises: cross entropy (sft), or DFT's weighted one",
            group="Method",
            more="sft counts every trained token the same. dft (Dynamic Fine-Tuning, arXiv:2508.05629) multiplies a "
            "token's loss by the probability that the model gives the token, so that unlikely tokens count less; it "
            "needs loss fused or selected. A step shows the loss that is minimised; held-out loss is the cross entropy "
            "for both.",
            changes=("memory", "quality"),
            elsewhere="loss_type use_dft_loss",
        ),
    ] = "sft"
    base_dtype: Annotated[
        Dtype,
        Setting(
            "number format of the base's weights and of the arithmetic",
            group="Method",
            changes=("memory", "time", "quality"),
            elsewhere="dtype torch_dtype precision bnb_4bit_compute_dtype compute_dtype mixed_precision",
            exported=True,
        ),
    ] = "bfloat16"
    quant_type: Annotated[
        QuantType | None,
        Setting(
            "how the base's linear layers are quantized",
            group="Quantization",
            changes=("memory", "time", "quality"),
            elsewhere="bnb_4bit_quant_type quantization quantize quantization_type",
            follows="method",
            alone=False,
            exported=True,
        ),
    ] = None
    double_quant: Annotated[
        bool,
        Setting(
            "quantize the scales of 4-bit blocks too",
            group="Quantization",
            more="It saves 0.37 bits a weight (arXiv:2305.14314).",
            changes=("memory",),
            elsewhere="bnb_4bit_use_double_quant use_double_quant use_bnb_nested_quant double_quantization "
            "nested_quant",
            follows="method",
            alone=False,
        ),
    ] = False
    experts_4bit: Annotated[
        bool,
        Setting(
            "hold the experts of a mixture in 4 bits too",
            group="Quantization",
            more="Without it only linear layers are quantized, and the experts stay in base_dtype.",
            changes=("memory", "time", "quality"),
            follows="method",
            alone=False,
        ),
    ] = False
    adapter: Annotated[
        Adapter,
        Setting(
            "kind of adapter",
            group="Adapter",
            more="lora (arXiv:2106.09685), ia3 (arXiv:2205.05638), which learns a factor for each output of a "
            "layer: far fewer weights, and no rank to choose, oft (arXiv:2506.19847), which rotates the inputs of "
            "each layer in blocks, or prompt (arXiv:2104.08691), vectors that stand before every row.",
            changes=("memory", "time", "quality"),
            elsewhere="peft_type adapter_type peft_method tuner",
        ),
    ] = "lora"
    rank: Annotated[
        int,
        Gt(0),
        Setting(
            "size of the adapter: in how many directions it can change each weight",
            group="Adapter",
            more="LoRA, arXiv:2106.09685.",
            changes=("memory", "quality"),
            elsewhere="r lora_r lora_rank lora_dim rank_dim",
            exported=True,
        ),
    ] = 16
    alpha: Annotated[
        float,
        Gt(0),
        Setting(
            "updates are scaled by alpha / rank",
            group="Adapter",
            changes=("quality",),
            elsewhere="lora_alpha",
            follows="rank",
            exported=True,
        ),
    ] = 32.0
    dropout: Annotated[
        float,
        Ge(0),
        Lt(1),
        Setting(
            "share of the adapter's inputs dropped in training",
            group="Adapter",
            changes=("memory", "quality"),
            elsewhere="lora_dropout",
            exported=True,
        ),
    ] = 0.0
    use_rslora: Annotated[
        bool,
        Setting(
            "scale updates by alpha / sqrt(rank) instead",
            group="Adapter",
            more="A high rank then learns as a low one does (arXiv:2312.03732).",
            changes=("quality",),
            elsewhere="rslora",
        ),
    ] = False
    use_dora: Annotated[
        bool,
        Setting(
            "train the lengths of rows apart from their directions",
            group="Adapter",
            more="DoRA, arXiv:2402.09353. PEFT builds the whole updated weight, dequantized where it is packed, in "
            "every forward of every layer that gets an adapter.",
            changes=("memory", "time", "quality"),
            elsewhere="dora",
            alone=False,
        ),
    ] = False
    freeze_a: Annotated[
        bool,
        Setting(
            "train only LoRA's B, over a random A",
            group="Adapter",
            more="LoRA-FA, arXiv:2308.03303. The inputs of layers need not be kept for A's gradient, and half of the "
            "adapter has neither gradient nor optimizer state.",
            changes=("memory", "time", "quality"),
            elsewhere="lora_fa use_lora_fa freeze_lora_a",
        ),
    ] = False
    init: Annotated[
        Init,
        Setting(
            "how LoRA's matrices begin: at random, or from the base's weights",
            group="Adapter",
            more="pissa (arXiv:2404.02948) begins with the largest singular values of each weight, pissa_niter_4 and "
            "pissa_niter_16 with what 4 or 16 rounds of a randomized method find of them, in a small part of the time. "
            "olora (arXiv:2406.01775) begins with a QR decomposition. The base stays as it is: the adapter is saved as "
            "plain LoRA of twice the rank. orthogonal begins with random matrices whose product is 0.",
            changes=("memory", "time", "quality"),
            elsewhere="init_lora_weights peft_init_lora_weights pissa_init",
            alone=False,
        ),
    ] = "default"
    lora_plus_ratio: Annotated[
        float,
        Ge(1),
        Setting(
            "how many times faster LoRA's B learns than its A",
            group="Adapter",
            more="LoRA+, arXiv:2402.12354, which tries 16 first. learning_rate is that of A.",
            changes=("memory", "quality"),
            elsewhere="loraplus_lr_ratio loraplus_ratio lora_plus",
        ),
    ] = 1.0
    oft_block_size: Annotated[
        int,
        Gt(1),
        Setting(
            "inputs of a layer that OFT rotates together",
            group="Adapter",
            more="It divides the inputs of every layer that gets an adapter.",
            changes=("memory", "time", "quality"),
            alone=False,
        ),
    ] = 32
    virtual_tokens: Annotated[
        int,
        Gt(0),
        Setting(
            "vectors that prompt tuning puts before every row",
            group="Adapter",
            more="Each takes the place of a token in the model's context, in training and in every answer.",
            changes=("memory", "time", "quality"),
            elsewhere="num_virtual_tokens",
            alone=False,
        ),
    ] = 20
    target_modules: Annotated[
        Literal["all-linear"] | tuple[str, ...],
        Setting(
            "layers that get an adapter",
            group="Adapter",
            more='"all-linear" is every linear layer but the head; else names of layers.',
            changes=("memory", "time", "quality"),
            elsewhere="lora_target_modules lora_target lora_targets modules targets",
            exported=True,
        ),
    ] = "all-linear"
    new_tokens: Annotated[
        tuple[str, ...],
        Setting(
            "words that become one token each, with embeddings of their own to train",
            group="Adapter",
            more="They are added to the tokenizer, which is saved with the adapter. A new token's row of the "
            "embedding, and of a head with rows of its own, begins as the mean of those that the word had "
            "before. Only these rows are trained, by PEFT's trainable_token_indices, which copies the whole embedding "
            "in each forward.",
            changes=("memory", "time", "quality"),
            elsewhere="add_tokens new_special_tokens add_new_tokens additional_special_tokens trainable_token_indices",
            optional=True,
        ),
    ] = ()
    first_new_id: Annotated[
        int,
        Ge(0),
        Setting(
            "token id of the first of new_tokens; a plan takes it from the tokenizer",
            group="Adapter",
            follows="new_tokens",
            alone=False,
            typed=False,
            optional=True,
        ),
    ] = 0
    adapter_dtype: Annotated[
        Dtype,
        Setting(
            "number format of the trained weights, gradients and optimizer state",
            group="Adapter",
            changes=("memory", "quality"),
            exported=True,
        ),
    ] = "float32"
    autocast: Annotated[
        bool,
        Setting(
            "compute in 16 bits over float32 adapters",
            group="Method",
            more="The step runs under torch.autocast in base_dtype.",
            changes=("memory", "time"),
            alone=False,
            exported=True,
        ),
    ] = False
    micro_batch: Annotated[
        int,
        Gt(0),
        Setting(
            "sequences in one forward and backward",
            group="Batch and length",
            changes=("memory", "time"),
            elsewhere="batch_size batch bs micro_batch_size train_batch_size per_device_train_batch_size "
            "device_batch_size",
            exported=True,
        ),
    ] = 8
    seq_len: Annotated[
        int,
        Gt(0),
        Setting(
            "longest row in tokens; longer rows are left out",
            group="Batch and length",
            changes=("memory", "time", "quality"),
            elsewhere="max_seq_length max_seq_len max_length max_len cutoff_len sequence_len sequence_length "
            "seq_length context_length model_max_length block_size",
            exported=True,
        ),
    ] = 1024
    rope_scaling: Annotated[
        RopeScaling | None,
        Setting(
            "stretch positions for rows longer than the model was made for",
            group="Batch and length",
            more="yarn (arXiv:2309.00071) or linear (arXiv:2306.15595). The factor is seq_len over the model's own "
            "length.",
            changes=("quality",),
            elsewhere="rope_scaling_type rope",
        ),
    ] = None
    packing: Annotated[
        bool,
        Setting(
            "put several examples in a row, where none sees another",
            group="Batch and length",
            more="Each row then has seq_len tokens.",
            changes=("memory", "time"),
            elsewhere="sample_packing pack",
            exported=True,
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        Setting(
            "run layers again in the backward pass, to keep less",
            group="Memory",
            more="A layer keeps its input alone (arXiv:1604.06174).",
            changes=("memory", "time"),
            elsewhere="use_gradient_checkpointing gradient_checkpoint grad_checkpointing checkpointing "
            "activation_checkpointing",
            exported=True,
        ),
    ] = False
    checkpoint_every: Annotated[
        int,
        Gt(0),
        Setting(
            "run only every n-th layer again",
            group="Memory",
            more="From the first on; the others keep their activations.",
            changes=("memory", "time"),
            follows="gradient_checkpointing",
            alone=False,
        ),
    ] = 1
    offload_checkpoints: Annotated[
        bool,
        Setting(
            "keep what checkpointing keeps in host RAM",
            group="Memory",
            changes=("memory", "time"),
            follows="gradient_checkpointing",
            alone=False,
        ),
    ] = False
    streamed_layers: Annotated[
        int,
        Ge(0),
        Setting(
            "how many layers keep their frozen weights in host RAM",
            group="Memory",
            more="A layer's weights are copied to the GPU when it runs, the next layer's while it computes. All "
            "streamed layers share two places there. 0 keeps every layer on the GPU.",
            changes=("memory", "time"),
            elsewhere="blocks_to_swap layer_offloading num_offload_layers",
            follows="gradient_checkpointing",
            alone=False,
        ),
    ] = 0
    attention: Annotated[
        Attention,
        Setting(
            "which kernels compute attention",
            group="Memory",
            changes=("memory", "time"),
            elsewhere="attn_implementation attn flash_attention flash_attn",
            exported=True,
        ),
    ] = "sdpa"
    optimizer: Annotated[
        Optimizer,
        Setting(
            "AdamW of PyTorch, AdamW of bitsandbytes with 8-bit state, or Adafactor",
            group="Memory",
            more="adamw_torch_fused updates weights in one kernel, without the copies that adamw_torch makes of them "
            "on a GPU. A paged state leaves a full GPU for the host. adafactor (arXiv:1804.04235) keeps a number a row "
            "and a column of each weight.",
            changes=("memory", "time"),
            elsewhere="optim",
            exported=True,
        ),
    ] = "adamw_torch"
    kbit_upcast: Annotated[
        bool,
        Setting(
            "keep norms and embeddings of a quantized base in float32",
            group="Quantization",
            more="As PEFT's prepare_model_for_kbit_training has them.",
            changes=("memory",),
        ),
    ] = False
    loss: Annotated[
        Loss,
        Setting(
            "fused never builds the logits; selected builds only the trained ones",
            group="Memory",
            more="fused is TRL's fused head, which needs Triton on a GPU; selected builds the logits of the columns in "
            "which some row of the batch trains a token, the quickest on a CPU; logits builds all, as Hugging Face's "
            "loss does.",
            changes=("memory", "time"),
            exported=True,
        ),
    ] = "fused"

    def __post_init__(self) -> None:
        if (self.method == "qlora") != (self.quant_type is not None):
            raise ValueError("method qlora and a quant_type go together: set both or neither")
        if self.method == "full":
            self._check_full()
        for name in self._set_in_vain():
            raise ValueError(f"adapter {self.adapter} has no {name}: leave {name} out")
        self._check_quantization()
        self._check_init()
        self._check_new_tokens()
        self._check_prompt()
        self._check_checkpointing()
        self._check_streaming()
        losses = OBJECTIVES[self.objective].losses
        if self.loss not in losses:
            raise ValueError(
                f"objective {self.objective} needs the loss of each token: set loss to {' or '.join(losses)}, "
                f"not {self.loss}"
            )
        for name, needs_half in (
            ("flash_attention_2", self.attention == "flash_attention_2"),
            ("autocast", self.autocast),
        ):
            if needs_half and self.base_dtype == "float32":
                raise ValueError(f"{name} needs a 16-bit base_dtype")

    def _check_quantization(self) -> None:
        for name in ("double_quant", "experts_4bit"):
            if getattr(self, name) and self.quant_type is None:
                raise ValueError(f"{name} needs a quant_type")
            if getattr(self, name) and self.quant_type == "int8":
                raise ValueError(f"{name} needs a quant_type of 4 bits, nf4 or fp4, not int8")
        if self.use_dora and self.quant_type == "int8":
            raise ValueError("use_dora needs a base in 16 or 4 bits: PEFT loses the scales of 8-bit weights")

    def _check_streaming(self) -> None:
        if not self.streamed_layers:
            return
        if not (self.gradient_checkpointing and self.checkpoint_every == 1):
            raise ValueError("streamed_layers needs gradient_checkpointing, of every layer")
        if self.method == "full":
            raise ValueError("method full trains every layer, and streamed_layers copies layers that stay as they are")
        if self.quant_type == "int8":
            raise ValueError("streamed_layers needs a base in 16 or 4 bits, not int8")
        if self.use_dora:
            raise ValueError("use_dora measures weights that streamed_layers keeps away: set one of them")
        if self.init not in ("default", "orthogonal"):
            raise ValueError(f"init {self.init} reads weights that streamed_layers keeps away: leave one of them out")

    def _check_init(self) -> None:
        if self.freeze_a and self.lora_plus_ratio > 1:
            raise ValueError("freeze_a trains B alone: leave lora_plus_ratio out, and set learning_rate")
        if self.init == "default":
            return
        if self.quant_type is not None:
            raise ValueError(
                f"init {self.init} needs base weights in 16 or 32 bits: leave init out, or set method to lora"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init orthogonal needs an even rank, not {self.rank}")
        if self.init != "orthogonal" and self.use_dora:
            raise ValueError(f"init {self.init} is saved as plain LoRA, which has no use_dora: leave one of them out")

    def _check_new_tokens(self) -> None:
        for word in self.new_tokens:
            if not word.strip():
                raise ValueError("new_tokens has an empty word: leave it out")
            if word != word.strip():
                raise ValueError(f"new_tokens: {word!r} begins or ends with a space: leave the space out")
            if self.new_tokens.count(word) > 1:
                raise ValueError(f"new_tokens has {word!r} twice: leave one of them out")
        if not self.new_tokens:
            return
        if self.streamed_layers:
            raise ValueError(
                "new_tokens trains rows of an embedding that streamed_layers keeps on the host: leave one out"
            )
        if self.init in FROM_WEIGHTS:
            raise ValueError(f"init {self.init} is saved as plain LoRA, without new_tokens: leave one of them out")

    def _check_prompt(self) -> None:
        if self.method == "full" or ADAPTERS[self.adapter].on_layers:
            return
        if self.packing:
            raise ValueError(
                f"adapter {self.adapter} puts vectors before rows, not before each packed example: leave packing out"
            )
        if self.streamed_layers:
            raise ValueError(
                f"adapter {self.adapter} is put before embeddings, which streamed_layers keeps on the host: "
                "leave one of them out"
            )

    def _check_checkpointing(self) -> None:
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise ValueError("offload_checkpoints needs gradient_checkpointing")
        if self.checkpoint_every > 1 and not self.gradient_checkpointing:
            raise ValueError("checkpoint_every needs gradient_checkpointing")
        if self.checkpoint_every > 1 and self.experts_4bit:
            raise ValueError("experts_4bit checkpoints every layer: another one would keep its experts unpacked")

    def _check_full(self) -> None:
        for name in self._set_in_vain():
            raise ValueError(f"method full trains the weights themselves and has no adapter: leave {name} out")
        if self.base_dtype == "float16" and not self.autocast:
            raise ValueError("method full cannot train float16 weights: set autocast, for weights in float32")

    def _set_in_vain(self) -> Iterator[str]:
        """Fields that mean nothing in this recipe and are not at their defaults."""
        for name in _without_meaning(self.method, self.adapter):
            if getattr(self, name) != settings_of(Recipe)[name].default:
                yield name

    @property
    def weights_dtype(self) -> Dtype:
        """Of the model's own weights, those aside that are quantized."""
        return "float32" if self.method == "full" and self.autocast else self.base_dtype

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """Token ids of new_tokens, in their order."""
        return tuple(range(self.first_new_id, self.first_new_id + len(self.new_tokens)))

    def vocabulary(self, rows: int) -> int:
        """Rows that an embedding of `rows` has once the new tokens have theirs."""
        return max([rows, *(number + 1 for number in self.new_token_ids)])

    @property
    def pad_multiple(self) -> int:
        """Batches are padded to a multiple of so many tokens: few shapes, so memory stays what the first steps took."""
        return math.gcd(self.seq_len, PAD_MULTIPLE)


def applies(name: str, method: str, adapter: str) -> bool:
    """Whether a field of the Recipe means something with this method and kind of adapter."""
    return name not in _without_meaning(method, adapter)


@functools.cache
def _without_meaning(method: str, adapter: str) -> tuple[str, ...]:
    """Full fine-tuning has no adapter and no quantized base; kinds of adapters have fields of their own."""
    group = {name: field.setting.group for name, field in settings_of(Recipe).items()}
    if method == "full":
        return tuple(name for name in group if group[name] in ("Adapter", "Quantization"))
    kind = ADAPTERS[adapter]
    known = {*OF_EVERY_ADAPTER, *kind.settings, *(("target_modules",) if kind.on_layers else ())}
    return tuple(name for name in group if group[name] == "Adapter" and name not in known)


def torch_dtype(name: Dtype) -> torch.dtype:
    """The torch dtype of a Recipe's dtype name."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
