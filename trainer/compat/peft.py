"""Hooks into PEFT."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("peft")

TABLE.hook(
    "peft.utils.transformers_weight_conversion:convert_peft_config_for_transformers",
    "(peft_config, model, conversions)",
    "called before PEFT calls it, so that experts and routers get no adapter by default",
    "trainer/model/build.py",
)
TABLE.hook(
    "peft.utils.transformers_weight_conversion:_convert_peft_config_moe",
    "(peft_config, model)",
    "what convert_peft_config_for_transformers sets is put back",
    "trainer/model/build.py",
    attributes=("target_parameters", "rank_pattern", "alpha_pattern"),
)
TABLE.hook(
    "peft.tuners.lora:LoraLayer",
    "(base_layer, ephemeral_gpu_offload=False, **kwargs)",
    "an adapter's weights are known by their names",
    "planner/rehearsal/loading.py",
    "trainer/adapters/lora.py",
    attributes=("lora_A", "lora_B", "lora_magnitude_vector", "base_layer"),
)
TABLE.hook(
    "peft.tuners.lora.layer:Linear",
    "(base_layer, adapter_name, config, r=0, lora_alpha=1, is_target_conv_1d_layer=False, **kwargs)",
    "a layer whose weight can be decomposed",
    "trainer/adapters/initial.py",
    attributes=("fan_in_fan_out",),
)
TABLE.hook(
    "peft.tuners.lora:LoraLayer.set_scale",
    "(self, adapter, scale)",
    "-1 subtracts an adapter",
    "trainer/adapters/initial.py",
)
TABLE.hook(
    "peft.tuners.lora:LoraModel.subtract_mutated_init",
    "(self, output_state_dict, adapter_name, kwargs=None)",
    "joins an adapter and the one that it began as",
    "trainer/adapters/initial.py",
)
TABLE.hook(
    "peft.tuners.ia3:IA3Layer",
    "(base_layer, is_feedforward, **kwargs)",
    "an adapter's weights are known by their names",
    "trainer/adapters/ia3.py",
    attributes=("ia3_l",),
)
TABLE.hook(
    "peft.tuners.oft:OFTLayer",
    "(base_layer, **kwargs)",
    "which size its blocks have",
    "trainer/adapters/oft.py",
    attributes=("oft_R", "oft_block_size", "in_features"),
)
TABLE.hook(
    "peft:PeftModel.get_base_model",
    "(self)",
    "the model beneath the adapter",
    "trainer/model/build.py",
)

# What an export asks of an adapter
TABLE.hook(
    "peft.tuners.tuners_utils:BaseTunerLayer._move_adapter_to_device_of_base_layer",
    "(self, adapter_name, device=None)",
    "replaced: the base has no storage while an adapter is merged, and the adapter must keep its own",
    "trainer/export/merge.py",
)
TABLE.hook(
    "peft.tuners.tuners_utils:BaseTunerLayer",
    "()",
    "each merges its own weight",
    "trainer/export/merge.py",
    attributes=("merged_adapters", "get_base_layer"),
)
TABLE.hook(
    "peft.utils.other:ModulesToSaveWrapper",
    "(module_to_save, adapter_name, tied_module=None)",
    "layers that are trained whole",
    "trainer/export/merge.py",
    attributes=("modules_to_save",),
)
TABLE.hook(
    "peft.utils.other:TrainableTokensWrapper",
    "(module_to_save, adapter_name, token_indices, tied_adapter=None)",
    "rows of an embedding that are trained",
    "trainer/export/merge.py",
    "trainer/adapters/lora.py",
    attributes=("token_adapter", "original_module"),
)
TABLE.hook(
    "peft:PeftModel._adjust_prompt_learning_kwargs",
    "(self, peft_config, *, kwargs, remove_token_type_ids=True)",
    "position ids are taken out before it warns that it leaves them out",
    "trainer/adapters/prompt.py",
)
TABLE.hook(
    "peft:PeftModel.disable_adapter",
    "(self)",
    "whether its vectors stand before rows just now",
    "trainer/adapters/prompt.py",
    attributes=("_adapters_disabled",),
)
TABLE.hook(
    "peft.utils.other:get_pattern_key",
    "(pattern_keys, key_to_match)",
    "which alpha a layer has",
    "trainer/export/gguf_lora.py",
)
