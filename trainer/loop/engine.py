"""TRL's SFTTrainer, bound to our own model, optimizer and loss. Takes seconds to import: only when training begins.

What it cannot promise is done here, in the narrowest hook there is; docs/decisions/0014-trainer.md says why for each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from autoft.errors import OptionError, OutOfMemory, TrainingError, first_line
from autoft.trainer.adapters import kind_of
from autoft.trainer.data.tokens import Example
from autoft.trainer.distributed.group import Group
from autoft.trainer.events import Listener, Recovered
from autoft.trainer.job import Job
from autoft.trainer.loop.fallback import Fallbacks
from autoft.trainer.loop.rows import ROWS, Sampler, batch_maker, dataset, split
from autoft.trainer.model.build import without_adapter
from autoft.trainer.objectives import objective_of
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.objectives.packing import pack
from autoft.trainer.optimizers.optim import build_optimizer, faster_weights, forget_steps
from autoft.trainer.runtime.peak_memory import free_memory, is_out_of_memory
from autoft.trainer.runtime.randomness import random_state, set_random_state
from autoft.trainer.runtime.signals import StopRequest
from autoft.trainer.storage.checkpoint import Checkpoint
from autoft.trainer.storage.checkpoint_manager import Keeper
from autoft.trainer.storage.progress import Progress

MOST_OVERFLOWS = 25  # steps in a row: float16's loss scale has then fallen from 65536 to 2e-3


class NonFinite(TrainingError):  # noqa: N818
    """examples: the ones that alone give a loss or gradient that is no number; all of the step if none does."""

    def __init__(self, what: str, *, fix: str, step: int, examples: list[int]) -> None:
        super().__init__(what, fix=fix)
        self.step = step
        self.examples = examples


class Engine(SFTTrainer):  # type: ignore[misc]
    """Trains `model`, built by `build_model`, on `examples`.

    keeper writes the checkpoints. evaluate: called after every job.eval_steps steps with how many were done; it says
    whether to stop early. watch: a callback that tells of every step; trackers: more of them.
    group: the processes that train together. The first of them keeps and evaluates; the others have no keeper.
    """

    # Our loss divides by the trained tokens of the whole optimizer step
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        job: Job,
        examples: Sequence[Example],
        work_dir: Path,
        keeper: Keeper | None,
        progress: Progress,
        watch: TrainerCallback,
        stop: StopRequest,
        listener: Listener,
        evaluate: Callable[[int], bool] | None = None,
        trackers: Sequence[Any] = (),
        group: Group | None = None,
    ) -> None:
        self.job = job
        self.recipe = job.recipe
        self.keeper = keeper
        self.progress = progress
        self.stop = stop
        self.listener = listener
        self.evaluate_after = evaluate
        self.group = group or Group()
        self.tokens = [0, 0, 0]  # of the step: all but padding, trained, padding too; numbers or tensors on the device
        self.step_loss = math.nan  # of the last step
        self.after_step: dict[str, Any] = random_state()
        self._inputs: list[dict[str, Any]] = []  # of the step so far
        self._random: dict[str, Any] = {}
        self._loss: Any = 0.0
        self._overflows = 0
        self._exhausted = ""
        self._evaluated = 0
        self._from: dict[str, Any] | None = None
        lengths = [len(example.input_ids) for example in examples]
        self.fallbacks = Fallbacks(model, job.recipe, job.device, max(lengths))
        self._examples = (
            pack(lengths, self.recipe.seq_len) if self.recipe.packing else [[at] for at in range(len(lengths))]
        )
        self._lengths = [sum(lengths[at] for at in row) for row in self._examples]
        base = without_adapter(model)
        forward, text_config = base.forward, base.config.get_text_config()
        balance = getattr(text_config, "router_aux_loss_coef", None)
        weights = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
        super().__init__(
            model=model,
            args=_arguments(job, work_dir),
            processing_class=tokenizer,
            data_collator=batch_maker(job.recipe, tokenizer.pad_token_id),
            train_dataset=dataset(
                examples, self._examples, job.recipe, tokenizer.pad_token_id, filler=self.group.size > 1
            ),
            optimizers=(
                build_optimizer(
                    list(weights),
                    job.recipe,
                    learning_rate=job.learning_rate,
                    weight_decay=job.weight_decay,
                    faster=faster_weights(model, job.recipe),
                ),
                None,
            ),
            callbacks=[watch, *trackers],
        )
        # TRL puts its own fused head over ours, with metrics that nobody reads, and casts the adapters of a quantized
        # base to bfloat16, which float16 training does not survive. The Recipe decides both: put back what we built.
        base.forward = forward
        if balance is not None:
            text_config.router_aux_loss_coef = balance
        for parameter, data in weights.items():
            parameter.data = data
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True  # whatever the model's own loss does: a row's first token is no target
        self.remove_callback(PrinterCallback)

    # The step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert not return_outputs
        inputs = {name: value for name, value in inputs.items() if name != ROWS}
        return objective_of(self.recipe).loss(model, inputs, self.recipe, num_trained_tokens=num_items_in_batch)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Forward and backward of one micro-batch, in smaller ones where memory has run out before.

        Gradients of a micro-batch that failed are there in part: all of the optimizer step's are made anew.
        Raises: OutOfMemory when there is nothing left to do with less; StopRequested between two micro-batches.
        """
        if not self._inputs:
            self._random, self._loss = random_state(), 0.0
        self._inputs.append(inputs)
        loss = self._try(lambda: self._backward(model, inputs, num_items_in_batch))
        while loss is None:
            model.zero_grad()
            self.take_fallback(self.state.global_step + 1)
            set_random_state(self._random)
            loss = self._try(lambda: [self._backward(model, each, num_items_in_batch) for each in self._inputs][-1])
        # summed on the device: reading a number here would stall a GPU every micro-batch
        real = inputs[ROWS][0] < len(self._lengths)  # and no filler, which is in a micro-batch of its own
        self.tokens[0] = self.tokens[0] + real * inputs["attention_mask"].sum()
        self.tokens[1] = self.tokens[1] + (inputs["labels"][:, 1:] != IGNORED).sum()
        self.tokens[2] = self.tokens[2] + real * inputs["input_ids"].numel()
        self._loss = self._loss + loss
        if len(self._inputs) < self.current_gradient_accumulation_steps:
            self.stop.check()
        return loss

    def take_fallback(self, step: int) -> None:
        """Go on with less memory. Raises: OutOfMemory when that cannot be."""
        if not self.take_fallback_for_want(self._exhausted, step):
            raise OutOfMemory(
                f"out of memory at step {step}, with one row at a time and all that saves memory: {self._exhausted}",
                fix="end other programs on the device, or plan again with a shorter --seq-len or --method qlora",
            )

    def take_fallback_for_want(self, reason: str, step: int = 0) -> bool:
        """Whether there is a way to go on with less memory; it is taken and told of."""
        free_memory()
        change = self.fallbacks.take()
        if change is None:
            return False
        self._tell_of_fallback(change, step, reason)
        return True

    def _tell_of_fallback(self, change: str, step: int, reason: str) -> None:
        event = Recovered(step=step, change=change, micro_batch=self.fallbacks.micro_batch, reason=reason)
        self.progress.events.append({"event": "recovered", **event.to_dict()})
        self.listener(event)

    def _backward(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        losses = [
            super(Engine, self).training_step(model, part, num_items_in_batch)
            for part in split(inputs, self.fallbacks.micro_batch, self.fallbacks.row_tokens)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _try(self, function: Callable[[], Any]) -> Any:
        """What `function` gives; None when memory is exhausted, and what its frames held is free again."""
        try:
            return function()
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            self._exhausted = first_line(error)
            return None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, and the trained tokens of the whole step, all processes' together."""
        batches, trained = super().get_batch_samples(*args, **kwargs)
        return batches, self.group.gather(trained.reshape(1)).sum()

    def _clip_grad_norm(self, model: Any) -> Any:
        """The gradients are whole: those of all processes become one before anything looks at them."""
        self.group.sum_gradients(model.parameters())
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """The last moment before the update: here a loss or gradient that is no number stops the run."""
        measured = torch.as_tensor(super()._get_grad_norm(model, grad_norm=grad_norm), dtype=torch.float64)
        own = [measured, self._loss, *self.tokens, *self.fallbacks.state().values()]
        numbers = torch.stack([torch.as_tensor(each, dtype=torch.float64, device=measured.device) for each in own])
        of_all = self.group.gather(numbers).tolist()
        self.group.check()
        norm = of_all[self.group.rank][0]
        self.step_loss, *tokens = (sum(column) for column in list(zip(*of_all, strict=True))[1:5])
        self.tokens = [int(count) for count in tokens]
        overflow = not math.isfinite(norm) and self.args.fp16  # the gradient scaler leaves the step out
        self._overflows = self._overflows + 1 if overflow else 0
        if (
            not math.isfinite(self.step_loss)
            or (not math.isfinite(norm) and not overflow)
            or self._overflows > MOST_OVERFLOWS
        ):
            self._refuse(model, self.step_loss, norm, self.group)
        self._take_fallbacks_of([each[5:] for each in of_all], self.state.global_step + 1)
        self._inputs = []
        return float(norm)

    def agree_on_fallbacks(self) -> None:
        """What one process had to do, to go on with less memory, is done by all."""
        own = torch.tensor([int(each) for each in self.fallbacks.state().values()], device=self.args.device)
        self._take_fallbacks_of(self.group.gather(own).tolist(), 0)

    def _take_fallbacks_of(self, found: list[list[float]], step: int) -> None:
        before, agreed = self.fallbacks.state(), self.fallbacks.agreed(found)
        if agreed != before:
            self.fallbacks.restore(agreed)
            change = [name for name, value in agreed.items() if value != before[name]][-1]
            self._tell_of_fallback(change, step, "memory was exhausted in another process")

    def _refuse(self, model: Any, loss: float, norm: float, group: Group) -> None:
        step = self.state.global_step + 1
        what = f"loss of step {step} is {loss}" if not math.isfinite(loss) else f"gradient of step {step} is {norm}"
        bad = [row for part in self._single_rows() for row in self._rows_if_bad(model, part)]
        seen = [row for inputs in self._inputs for row in inputs[ROWS].tolist() if row < len(self._lengths)]
        of_all = group.gather_values((bad, seen))
        alone = [row for bad, _ in of_all for row in bad] or [row for _, seen in of_all for row in seen]
        raise NonFinite(
            f"the {what}: stopped before the update",
            fix="look at the rows named, or lower learning_rate; in float16, take bfloat16 where the card can",
            step=step,
            examples=[example for row in alone for example in self._examples[row]],
        )

    def _single_rows(self) -> Iterator[Any]:
        for inputs in self._inputs:
            yield from split(inputs, 1)

    def _rows_if_bad(self, model: Any, part: Any) -> list[int]:
        model.zero_grad()
        loss = self.compute_loss(model, self._prepare_inputs(part))
        if bool(torch.isfinite(loss)):
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            if bool(torch.isfinite(torch.nn.utils.get_total_norm(grads))):
                return []
        rows: list[int] = part[ROWS].tolist()
        return rows

    # Which rows, in which order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """By seed and epoch alone, so that a resumed run draws the rows that it would have drawn."""
        return Sampler(self._lengths, self.job, self.group)

    # Rehearsal

    def rehearse(self) -> int:
        """One whole optimizer step on the longest micro-batch, in the job's way; returns its padded tokens.

        With accumulation there are two backwards, since gradients live through the forward of the second; in float16
        gradients are scaled as in training. Weights, optimizer and random numbers are others afterwards: `restore`
        brings them back.
        Raises: OutOfMemory, NonFinite.
        """
        self.current_gradient_accumulation_steps = 1
        tokens = self._try(self._rehearse_step)
        while tokens is None:
            self._clear()
            self.take_fallback(0)
            tokens = self._try(self._rehearse_step)
        return int(tokens)

    def _rehearse_step(self) -> int:
        longest = sorted(range(len(self._lengths)), key=lambda row: -self._lengths[row])
        rows = (longest * self.fallbacks.micro_batch)[: self.fallbacks.micro_batch]
        inputs = self._prepare_inputs(self.data_collator([self.train_dataset[row] for row in rows]))
        self.model.train()
        scaler = torch.amp.GradScaler(self.args.device.type, enabled=self.args.fp16)
        parts = split(inputs, self.fallbacks.micro_batch, self.fallbacks.row_tokens)
        for part in parts * min(2, self.job.accumulation):
            loss = self.compute_loss(self.model, part)
            if not math.isfinite(float(loss.detach())):
                self._inputs = [part]
                self._refuse(self.model, float(loss.detach()), 0.0, Group())  # each process has met it
            scaler.scale(loss).backward()
        scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.job.max_grad_norm)
        self.optimizer.step()  # by itself: the scaler leaves out a first step that overflows, and its state with it
        return max(int(part["input_ids"].numel()) for part in parts)

    def _clear(self) -> None:
        forget_steps(self.optimizer)
        free_memory()

    @property
    def paged_bytes(self) -> int:
        """Of the optimizer's state that leaves the device when something else needs its place."""
        return getattr(self.optimizer, "paged_bytes", 0)

    @property
    def num_rows(self) -> int:
        return len(self._lengths)

    # Checkpoints

    def save(self) -> bool:
        """A checkpoint of the last whole optimizer step; whether the disk took it.

        Raises: TrainingError where a trained weight is not finite.
        """
        assert self.keeper is not None
        self._check_weights()
        return self.keeper.save(self._snapshot(), {"trainer_state.json": self._trainer_state()})

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter.detach()).all()):
                raise TrainingError(
                    f"after step {self.progress.step} the trained weights are not finite, {name} for one",
                    fix="lower learning_rate or weight_decay",
                )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Weights and random numbers of `checkpoint`, and an optimizer that has seen nothing."""
        self._clear()
        self._take(checkpoint.state())
        set_random_state(self.after_step)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint` when `train_on` is called with it."""
        state = checkpoint.state()
        self._take(state)
        self.progress.restore(state["progress"])

    def take_weights(self, checkpoint: Checkpoint) -> None:
        """The weights of `checkpoint`, and nothing else of it."""
        self._copy_weights(checkpoint.state()["weights"])

    def train_on(self, checkpoint: Checkpoint) -> None:
        """Train from where `checkpoint` is to the end."""
        self.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint.step else None)

    def _take(self, state: dict[str, Any]) -> None:
        self._from = state
        self._copy_weights(state["weights"])
        self.after_step = state["random"]
        self.fallbacks.restore(state["fallbacks"])

    def _copy_weights(self, saved: dict[str, Any]) -> None:
        weights = self._weights()
        if {name: each.shape for name, each in weights.items()} != {name: each.shape for name, each in saved.items()}:
            raise OptionError(
                "the checkpoint holds other weights than the plan trains", fix="resume with the plan it was made by"
            )
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(saved[name])

    def compare_weights(self) -> None:
        """Raises: TrainingError where the processes that trained together have not come to the same weights."""
        digest = hashlib.sha256()
        for parameter in self._weights().values():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
        if len(set(self.group.gather_values(digest.hexdigest()))) > 1:
            raise TrainingError(
                "weights differ between processes after the last step: a GPU or the interconnect is faulty",
                fix="autoft doctor; --set num_gpus=1 trains on one",
            )

    def _weights(self) -> dict[str, Any]:
        """What is trained, and what of an adapter stays as it was drawn at random."""
        kind = kind_of(self.recipe)
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or kind.owns(name)
        }

    def _snapshot(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "weights": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": self.after_step,
            "fallbacks": self.fallbacks.state(),
            "progress": self.progress.state(),
        }

    def _trainer_state(self) -> str:
        """transformers' own account; its log of every step is in our progress already."""
        return json.dumps({**dataclasses.asdict(self.state), "log_history": []})

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Evaluate before saving, so that a checkpoint knows how good it is; stop, where asked, after both."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.keeper is None:
            return
        step = self.state.global_step
        every = self.job.eval_steps
        if self.evaluate_after is not None and every and step % every == 0 and step != self._evaluated:
            self._evaluated = step
            if self.evaluate_after(step):
                self.control.should_training_stop = True
        if self.keeper.due(step, best=self.progress.best_step == step):
            self.save()
        self.stop.check()

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        """`resume` has done it."""
        assert self._from is not None

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None and self._from is not None:
            self.optimizer.load_state_dict(self._from["optimizer"])
            self.lr_scheduler.load_state_dict(self._from["schedule"])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule, with our count of steps to warm up: a ratio of 1 would be one step to transformers."""
        self.args.warmup_steps = self.job.warmup_steps(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_scaler(self, checkpoint: Any) -> None:
        if checkpoint is not None and self._from is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._from["scaler"])

    def _load_rng_state(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            set_random_state(self.after_step)

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""


def _arguments(job: Job, work_dir: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(work_dir),
        per_device_train_batch_size=job.recipe.micro_batch,
        gradient_accumulation_steps=job.accumulation,
        num_train_epochs=job.epochs,
        max_steps=job.max_steps or -1,
        learning_rate=job.learning_rate,
        lr_scheduler_type=job.lr_scheduler,
        max_grad_norm=job.max_grad_norm,
        weight_decay=job.weight_decay,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=job.device == "cpu",
        # The loss does autocast itself; float16 needs the trainer's gradient scaler besides
        bf16=False,
        fp16=job.recipe.autocast and job.recipe.base_dtype == "float16",
        # build_model has switched it on where the Recipe says so
        activation_checkpointing=False,
        max_length=None,
        # TRL would add the experts' balance to the loss, and ask for router logits in every forward, answers' too
        router_aux_loss_coef=0.0,
        # TRL knows of no positions among the columns of a row that is not packed by itself
        remove_unused_columns=False,
        save_strategy="no",  # `save` does
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job.device == "cuda",
    )
