"""For `trl sft --config FILE`. Keys and behaviour as in trl 1.16 (scripts/sft.py, trainer/sft_trainer.py)."""

from __future__ import annotations

from autoft.planner.export.base import Config, Exporter, Source, only_if, thought_left_open, whole, yaml_text


def trl(source: Source) -> Config:
    job, recipe = source.job, source.recipe
    four_bit = recipe.quant_type in ("nf4", "fp4")
    alpha, rounded = whole(recipe.alpha, "lora_alpha")
    adapter = {
        "lora_r": recipe.rank,
        "lora_alpha": alpha,
        "lora_dropout": recipe.dropout,
        "use_rslora": recipe.use_rslora,
        "use_dora": recipe.use_dora,
        "lora_target_modules": source.target_modules or ["all-linear"],
    }
    objective = source.objective("trl")
    values = {
        "model_name_or_path": source.model,
        "dtype": recipe.weights_dtype,
        "attn_implementation": recipe.attention,
        "load_in_4bit": True if four_bit else None,
        "bnb_4bit_quant_type": recipe.quant_type if four_bit else None,
        "use_bnb_nested_quant": recipe.double_quant if four_bit else None,
        "load_in_8bit": True if recipe.quant_type == "int8" else None,
        "use_peft": source.has_adapter,
        **only_if(source.has_adapter, adapter),
        "dataset_name": str(source.data),
        "dataset_train_split": "train",
        "dataset_test_split": "test" if source.heldout else None,
        "eval_strategy": "epoch" if source.heldout else "no",
        "per_device_eval_batch_size": recipe.micro_batch if source.heldout else None,
        "output_dir": source.output,
        "max_length": recipe.seq_len,
        "packing": recipe.packing,
        "packing_strategy": "bfd" if recipe.packing else None,
        "eval_packing": False if recipe.packing else None,
        "pad_to_multiple_of": recipe.pad_multiple,
        **objective,
        "assistant_only_loss": source.form == "messages",
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_train_epochs": job.epochs,
        "max_steps": job.max_steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": job.lr_scheduler,
        "warmup_steps": job.warmup_ratio if source.warmup_steps is None else source.warmup_steps,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "optim": source.optimizer("trl"),
        "bf16": source.mixed == "bfloat16",
        "fp16": source.mixed == "float16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "train_sampling_strategy": "group_by_length" if job.group_by_length else "random",
        "seed": job.seed,
        "data_seed": job.seed,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
    }
    keys = frozenset(
        {"double_quant", "use_rslora", "use_dora", "group_by_length", *(("objective",) if objective else ())}
    )
    command = "trl sft --config {file}" + (f" --num_processes {n}" if (n := source.num_gpus) > 1 else "")
    variables = source.switched.variables
    columns = only_if(bool(variables), {"chat_template_kwargs": variables})
    return Config(yaml_text(values), command, (*rounded, *_differs(source)), keys, columns=columns)


def _differs(source: Source) -> list[str]:
    recipe = source.recipe
    notes = [f"rows longer than {recipe.seq_len} tokens are cut at their end: autoft leaves them out"]
    if source.form == "messages":
        notes.append(
            "several answers in a row are masked by marks in the chat template, which TRL has for the families it "
            "knows and refuses else"
        )
    if recipe.quant_type is not None:
        notes.append("the adapters of a quantized base are cast to bfloat16: autoft keeps them in float32")
    if recipe.loss != "fused":
        notes.append(f"the loss is TRL's fused one and not autoft's {recipe.loss!r}")
    if recipe.packing and recipe.attention != "flash_attention_2":
        notes.append("packed rows are flattened, and only FlashAttention keeps the examples in them apart cheaply")
    return [*notes, *thought_left_open(source)]


EXPORTER = Exporter(suffix=".yaml", configure=trl, masks_prompt=True)
