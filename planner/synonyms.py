"""What other trainers call our settings and options: the one table that proposals are made from.

Names are those of transformers, PEFT, TRL, bitsandbytes, axolotl, LLaMA-Factory, unsloth and QLoRA's own script.
"""

from __future__ import annotations

# Our setting: what it is called elsewhere
_SETTINGS = {
    "rank": "r lora_r lora_rank lora_dim rank_dim",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "lora_target_modules lora_target lora_targets modules targets",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "learning_rate": "lr peak_lr",
    "epochs": "epoch num_epochs num_train_epochs n_epochs train_epochs",
    "micro_batch": "batch_size batch bs micro_batch_size train_batch_size per_device_train_batch_size "
    "device_batch_size",
    "accumulation": "gradient_accumulation_steps gradient_accumulation grad_accumulation grad_accum accumulation_steps",
    "seq_len": "max_seq_length max_seq_len max_length max_len cutoff_len sequence_len sequence_length seq_length "
    "context_length model_max_length block_size",
    "max_steps": "steps num_steps max_train_steps train_steps iters",
    "packing": "sample_packing pack",
    "gradient_checkpointing": "use_gradient_checkpointing gradient_checkpoint grad_checkpointing checkpointing "
    "activation_checkpointing",
    "attention": "attn_implementation attn flash_attention flash_attn",
    "optimizer": "optim",
    "schedule": "lr_scheduler_type lr_scheduler scheduler",
    "warmup_ratio": "warmup",
    "max_grad_norm": "grad_clip gradient_clipping clip_grad_norm max_norm",
    "quant_type": "bnb_4bit_quant_type quantization quantize quantization_type",
    "double_quant": "bnb_4bit_use_double_quant use_double_quant use_bnb_nested_quant double_quantization nested_quant",
    "base_dtype": "dtype torch_dtype precision bnb_4bit_compute_dtype compute_dtype mixed_precision",
    "rope_scaling": "rope_scaling_type rope",
    "group_by_length": "length_grouping group_length",
    "eval_steps": "eval_interval evaluation_steps",
    "save_steps": "save_interval checkpoint_steps",
    "keep_checkpoints": "save_total_limit",
    "num_gpus": "gpus n_gpus num_devices devices nproc_per_node",
    "eval_rows": "val_size val_set_size eval_size max_eval_samples",
    "max_new_tokens": "max_tokens generation_max_length",
    "report_to": "logger log_with tracker",
    "weight_decay": "wd",
    "early_stopping": "patience early_stopping_patience",
    "thinking": "enable_thinking think reasoning",
    "seed": "random_state random_seed data_seed",
}
# One of our command's options, {value} standing for what follows
_OPTIONS = {
    "--data {value}": "dataset datasets dataset_name dataset_path data_path data_file train_file train_data "
    "training_data train_dataset input input_file",
    "--eval-data {value}": "eval_dataset eval_file validation_file validation_data val_data val_file test_data "
    "test_file",
    "--output {value}": "output_dir out out_dir save_dir",
    "--seq-len {value}": _SETTINGS["seq_len"],
    "--vram {value}": "gpu_memory vram_gb max_vram",
    "--map {value}": "mapping columns dataset_text_field text_column",
}
# What a switch, or a switch with this value, comes to
_SWITCHES = {
    "--method qlora": "qlora load_in_4bit load_in_4_bit use_4bit 4bit bits=4 quantization_bit=4 quantization_bits=4",
    "--method qlora --set quant_type=int8": "load_in_8bit load_in_8_bit use_8bit 8bit bits=8 quantization_bit=8 int8",
    "--method lora": "lora use_lora use_peft peft bits=16",
    "--method full": "full full_finetune full_finetuning full_fine_tuning finetuning_type=full",
    "--set base_dtype=bfloat16": "bf16",
    "--set base_dtype=float16": "fp16",
    "--gpu cpu": "cpu no_cuda use_cpu device=cpu",
}
_MODEL = ("model", "model_name", "model_id", "model_name_or_path", "base_model", "pretrained_model", "hf_model")


def _plain(name: str) -> str:
    return name.strip().strip("-").replace("-", "_").casefold()


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


_SETTING_OF, _OPTION_OF, _SWITCH_OF = _by_name(_SETTINGS), _by_name(_OPTIONS), _by_name(_SWITCHES)


def setting_called(name: str) -> str | None:
    """Our setting that others call `name`, written with dashes or underscores; None if nobody does."""
    return _SETTING_OF.get(_plain(name))


def switch_called(name: str, value: str | None = None) -> str | None:
    """What to type for a switch of others, such as load_in_4bit or bits=4; None if nobody has it."""
    plain = _plain(name)
    return _SWITCH_OF.get(f"{plain}={(value or '').casefold()}") or _SWITCH_OF.get(plain)


def option_called(name: str, value: str | None, settings: frozenset[str]) -> str | None:
    """What to type for --name VALUE of another trainer; None if it is not known.

    settings: our own, which are set with --set.
    """
    plain, typed = _plain(name), value or "..."
    if plain in _MODEL:
        return f"{value or 'MODEL'} as an argument, without an option"
    switch = switch_called(plain, value)
    if switch is not None:
        return switch
    if plain in _OPTION_OF:
        return _OPTION_OF[plain].format(value=typed)
    setting = plain if plain in settings else _SETTING_OF.get(plain)
    return None if setting is None else f"--set {setting}={typed if value else _default(setting)}"


def _default(setting: str) -> str:
    switches = ("packing", "gradient_checkpointing", "use_rslora", "use_dora", "double_quant", "group_by_length")
    return "true" if setting in switches else "..."
