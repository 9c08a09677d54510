"""TRL's SFTTrainer, bound to our own model, optimizer and loss. Takes seconds to import: only when training begins."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from autoft.errors import TrainingError
from autoft.trainer.build import without_adapter
from autoft.trainer.data.pack import collator, pack, packed_row
from autoft.trainer.data.tokens import Example
from autoft.trainer.events import Listener, Step
from autoft.trainer.job import Job
from autoft.trainer.loss import IGNORED, compute_loss
from autoft.trainer.memory import PeakMemory
from autoft.trainer.optim import build_optimizer
from autoft.trainer.recipe import Recipe


class Engine(SFTTrainer):  # type: ignore[misc]
    """Trains `model`, built by `build_model`, on `examples`."""

    # Our loss divides by the trained tokens of the whole optimizer step
    loss_is_scaled_for_ga = True
    _loss_shifts_labels = True

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        job: Job,
        examples: list[Example],
        work_dir: Path,
        callback: TrainerCallback,
    ) -> None:
        self.recipe = job.recipe
        self.tokens: Any = 0
        self.trained_tokens: Any = 0
        base = without_adapter(model)
        forward = base.forward
        weights = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
        super().__init__(
            model=model,
            args=_arguments(job, work_dir),
            processing_class=tokenizer,
            data_collator=collator(job.recipe) if job.recipe.packing else None,
            train_dataset=_dataset(examples, job.recipe, tokenizer.pad_token_id),
            optimizers=(
                build_optimizer(
                    list(weights), job.recipe, learning_rate=job.learning_rate, weight_decay=job.weight_decay
                ),
                None,
            ),
            callbacks=[callback],
        )
        # TRL puts its own fused head over ours, with metrics that nobody reads, and casts the adapters of a quantized
        # base to bfloat16, which float16 training does not survive. The Recipe decides both: put back what we built.
        base.forward = forward
        for parameter, data in weights.items():
            parameter.data = data
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert not return_outputs
        # summed on the device: reading a number here would stall a GPU every micro-batch
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        self.trained_tokens = self.trained_tokens + (inputs["labels"][:, 1:] != IGNORED).sum()
        return compute_loss(model, inputs, self.recipe, num_trained_tokens=num_items_in_batch)

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""


def _dataset(examples: list[Example], recipe: Recipe, pad_id: int) -> Dataset:
    if not recipe.packing:
        columns = {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
        return Dataset.from_dict({name: [np.asarray(row, np.int32) for row in rows] for name, rows in columns.items()})
    rows = pack([len(e.input_ids) for e in examples], recipe.seq_len)
    return Dataset.from_list([packed_row([examples[i] for i in row], recipe.seq_len, pad_id) for row in rows])


def _arguments(job: Job, work_dir: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(work_dir),
        per_device_train_batch_size=job.recipe.micro_batch,
        gradient_accumulation_steps=job.accumulation,
        num_train_epochs=job.epochs,
        max_steps=job.max_steps or -1,
        learning_rate=job.learning_rate,
        lr_scheduler_type=job.schedule,
        warmup_steps=job.warmup_ratio,
        max_grad_norm=job.max_grad_norm,
        weight_decay=job.weight_decay,
        seed=job.seed,
        data_seed=job.seed,
        train_sampling_strategy="group_by_length" if job.group_by_length else "random",
        use_cpu=job.device == "cpu",
        # The loss does autocast itself; float16 needs the trainer's gradient scaler besides
        bf16=False,
        fp16=job.recipe.autocast and job.recipe.base_dtype == "float16",
        # build_model has switched it on where the Recipe says so
        activation_checkpointing=False,
        max_length=None,
        # TRL knows of no positions among the columns of a row that is not packed by itself
        remove_unused_columns=not job.recipe.packing,
        pad_to_multiple_of=job.recipe.pad_multiple,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job.device == "cuda",
    )


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells the listener of every optimizer step, keeps the losses, stops a run whose loss is no number."""

    def __init__(self, listener: Listener, memory: PeakMemory, tokens_per_step: float) -> None:
        self.listener = listener
        self.memory = memory
        self.tokens_per_step = tokens_per_step
        self.losses: list[tuple[int, float]] = []
        self.step_times_s: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.memory.device == "cuda":
            torch.cuda.synchronize()
        self.step_times_s.append(time.perf_counter() - self._began)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of step {state.global_step} is {loss}: training has diverged, nothing was saved",
                fix="a lower learning rate (--set learning_rate=...), or a look at the data",
            )
        self.losses.append((state.global_step, loss))
        recent_s = sum(self.step_times_s[-20:]) / len(self.step_times_s[-20:])
        self.listener(
            Step(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=loss,
                learning_rate=float(logs.get("learning_rate", 0.0)),
                grad_norm=float(logs["grad_norm"]),
                tokens=round(state.global_step * self.tokens_per_step),
                tokens_per_s=self.tokens_per_step / recent_s,
                trained_tokens_per_s=self.tokens_per_step / recent_s,
                padded_tokens_per_s=self.tokens_per_step / recent_s,
                seconds_left_lower=(state.max_steps - state.global_step) * recent_s,
                seconds_left_upper=(state.max_steps - state.global_step) * recent_s,
                memory_bytes=self.memory.now_bytes(),
                peak_bytes=self.memory.peak_bytes,
                micro_batch=args.per_device_train_batch_size,
                next_save_s=0.0,
            )
        )
