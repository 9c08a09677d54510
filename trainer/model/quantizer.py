"""How weights are packed in 4 bits while they are loaded: transformers' quantizer for bitsandbytes, and what it lacks.

It packs experts too where a recipe has them in 4 bits, each before the next is read: the device then never holds more
than two 16-bit copies of one layer's tensor (transformers stacks the experts of a checkpoint there) beside what is
packed, and the host nothing but mapped file pages. And it packs weights that are to wait on the host on the GPU, one
at a time, which is many times as quick.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationMethod

from autoft.trainer.model.experts import demand_experts, holds_experts, is_expert_weight, pack

QUANTIZER = "bitsandbytes_4bit_autoft"  # our name in transformers' table of quantizers


def loading_config(config: BitsAndBytesConfig, *, experts: bool, pack_on: str | None) -> BitsAndBytesConfig:
    """`config` for from_pretrained.

    experts: pack them too. pack_on: the device to pack on, from where packed weights go back to where they are loaded;
    None where that is the device itself.
    """
    config.quant_method = QUANTIZER
    config.packs_experts, config.pack_on = experts, pack_on
    return config


@register_quantizer(QUANTIZER)
class _Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        if holds_experts(module):
            return self.quantization_config.packs_experts and is_expert_weight(getattr(module, name))
        return bool(super().param_needs_quantization(model, param_name, **kwargs))

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        if self.quantization_config.packs_experts:
            demand_experts(model)
        super()._process_model_before_weight_loading(model, *args, **kwargs)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self.quantization_config.quant_method = model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        return super()._process_model_after_weight_loading(model, **kwargs)


class _Quantize(Bnb4bitQuantize):  # type: ignore[misc]
    """Packs weights as they come from the checkpoint: experts as experts.py, linear layers as transformers does."""

    def convert(self, input_dict: dict[str, Any], model: Any = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        config = self.hf_quantizer.quantization_config
        packed: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            there = weight if config.pack_on is None else weight.to(config.pack_on)
            if holds_experts(get_module_from_name(model, name)[0]):
                made = pack(there, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant)
            else:
                (made,) = super().convert({name: there}, model=model, **kwargs).values()
            del there
            packed[name] = made if config.pack_on is None else _back(made, weight.device)
        return packed


def _back(packed: Any, device: torch.device) -> Any:
    """A packed weight on `device`, its scales too."""
    packed.quant_state.to(device)
    packed.data = packed.data.to(device)
    return packed
