"""Hooks into transformers."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("transformers")

# Replaced or called during a rehearsal
MAYBE_AUTOCAST = TABLE.hook(
    "transformers.utils.generic:maybe_autocast",
    "(device_type, dtype=None, enabled=True, cache_enabled=None)",
    "autocast knows no meta device: models ask for it by this, each by its own name for it",
    "planner/kernels/dispatch.py",
)
FLASH_ATTENTION = TABLE.hook(
    "transformers.integrations.flash_attention:_flash_attention_forward",
    "(query_states, key_states, value_states, attention_mask, query_length, is_causal, dropout=0.0, position_ids=None, "
    "softmax_scale=None, sliding_window=None, use_top_left_mask=False, softcap=None, deterministic=None, "
    "cu_seq_lens_q=None, cu_seq_lens_k=None, max_length_q=None, max_length_k=None, target_dtype=None, "
    "attn_implementation=None, block_table=None, k_cache=None, v_cache=None, **kwargs)",
    "the package flash-attn takes no meta tensors",
    "planner/kernels/dispatch.py",
    "planner/rehearsal/older.py",
)
FLASH_DTYPES = TABLE.hook(
    "transformers.modeling_flash_attention_utils:fa_peft_integration_check",
    "(q, k, v, target_dtype=None)",
    "float32 inputs of flash-attn are cast by it",
    "planner/kernels/attention.py",
)
GROUPED_HEADS = TABLE.hook(
    "transformers.integrations.sdpa_attention:use_gqa_in_sdpa",
    "(attention_mask, key, value)",
    "older versions repeated grouped heads",
    "planner/rehearsal/older.py",
)
GROUPED_MM = TABLE.hook(
    "transformers.integrations.moe:_can_use_grouped_mm",
    "(input, weight, offs)",
    "it asks the device of the tensors, which is meta",
    "planner/kernels/dispatch.py",
)
TABLE.hook(
    "torch.ops:transformers.grouped_mm_fallback",
    "(input, weight, offs)",
    "its arithmetic, where torch has no grouped product for the device",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:transformers.grouped_mm_fallback_backward",
    "(input, weight, offs, grad_output)",
    "as grouped_mm_fallback",
    "planner/tracing/work.py",
)
PACKED_SEQUENCES = TABLE.hook(
    "transformers.masking_utils:find_packed_sequence_indices",
    "(position_ids)",
    "it asks positions for their values, which meta tensors lack; whether it is asked shows whether a model can pack",
    "planner/rehearsal/step.py",
    "trainer/model/build.py",
)
TABLE.hook(
    "transformers.modeling_rope_utils:dynamic_rope_update",
    "(rope_forward)",
    "frequencies that follow the positions' values are settled before a rehearsal",
    "planner/rehearsal/step.py",
    attributes=("rope_type",),
)
KERNEL_PACKAGES = TABLE.hook(
    "transformers.integrations.hub_kernels:_PACKAGE_TO_DISTRIBUTION",
    "",
    "what to install for a layer's kernels",
    "planner/tracing/reference_code.py",
)
TABLE.hook(
    "transformers.integrations.hub_kernels:use_kernel_func_from_hub_with_fallback",
    "(func_name, package, internal_path=None)",
    "a function with a kernel is known by the variables of its wrapper, and keeps its reference in __wrapped__",
    "planner/tracing/reference_code.py",
    attributes=("is_new_implementation", "package"),
)

# How a checkpoint becomes a model
LOAD = TABLE.hook(
    "transformers.core_model_loading:convert_and_load_state_dict_in_model",
    "(model, state_dict, load_config, disk_offload_index=None)",
    "loading is rehearsed by its own code",
    "planner/rehearsal/assembly.py",
)
SET_WEIGHT = TABLE.hook(
    "transformers.core_model_loading:set_param_for_module",
    "(model, target_name, param_value, loading_info, hf_quantizer)",
    "replaced: which weight is set when",
    "planner/rehearsal/assembly.py",
)
REVERT = TABLE.hook(
    "transformers.core_model_loading:revert_weight_conversion",
    "(model, state_dict)",
    "the tensors of a checkpoint, from those of the model",
    "planner/rehearsal/assembly.py",
)
CONVERSIONS = TABLE.hook(
    "transformers.conversion_mapping:get_model_conversion_mapping",
    "(model, key_mapping=None, hf_quantizer=None, add_legacy=True)",
    "which weights a checkpoint holds in other pieces",
    "planner/rehearsal/assembly.py",
)
LOAD_OPTIONS = TABLE.hook(
    "transformers.modeling_utils:LoadStateDictConfig",
    "(pretrained_model_name_or_path=None, download_kwargs=..., use_safetensors=None, ignore_mismatched_sizes=False, "
    "sharded_metadata=None, device_map=None, disk_offload_folder=None, offload_buffers=False, dtype=None, "
    "dtype_plan=..., hf_quantizer=None, device_mesh=None, weights_only=True, weight_mapping=None, disable_mmap=None)",
    "settings of convert_and_load_state_dict_in_model",
    "planner/rehearsal/assembly.py",
)
TABLE.hook(
    "transformers:PreTrainedModel",
    "(config, *inputs, **kwargs)",
    "what a model takes and holds, where no public method says so",
    "trainer/model/build.py",
    "trainer/evaluation/generate.py",
    "trainer/checks/reference_loss.py",
    "planner/rehearsal/assembly.py",
    attributes=(
        "_compatible_flash_implementations",
        "_supports_flash_attn",
        "_supports_sdpa",
        "_is_stateful",
        "all_tied_weights_keys",
        "base_model_prefix",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
    ),
)
TABLE.hook(
    "transformers:PreTrainedModel._check_and_adjust_attn_implementation",
    "(self, attn_implementation, is_init_check=False, allow_all_kernels=False)",
    "replaced: a model without storage takes FlashAttention-2 where its package is not installed",
    "trainer/model/build.py",
)
TABLE.hook(
    "transformers:PreTrainedConfig._attn_implementation",
    "",
    "the reference loss takes no FlashAttention, which refuses float32",
    "trainer/checks/reference_loss.py",
)
TABLE.hook(
    "transformers.integrations.heterogeneity.configuration_utils:_apply_heterogeneous_config",
    "(config, per_layer_config)",
    "figures that differ from layer to layer",
    "planner/estimator/model_shape.py",
    attributes=("_heterogeneity_spec",),
)
TABLE.hook(
    "transformers.integrations.heterogeneity.configuration_utils:_HeterogeneitySpec",
    "(per_layer_overrides, per_layer_attributes, explicit_per_layer_attributes)",
    "as _apply_heterogeneous_config",
    "planner/estimator/model_shape.py",
    attributes=("per_layer_attributes",),
)
TABLE.hook(
    "transformers.modeling_layers:GradientCheckpointingLayer",
    "(*args, **kwargs)",
    "every second layer can be checkpointed; its checkpoints can be moved to the host",
    "trainer/model/build.py",
    "trainer/model/offload.py",
    attributes=("gradient_checkpointing", "_gradient_checkpointing_func"),
)
TABLE.hook(
    "transformers:PreTrainedModel.activation_checkpointing_enable",
    "(self, activation_checkpointing_kwargs=None, every_n_layers=1, offload=False)",
    "every n-th layer is checkpointed by it",
    "trainer/model/build.py",
    "planner/rehearsal/older.py",
)
TABLE.hook(
    "transformers.modeling_rope_utils:ROPE_INIT_FUNCTIONS",
    "",
    "whether transformers can scale a model's RoPE",
    "trainer/model/rope.py",
)
TABLE.hook(
    "transformers:PreTrainedConfig.nested_rope_parameter_keys",
    "(self, rope_parameters)",
    "whether layers have several kinds of RoPE",
    "trainer/model/rope.py",
)
TABLE.hook(
    "transformers.pytorch_utils:Conv1D",
    "(nf, nx)",
    "linear layers of GPT-2, whose weights are transposed",
    "trainer/model/build.py",
    "planner/estimator/model_shape.py",
)
TABLE.hook(
    "transformers.models.auto:modeling_auto",
    "",
    "which class a configuration is for",
    "trainer/sources/suitable.py",
    attributes=("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
)
TABLE.hook(
    "transformers.models.auto.modeling_auto:MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "",
    "which models see the tokens to come",
    "trainer/sources/suitable.py",
)

# Quantization
TABLE.hook(
    "transformers.integrations.bitsandbytes:replace_with_bnb_linear",
    "(model, modules_to_not_convert=None, quantization_config=None, pre_quantized=False)",
    "a model without storage gets the layers that loading would give it",
    "trainer/model/build.py",
)
TABLE.hook(
    "transformers.quantizers.base:get_keys_to_not_convert",
    "(model)",
    "layers that stay in 16 bits",
    "trainer/model/build.py",
)
TABLE.hook(
    "transformers.quantizers.base:_assign_is_quantized",
    "(model)",
    "the mark of a quantized model, set here as loading sets it",
    "trainer/model/build.py",
    attributes=("_is_quantized",),
)
TABLE.hook(
    "transformers.quantizers:register_quantizer",
    "(name)",
    "experts are packed while they are loaded, by a quantizer of ours",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer.param_needs_quantization",
    "(self, model, param_name, **kwargs)",
    "overridden for experts",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer.get_quantize_ops",
    "(self)",
    "overridden for experts",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer._process_model_before_weight_loading",
    "(self, model, device_map, **kwargs)",
    "overridden: a model without experts is refused",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer._process_model_after_weight_loading",
    "(self, model, **kwargs)",
    "overridden: the saved configuration has the library's own name for the method",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.integrations.bitsandbytes:Bnb4bitQuantize.convert",
    "(self, input_dict, full_layer_name=None, model=None, **kwargs)",
    "overridden for experts",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.core_model_loading:ConversionOps",
    "()",
    "what get_quantize_ops returns",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.quantizers.quantizers_utils:get_module_from_name",
    "(module, tensor_name)",
    "the module of a weight that is loaded",
    "trainer/model/quantizer.py",
)
TABLE.hook(
    "transformers.utils.quantization_config:QuantizationMethod.BITS_AND_BYTES",
    "",
    "the library's own name for the method",
    "trainer/model/quantizer.py",
)

# The Trainer: methods that are called or overridden, and switches that are set
TABLE.hook(
    "transformers:Trainer",
    "(model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None, "
    "model_init=None, compute_loss_func=None, compute_metrics=None, callbacks=None, optimizers=(None, None), "
    "optimizer_cls_and_kwargs=None, preprocess_logits_for_metrics=None)",
    "the loss divides by the trained tokens of the whole step, which the Trainer counts",
    "trainer/loop/engine.py",
    attributes=(
        "loss_is_scaled_for_ga",
        "_loss_shifts_labels",
        "model_accepts_loss_kwargs",
        "current_gradient_accumulation_steps",
    ),
)
TABLE.hook(
    "transformers:Trainer.compute_loss",
    "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
    "overridden: our loss",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer.training_step",
    "(self, model, inputs, num_items_in_batch=None)",
    "overridden: a micro-batch that runs out of memory is done again in smaller ones",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer.get_batch_samples",
    "(self, epoch_iterator, num_batches, device)",
    "overridden: trained tokens of all processes are counted",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._clip_grad_norm",
    "(self, model)",
    "overridden: gradients of all processes are summed before",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._get_grad_norm",
    "(self, model, grad_norm=None)",
    "overridden: the last moment before the update, where a loss that is not finite stops the run",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._get_train_sampler",
    "(self, train_dataset=None)",
    "overridden: the order of rows follows from seed and epoch alone",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._prepare_inputs",
    "(self, inputs)",
    "called: a batch goes to the device as in training",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._maybe_log_save_evaluate",
    "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None)",
    "overridden: evaluation comes before saving",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer.create_scheduler",
    "(self, num_training_steps, optimizer=None)",
    "overridden: our count of steps to warm up",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._load_from_checkpoint",
    "(self, resume_from_checkpoint, model=None)",
    "overridden: our checkpoints",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._load_optimizer_and_scheduler",
    "(self, checkpoint)",
    "overridden: our checkpoints",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._load_scaler",
    "(self, checkpoint)",
    "overridden: our checkpoints",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers:Trainer._load_rng_state",
    "(self, checkpoint)",
    "overridden: our checkpoints",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers.trainer_callback:PrinterCallback",
    "()",
    "removed: it prints every step",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "transformers.trainer_pt_utils:get_length_grouped_indices",
    "(lengths, batch_size, mega_batch_mult=None, generator=None)",
    "rows of like length side by side",
    "trainer/loop/rows.py",
)
TABLE.hook(
    "transformers.integrations:integration_utils",
    "",
    "callbacks of services that follow a run",
    "trainer/loop/trackers.py",
    attributes=("TensorBoardCallback", "WandbCallback", "MLflowCallback"),
)
TABLE.hook(
    "transformers.quantizers.base:HfQuantizer.preprocess_model",
    "(self, model, dtype=None, **kwargs)",
    "a converted GGUF file must not be saved as a quantized model: what marks it is deleted",
    "trainer/sources/gguf.py",
    attributes=("is_quantized", "quantization_method"),
)
TABLE.hook(
    "transformers.optimization:Adafactor",
    "(params, lr=None, eps=(1e-30, 0.001), clip_threshold=1.0, decay_rate=-0.8, beta1=None, weight_decay=0.0, "
    "scale_parameter=True, relative_step=True, warmup_init=False)",
    "its float32 state must stay float32 when it is loaded",
    "trainer/optimizers/factored.py",
)
