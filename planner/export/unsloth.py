"""For `python FILE` where unsloth is installed. Calls as in unsloth 2026.10.9 (models/loader.py, models/llama.py)."""

from __future__ import annotations

import json
from typing import Any

from autoft.planner.export.base import Config, Exporter, Source
from autoft.trainer.data.thinking import Switched

# What unsloth's own default is, written out: it has no word for all of them
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def unsloth(source: Source) -> Config:
    job, recipe = source.job, source.recipe
    loading = {
        "model_name": source.model,
        "max_seq_length": recipe.seq_len,
        "dtype": None if recipe.base_dtype == "float32" else recipe.base_dtype,
        "load_in_4bit": recipe.quant_type in ("nf4", "fp4"),
        "load_in_8bit": recipe.quant_type == "int8",
        "load_in_16bit": recipe.quant_type is None and source.has_adapter,
        "full_finetuning": not source.has_adapter,
    }
    adapter = {
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "use_rslora": recipe.use_rslora,
        "target_modules": source.target_modules or LINEAR,
        "use_gradient_checkpointing": "unsloth" if recipe.offload_checkpoints else recipe.gradient_checkpointing,
        "random_state": job.seed,
    }
    arguments = {
        "output_dir": source.output,
        "max_length": recipe.seq_len,
        "packing": recipe.packing,
        "assistant_only_loss": source.form == "messages",
        "per_device_train_batch_size": recipe.micro_batch,
        "per_device_eval_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_train_epochs": job.epochs,
        "max_steps": job.max_steps or -1,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": job.lr_scheduler,
        "warmup_steps": source.warmup_steps or 0,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "optim": source.optimizer("unsloth"),
        "bf16": source.mixed == "bfloat16",
        "fp16": source.mixed == "float16",
        "eval_strategy": "epoch" if source.heldout else "no",
        "seed": job.seed,
        "logging_steps": 1,
        "report_to": "none",
    }
    files = {"train": source.train_file, **({"test": source.test_file} if source.heldout else {})}
    template = _template(source.switched)
    adapted = f"model = FastLanguageModel.get_peft_model(\n    model,{_keywords(adapter)})\n"
    text = f"""
from unsloth import FastLanguageModel  # first: it changes what the others do
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastLanguageModel.from_pretrained({_keywords(loading)})
{template}{adapted if source.has_adapter else ""}data = load_dataset("json", data_files={_literal(files)})
arguments = SFTConfig({_keywords(arguments)})
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=data["train"],
    eval_dataset={'data["test"]' if source.heldout else None},
    args=arguments,
)
trainer.train()
model.save_pretrained({_literal(source.output)})
tokenizer.save_pretrained({_literal(source.output)})
"""
    keys = frozenset({"double_quant", "offload_checkpoints", "use_rslora"})
    command = f"torchrun --nproc_per_node {n} {{file}}" if (n := source.num_gpus) > 1 else "python {file}"
    return Config(text.lstrip("\n"), command, tuple(_differs(source)), keys)


def _template(switched: Switched) -> str:
    """As autoft's own runs change the tokenizer's template."""
    if not switched.before and not switched.behind:
        return ""
    own = 'tokenizer.chat_template.removesuffix("\\n")' if switched.behind else "tokenizer.chat_template"
    whole = f"{_literal(switched.before)} + {own} + {_literal(switched.behind)}"
    return f"tokenizer.chat_template = {whole}  # as the data need it\n"


def _keywords(values: dict[str, Any]) -> str:
    return "".join(f"\n    {key}={_literal(value)}," for key, value in values.items()) + "\n"


def _literal(value: Any) -> str:
    """As Python source; text in double quotes, escaped as JSON does it."""
    return json.dumps(value) if isinstance(value, (str, list, dict)) else repr(value)


def _differs(source: Source) -> list[str]:
    recipe = source.recipe
    notes = [f"rows longer than {recipe.seq_len} tokens are cut: autoft leaves them out"]
    if source.has_adapter and source.target_modules is None:
        notes.append("target_modules names the usual linear layers: of a model with others it misses some")
    if recipe.quant_type in ("nf4", "fp4"):
        notes.append("unsloth may take its own 4-bit copy of the model, always NF4 with double quantization")
    if recipe.attention != "sdpa":
        notes.append(f"unsloth chooses the attention itself and not {recipe.attention}")
    notes.append("kernels, loss and checkpointing are unsloth's own")
    if recipe.base_dtype == "float32":
        notes.append("base_dtype float32: unsloth chooses a 16-bit one")
    if source.job.device == "cpu":
        notes.append("unsloth needs a GPU")
    return notes


EXPORTER = Exporter(suffix=".py", configure=unsloth, masks_prompt=True)
