"""The Recipe: everything that shapes one training step. The trainer and the planner's estimate both take it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from autoft.schema import Record

Method = Literal["lora", "qlora", "full"]
Dtype = Literal["float32", "bfloat16", "float16"]
QuantType = Literal["nf4", "fp4", "int8"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"]
Loss = Literal["fused", "selected", "logits"]
RopeScaling = Literal["yarn", "linear"]

PAD_MULTIPLE = 16  # tensor cores want multiples of 8
OF_ADAPTERS = ("rank", "alpha", "dropout", "use_rslora", "use_dora", "target_modules", "adapter_dtype", "kbit_upcast")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Record):
    """One training step, exactly.

    method: lora trains an adapter on a base kept in base_dtype; qlora on a base whose linear layers are held in 4 bits
        (arXiv:2305.14314), or in 8 with quant_type int8 (LLM.int8, arXiv:2208.07339), and computed in base_dtype.
        full trains every weight of the model, embeddings and head too, and has no adapter: the weights, gradients and
        optimizer state are in base_dtype, or with autocast in float32 and only computed in base_dtype.
    double_quant: the scales of the 4-bit blocks are quantized too, 0.37 bits a weight saved (same source).
    experts_4bit: hold the experts of a mixture-of-experts model in 4 bits too; without it only linear layers are, and
        the experts stay in base_dtype.
    rank, alpha, dropout: of LoRA (arXiv:2106.09685); updates are scaled by alpha / rank.
    use_rslora: they are scaled by alpha / sqrt(rank), so that a high rank learns as a low one does (arXiv:2312.03732).
    use_dora: the length of each row of a weight is trained apart from its direction (arXiv:2402.09353). PEFT builds the
        whole updated weight, dequantized where it is packed, in every forward of every layer that gets an adapter.
    target_modules: "all-linear" (every linear layer but the head) or the names of the layers that get an adapter.
    adapter_dtype: of the trained weights and so of gradients and optimizer state.
    autocast: run the step under torch.autocast in base_dtype, so that float32 adapters meet a 16-bit base.
    micro_batch: sequences in one forward and backward. seq_len: tokens, the longest sequence that is trained on.
    rope_scaling: how positions are stretched for rows longer than the model was made for (trainer/rope.py): yarn
        (arXiv:2309.00071) or linear (arXiv:2306.15595). The factor is seq_len over the model's own length.
    packing: several examples share a row of exactly seq_len tokens, none of which sees another (trainer/data/pack.py).
    gradient_checkpointing: a layer keeps its input alone and runs again in the backward (arXiv:1604.06174).
    checkpoint_every: only every so many layers do so, from the first on; the others keep their activations.
    offload_checkpoints: these inputs wait in the host's memory (trainer/offload.py).
    optimizer: AdamW of PyTorch or, with states of 8 bits, of bitsandbytes; paged states leave a full GPU for the host.
        adamw_torch_fused updates weights in one kernel, without the copies that adamw_torch makes of them on a GPU.
    kbit_upcast: norms and embeddings of a quantized base go to float32 (PEFT's prepare_model_for_kbit_training).
    loss: "fused" never builds the logits (TRL's fused head: Triton on a GPU); "selected" builds those of the columns in
        which some row of the batch trains a token, the quickest on a CPU; "logits" builds all, as Hugging Face's loss.
    """

    method: Method = "lora"
    base_dtype: Dtype = "bfloat16"
    quant_type: QuantType | None = None
    double_quant: bool = False
    experts_4bit: bool = False
    rank: Annotated[int, Gt(0)] = 16
    alpha: Annotated[float, Gt(0)] = 32.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    adapter_dtype: Dtype = "float32"
    autocast: bool = False
    micro_batch: Annotated[int, Gt(0)] = 8
    seq_len: Annotated[int, Gt(0)] = 1024
    rope_scaling: RopeScaling | None = None
    packing: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: Annotated[int, Gt(0)] = 1
    offload_checkpoints: bool = False
    attention: Attention = "sdpa"
    optimizer: Optimizer = "adamw_torch"
    kbit_upcast: bool = False
    loss: Loss = "fused"

    def __post_init__(self) -> None:
        if (self.method == "qlora") != (self.quant_type is not None):
            raise ValueError("method qlora and a quant_type go together: set both or neither")
        if self.method == "full":
            self._check_full()
        for name in ("double_quant", "experts_4bit"):
            if getattr(self, name) and self.quant_type is None:
                raise ValueError(f"{name} needs a quant_type")
            if getattr(self, name) and self.quant_type == "int8":
                raise ValueError(f"{name} needs a quant_type of 4 bits, nf4 or fp4, not int8")
        if self.use_dora and self.quant_type == "int8":
            raise ValueError("use_dora needs a base in 16 or 4 bits: PEFT loses the scales of 8-bit weights")
        if self.attention == "flash_attention_2" and self.base_dtype == "float32":
            raise ValueError("flash_attention_2 needs a 16-bit base_dtype")
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise ValueError("offload_checkpoints needs gradient_checkpointing")
        if self.checkpoint_every > 1 and not self.gradient_checkpointing:
            raise ValueError("checkpoint_every needs gradient_checkpointing")
        if self.checkpoint_every > 1 and self.experts_4bit:
            raise ValueError("experts_4bit checkpoints every layer: another one would keep its experts unpacked")
        if self.autocast and self.base_dtype == "float32":
            raise ValueError("autocast needs a 16-bit base_dtype")

    def _check_full(self) -> None:
        fields = type(self).__dataclass_fields__
        for name in OF_ADAPTERS:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"method full trains the weights themselves and has no adapter: leave {name} out")
        if self.base_dtype == "float16" and not self.autocast:
            raise ValueError("method full cannot train float16 weights: set autocast, for weights in float32")

    @property
    def weights_dtype(self) -> Dtype:
        """Of the model's own weights, those aside that are quantized."""
        return "float32" if self.method == "full" and self.autocast else self.base_dtype

    @property
    def pad_multiple(self) -> int:
        """Batches are padded to a multiple of so many tokens: few shapes, so memory stays what the first steps took."""
        return math.gcd(self.seq_len, PAD_MULTIPLE)
