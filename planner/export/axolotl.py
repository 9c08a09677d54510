"""For `axolotl train FILE`. Keys as in axolotl 0.19 (utils/schemas), behaviour as in its loaders/model.py."""

from __future__ import annotations

from typing import Any

from autoft.planner.export.base import Config, Exporter, Source, only_if, thought_left_open, whole, yaml_text


def axolotl(source: Source) -> Config:
    job, recipe = source.job, source.recipe
    four_bit = recipe.quant_type in ("nf4", "fp4")
    alpha, rounded = whole(recipe.alpha, "lora_alpha")
    quantization = {
        "bnb_4bit_quant_type": recipe.quant_type,
        "bnb_4bit_use_double_quant": recipe.double_quant,
    }
    adapter = {
        "adapter": "qlora" if four_bit else "lora",
        "lora_r": recipe.rank,
        "lora_alpha": alpha,
        "lora_dropout": recipe.dropout,
        "peft_use_rslora": True if recipe.use_rslora else None,
        "peft_use_dora": True if recipe.use_dora else None,
        "peft_init_lora_weights": None if recipe.init == "default" else recipe.init,
        "loraplus_lr_ratio": None if recipe.lora_plus_ratio == 1 else recipe.lora_plus_ratio,
        "lora_target_linear": True if source.target_modules is None else None,
        "lora_target_modules": source.target_modules,
    }
    values = {
        "base_model": source.model,
        "load_in_4bit": four_bit,
        "load_in_8bit": recipe.quant_type == "int8",
        "bnb_config_kwargs": quantization if four_bit else None,
        **only_if(source.has_adapter, adapter),
        "chat_template": "tokenizer_default" if source.form != "text" else None,
        "chat_template_kwargs": source.switched.variables or None,
        "datasets": [_dataset(source, source.train_file)],
        "test_datasets": [{**_dataset(source, source.test_file), "split": "train"}] if source.heldout else None,
        "val_set_size": 0.0,
        "group_by_length": True if job.group_by_length else None,
        "train_on_inputs": False,
        "output_dir": source.output,
        "sequence_len": recipe.seq_len,
        "excess_length_strategy": "drop",
        "sample_packing": recipe.packing,
        "eval_sample_packing": False if recipe.packing else None,
        "pad_to_sequence_len": recipe.packing,
        "micro_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_epochs": job.epochs,
        "max_steps": job.max_steps,
        "optimizer": source.optimizer("axolotl"),
        "lr_scheduler": job.lr_scheduler,
        "learning_rate": job.learning_rate,
        "warmup_ratio": job.warmup_ratio,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "bf16": source.mixed == "bfloat16",
        "fp16": source.mixed == "float16",
        "float32": True if recipe.base_dtype == "float32" else None,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "activation_offloading": "hidden_states" if recipe.offload_checkpoints else None,
        "attn_implementation": recipe.attention,
        "seed": job.seed,
        "logging_steps": 1,
        "saves_per_epoch": 1,
    }
    return Config(
        yaml_text(values),
        "axolotl train {file}"
        + (f" --launcher torchrun -- --nproc_per_node={n}" if (n := source.num_gpus) > 1 else ""),
        (*rounded, *_differs(source)),
        frozenset(
            {
                "double_quant",
                "offload_checkpoints",
                "use_rslora",
                "use_dora",
                "init",
                "lora_plus_ratio",
                "group_by_length",
            }
        ),
    )


def _dataset(source: Source, path: str) -> dict[str, Any]:
    if source.form == "text":
        return {"path": path, "ds_type": "json", "type": "completion", "field": "text"}
    return {
        "path": path,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def _differs(source: Source) -> list[str]:
    recipe = source.recipe
    notes = []
    if recipe.loss != "logits":
        notes.append("all logits are built, 12 to 14 bytes x vocabulary a token, unless a plugin fuses the loss")
    if recipe.quant_type is not None and not recipe.kbit_upcast:
        notes.append("norms and embeddings of a quantized base go to float32")
    if recipe.weights_dtype != recipe.base_dtype:
        notes.append(f"the weights are {recipe.base_dtype}: autoft trains them in {recipe.weights_dtype}")
    if source.job.device == "cpu":
        notes.append("axolotl has no key for the CPU: it needs a GPU")
    return [*notes, *thought_left_open(source)]


EXPORTER = Exporter(suffix=".yaml", configure=axolotl)
