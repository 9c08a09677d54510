"""For `llamafactory-cli train FILE` and dataset_info.json. Keys as in llamafactory 0.9.5 (hparams, data/parser.py)."""

from __future__ import annotations

import json
from typing import Any

from autoft.planner.export.base import Config, Exporter, Source, only_if, thought_left_open, whole, yaml_text

ATTENTION = {"sdpa": "sdpa", "flash_attention_2": "fa2", "eager": "disabled"}
PISSA_ROUNDS = {"pissa": -1, "pissa_niter_4": 4, "pissa_niter_16": 16}  # -1: the exact decomposition
NAMES = {"train": "autoft_train", "test": "autoft_test"}


def llamafactory(source: Source) -> Config:
    job, recipe = source.job, source.recipe
    four_bit = recipe.quant_type in ("nf4", "fp4")
    alpha, rounded = whole(recipe.alpha, "lora_alpha")
    text = source.form == "text"
    pissa = {"pissa_init": True, "pissa_iter": PISSA_ROUNDS.get(recipe.init), "pissa_convert": True}
    adapter = {
        "lora_rank": recipe.rank,
        "lora_alpha": alpha,
        "lora_dropout": recipe.dropout,
        "use_rslora": recipe.use_rslora,
        "use_dora": recipe.use_dora,
        **only_if(recipe.init in PISSA_ROUNDS, pissa),
        "loraplus_lr_ratio": None if recipe.lora_plus_ratio == 1 else recipe.lora_plus_ratio,
        "lora_target": ",".join(source.target_modules or ["all"]),
    }
    objective = {} if text else source.objective("llamafactory")  # its pre-training has the usual loss alone
    known = (*(("objective",) if objective else ()), *(("init",) if recipe.init in PISSA_ROUNDS else ()))
    values = {
        "model_name_or_path": source.model,
        "trust_remote_code": False,
        "flash_attn": ATTENTION[recipe.attention],
        "stage": "pt" if text else "sft",
        "do_train": True,
        "finetuning_type": "lora" if source.has_adapter else "full",
        **only_if(source.has_adapter, adapter),
        "pure_bf16": True if not source.has_adapter and recipe.weights_dtype == "bfloat16" else None,
        "quantization_method": "bnb" if recipe.quant_type else None,
        "quantization_bit": 4 if four_bit else 8 if recipe.quant_type else None,
        "quantization_type": recipe.quant_type if four_bit else None,
        "double_quantization": recipe.double_quant if four_bit else None,
        "dataset_dir": str(source.data),
        "dataset": NAMES["train"],
        "eval_dataset": NAMES["test"] if source.heldout else None,
        "eval_strategy": "epoch" if source.heldout else "no",
        "per_device_eval_batch_size": recipe.micro_batch if source.heldout else None,
        "enable_thinking": source.switched.variables.get("enable_thinking"),
        "cutoff_len": recipe.seq_len,
        "packing": recipe.packing,
        "neat_packing": True if recipe.packing and not text else None,
        **objective,
        "output_dir": source.output,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_train_epochs": job.epochs,
        "max_steps": job.max_steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": job.lr_scheduler,
        "warmup_steps": source.warmup_steps,
        "warmup_ratio": job.warmup_ratio if source.warmup_steps is None else None,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "optim": source.optimizer("llamafactory"),
        "bf16": source.mixed == "bfloat16",
        "fp16": source.mixed == "float16",
        "use_cpu": job.device == "cpu",
        "disable_gradient_checkpointing": not recipe.gradient_checkpointing,
        "upcast_layernorm": recipe.kbit_upcast,
        "seed": job.seed,
        "data_seed": job.seed,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
    }
    return Config(
        yaml_text(values),
        (f"FORCE_TORCHRUN=1 NPROC_PER_NODE={n} " if (n := source.num_gpus) > 1 else "")
        + "llamafactory-cli train {file}",
        (*rounded, *_differs(source)),
        frozenset({"double_quant", "kbit_upcast", "use_rslora", "use_dora", "lora_plus_ratio", *known}),
        {"dataset_info.json": json.dumps(_datasets(source), indent=2) + "\n"},
    )


def _datasets(source: Source) -> dict[str, Any]:
    splits = ("train", "test") if source.heldout else ("train",)
    if source.form == "text":
        return {NAMES[s]: {"file_name": f"{s}.jsonl", "columns": {"prompt": "text"}} for s in splits}
    shape = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "system_tag": "system",
        },
    }
    return {NAMES[split]: {"file_name": f"{split}.jsonl", **shape} for split in splits}


def _differs(source: Source) -> list[str]:
    recipe = source.recipe
    notes = [f"rows longer than {recipe.seq_len} tokens are cut: autoft leaves them out"]
    if source.form != "text":
        notes.append(
            "no template is named: the tokenizer's own chat template is parsed for where an answer begins; "
            "name LLaMA-Factory's for the family where that goes wrong"
        )
        notes += _of_thinking(source)
        notes.append("a conversation in which user and assistant do not alternate is skipped")
    if recipe.loss != "logits":
        notes.append("all logits are built, 12 to 14 bytes x vocabulary a token")
    if source.has_adapter and source.mixed is None and recipe.base_dtype != "float32":
        notes.append("without bf16 or fp16 the base is loaded in float32")
    return notes


def _of_thinking(source: Source) -> list[str]:
    switched = source.switched
    if "enable_thinking" in switched.variables:
        return [
            f"the data set {switched.value} in the chat template: LLaMA-Factory heeds enable_thinking only where "
            "template names one of its own that reasons"
        ]
    if switched.value is not None:
        return [f"the data set {switched.value} in the chat template, which has no key here"]
    return thought_left_open(source)


EXPORTER = Exporter(suffix=".yaml", configure=llamafactory)
