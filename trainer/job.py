"""The Job: a Recipe plus data, schedule and evaluation. All that the trainer needs, and nothing more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoft.schema import Record
from autoft.settings import Setting
from autoft.trainer.recipe import Recipe

Device = Literal["cuda", "cpu"]
Schedule = Literal["linear", "cosine", "constant"]
Metric = Literal["loss", "exact_match", "json_valid", "fields_right", "number_match", "f1", "rouge_l"]
Thinking = Literal["auto", "on", "off"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Record):
    """One run. Each field says what it is: docs/settings.md."""

    model: Annotated[
        str,
        Setting(
            'a hub id, folder, .gguf file, catalogue name or "starter"',
            group="Data",
            elsewhere="model_name model_id model_name_or_path base_model pretrained_model hf_model",
            typed=False,
            exported=True,
        ),
    ]
    recipe: Annotated[Recipe, Setting("one training step", group="Method", typed=False, exported=True)]
    data: Annotated[
        str | None,
        Setting(
            'files or a dataset of the hub, or "starter" for the bundled task',
            group="Data",
            more="Without it there is a plan, and no run.",
            typed=False,
            exported=True,
        ),
    ] = None
    from_adapter: Annotated[
        str | None,
        Setting(
            "folder of an adapter to continue; without it a new one begins",
            group="Adapter",
            more="Of a run, or of PEFT. Its kind, rank, alpha, dropout and layers are those of the run.",
            changes=("quality",),
            typed=False,
        ),
    ] = None
    device: Annotated[Device, Setting("where it trains", group="Method", typed=False, exported=True)] = "cpu"
    num_gpus: Annotated[
        int,
        Ge(1),
        Setting(
            "copies of the model, each with its own micro-batches",
            group="Batch and length",
            more="Each on a GPU of its own: an optimizer step has num_gpus x micro_batch x accumulation sequences. On "
            "a CPU they are processes that share it.",
            changes=("time",),
            elsewhere="gpus n_gpus num_devices devices nproc_per_node",
            exported=True,
        ),
    ] = 1
    hosts: Annotated[
        int,
        Ge(1),
        Setting(
            "machines that the GPUs are in, as many in each",
            group="Batch and length",
            more="Start the run on each of them by torchrun or srun: docs/several-machines.md.",
            changes=("time",),
            elsewhere="nnodes num_nodes nodes num_machines",
            exported=True,
        ),
    ] = 1
    link: Annotated[
        str | None,
        Setting(
            "the network between hosts: 10GbE, or another number of Gbit/s",
            group="Batch and length",
            more="Only the plan's time depends on it.",
            changes=("time",),
            elsewhere="network interconnect",
        ),
    ] = None
    eval_data: Annotated[
        str | None,
        Setting(
            "rows to evaluate on",
            group="Data",
            more="Without them up to eval_rows rows are held out of data.",
            typed=False,
            exported=True,
        ),
    ] = None
    mapping: Annotated[
        str | None,
        Setting(
            "which column is what, as --map has it",
            group="Data",
            more="Without it the columns' names tell.",
            typed=False,
            exported=True,
        ),
    ] = None
    thinking: Annotated[
        Thinking,
        Setting(
            "whether the chat template thinks before answers; auto: as the data do",
            group="Data",
            more="Where the template has a switch for that.",
            changes=("quality",),
            elsewhere="enable_thinking think reasoning",
            exported=True,
        ),
    ] = "auto"
    eval_rows: Annotated[
        int,
        Ge(0),
        Setting(
            "rows to hold out of data for the evaluation, at most a tenth",
            group="Evaluation",
            changes=("time",),
            elsewhere="val_size val_set_size eval_size max_eval_samples",
            exported=True,
        ),
    ] = 100
    epochs: Annotated[
        float,
        Gt(0),
        Setting(
            "passes over the data",
            group="Schedule",
            changes=("time", "quality"),
            elsewhere="epoch num_epochs num_train_epochs n_epochs train_epochs",
            exported=True,
        ),
    ] = 1.0
    group_by_length: Annotated[
        bool,
        Setting(
            "put rows of like length in a step",
            group="Batch and length",
            more="So that less is padded: rows are drawn at random, some steps' worth at a time, fifty at most, and "
            "these come by length. The first step has the longest row of all.",
            changes=("time",),
            elsewhere="length_grouping group_length",
        ),
    ] = False
    max_steps: Annotated[
        Annotated[int, Gt(0)] | None,
        Setting(
            "stop after n optimizer steps",
            group="Schedule",
            changes=("time", "quality"),
            elsewhere="steps num_steps max_train_steps train_steps iters",
            follows="epochs",
            exported=True,
        ),
    ] = None
    accumulation: Annotated[
        int,
        Gt(0),
        Setting(
            "micro-batches in an optimizer step",
            group="Batch and length",
            changes=("time", "quality"),
            elsewhere="gradient_accumulation_steps gradient_accumulation grad_accumulation grad_accum "
            "accumulation_steps",
            exported=True,
        ),
    ] = 1
    learning_rate: Annotated[
        float,
        Gt(0),
        Setting("peak learning rate", group="Schedule", changes=("quality",), elsewhere="lr peak_lr", exported=True),
    ] = 2e-4
    schedule: Annotated[
        Schedule,
        Setting(
            "how the learning rate falls after its peak",
            group="Schedule",
            changes=("quality",),
            elsewhere="lr_scheduler_type lr_scheduler scheduler",
            exported=True,
        ),
    ] = "cosine"
    warmup_ratio: Annotated[
        float,
        Ge(0),
        Le(1),
        Setting(
            "share of all steps in which the learning rate rises to its peak",
            group="Schedule",
            changes=("quality",),
            elsewhere="warmup",
            exported=True,
        ),
    ] = 0.03
    weight_decay: Annotated[
        float,
        Ge(0),
        Setting(
            "how fast weights shrink by themselves",
            group="Schedule",
            changes=("quality",),
            elsewhere="wd",
            exported=True,
        ),
    ] = 0.0
    max_grad_norm: Annotated[
        float,
        Gt(0),
        Setting(
            "clip gradients to this norm",
            group="Schedule",
            changes=("quality",),
            elsewhere="grad_clip gradient_clipping clip_grad_norm max_norm",
            exported=True,
        ),
    ] = 1.0
    max_new_tokens: Annotated[
        int,
        Ge(0),
        Setting(
            "longest answer in the evaluation; 0 evaluates the loss only",
            group="Evaluation",
            changes=("memory", "time"),
            elsewhere="max_tokens generation_max_length",
            exported=True,
        ),
    ] = 128
    eval_steps: Annotated[
        Annotated[int, Gt(0)] | None,
        Setting(
            "evaluate every n optimizer steps too",
            group="Evaluation",
            more="The weights of the best evaluation by metric are kept then. Without it the run evaluates before and "
            "after.",
            changes=("time", "quality"),
            elsewhere="eval_interval evaluation_steps",
        ),
    ] = None
    metric: Annotated[
        Metric,
        Setting(
            "figure of the evaluation that picks the best weights",
            group="Evaluation",
            changes=("quality",),
        ),
    ] = "loss"
    early_stopping: Annotated[
        Annotated[int, Gt(0)] | None,
        Setting(
            "stop after n evaluations without a better one",
            group="Evaluation",
            changes=("time",),
            elsewhere="patience early_stopping_patience",
            follows="eval_steps",
        ),
    ] = None
    save_minutes: Annotated[
        float, Gt(0), Setting("write a checkpoint at least this often", group="Checkpoints", changes=("time",))
    ] = 10.0
    save_steps: Annotated[
        Annotated[int, Gt(0)] | None,
        Setting(
            "write a checkpoint at least every n optimizer steps",
            group="Checkpoints",
            changes=("time",),
            elsewhere="save_interval checkpoint_steps",
        ),
    ] = None
    keep_checkpoints: Annotated[
        int,
        Gt(0),
        Setting("how many checkpoints to keep, the newest", group="Checkpoints", elsewhere="save_total_limit"),
    ] = 2
    report_to: Annotated[
        tuple[Tracker, ...],
        Setting(
            "trackers to report to as well",
            group="Checkpoints",
            more="Through the callbacks of transformers. mlflow gets the trained model too.",
            elsewhere="logger log_with tracker",
        ),
    ] = ()
    mlflow_register: Annotated[
        str | None,
        Setting(
            "name in MLflow's model registry for the trained model",
            group="Checkpoints",
            more="With report_to mlflow.",
            elsewhere="registered_model_name hf_mlflow_registered_model_name",
        ),
    ] = None
    seed: Annotated[
        int,
        Ge(0),
        Lt(2**32),
        Setting(
            "for the order of the data and the adapter's first weights",
            group="Schedule",
            changes=("quality",),
            elsewhere="random_state random_seed data_seed",
            exported=True,
        ),
    ] = 0

    def warmup_steps(self, total_steps: int) -> int:
        """In a run of total_steps. Never all: the first has a rate of 0, and a run of one step would learn nothing."""
        return max(0, min(math.ceil(total_steps * self.warmup_ratio), total_steps - 1))

    @property
    def lr_scheduler(self) -> str:
        """The schedule by the name that transformers has for it; its "constant" would leave the warm-up out."""
        return "constant_with_warmup" if self.schedule == "constant" else self.schedule

    def __post_init__(self) -> None:
        if self.from_adapter is not None and self.recipe.method == "full":
            raise ValueError("method full has no adapter: leave from_adapter out")
        if self.from_adapter is not None and self.recipe.init != "default":
            raise ValueError(f"from_adapter begins with the weights of that adapter: leave init {self.recipe.init} out")
        if self.group_by_length and self.recipe.packing:
            raise ValueError("group_by_length has nothing to group beside packing: all rows are of one length then")
        if self.mlflow_register is not None and "mlflow" not in self.report_to:
            raise ValueError("mlflow_register needs MLflow: add mlflow to report_to")
        if self.early_stopping is not None and self.eval_steps is None:
            raise ValueError("early_stopping needs eval_steps: it counts evaluations")
        if self.eval_steps is not None and self.eval_rows == 0 and self.eval_data is None:
            raise ValueError("eval_steps needs held-out rows: eval_rows must not be 0")
        if self.metric != "loss" and self.max_new_tokens == 0:
            raise ValueError(f"metric {self.metric} is of answers: max_new_tokens must not be 0")
