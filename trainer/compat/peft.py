"""Hooks into PEFT."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("peft")

TABLE.hook(
    "peft.utils.transformers_weight_conversion:convert_peft_config_for_transformers",
    "(peft_config, model, conversions)",
    "called before PEFT calls it, so that experts and routers get no adapter by default",
    "trainer/build.py",
)
TABLE.hook(
    "peft.utils.transformers_weight_conversion:_convert_peft_config_moe",
    "(peft_config, model)",
    "what convert_peft_config_for_transformers sets is put back",
    "trainer/build.py",
    attributes=("target_parameters", "rank_pattern", "alpha_pattern"),
)
TABLE.hook(
    "peft.tuners.lora:LoraLayer",
    "(base_layer, ephemeral_gpu_offload=False, **kwargs)",
    "an adapter's weights are known by their names",
    "planner/loading.py",
    "trainer/adapters/lora.py",
    attributes=("lora_A", "lora_B", "lora_magnitude_vector", "base_layer"),
)
TABLE.hook(
    "peft.tuners.ia3:IA3Layer",
    "(base_layer, is_feedforward, **kwargs)",
    "an adapter's weights are known by their names",
    "trainer/adapters/ia3.py",
    attributes=("ia3_l",),
)
TABLE.hook(
    "peft:PeftModel.get_base_model",
    "(self)",
    "the model beneath the adapter",
    "trainer/build.py",
)
