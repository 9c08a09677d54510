"""Several GPUs, each with the whole model: what it takes, how long, which number is chosen, and who is told."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from autoft.errors import DoesNotFit, ModelError, OptionError
from autoft.planner.estimate import Range
from autoft.planner.estimator.target import NCCL_BYTES, target_of
from autoft.planner.export.write import export_config
from autoft.planner.history.correction import correction_for
from autoft.planner.history.past_runs import past_run
from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import ByteCounter
from autoft.planner.memory.replay import replay
from autoft.planner.plan import cached_plans
from autoft.planner.plan.cases import Case, estimates
from autoft.planner.plan.diff import differences
from autoft.planner.plan.exact import make_estimate
from autoft.planner.plan.make import Asked, ask, make_plan
from autoft.planner.plan.recheck import recheck
from autoft.planner.plan.record import Plan, read_plan, write_plan
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.planner.rehearsal.replicas import replicated
from autoft.planner.request import Request
from autoft.planner.search.candidates import describe
from autoft.planner.search.gpu_count import counts_of, plan_counts
from autoft.planner.search.hyperparameters import Rows, steps_of
from autoft.planner.search.rank import PREFERENCES, row_time
from autoft.planner.timing.allreduce import Link, Replicas, link_of, together
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.roofline import Timing
from autoft.planner.what_if.context import make_frame
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Gpu, GpuStatus, Hardware, Host
from autoft.trainer.distributed.group import Group
from autoft.trainer.distributed.launched import Launch
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Predicted
from autoft.training import of_launch, uuids
from autoft.units import GIB, MIB
from tests.conftest import write_jsonl
from tests.planner.families import family_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HOST = Host(
    cpu="a CPU", cores=2, ram_total_bytes=8 * GIB, ram_available_bytes=8 * GIB, disk_path="/", disk_free_bytes=GIB
)
NOWHERE = Hardware(host=HOST)
SEQ_LEN = 256


def cards(*free_gib: float, name: str = "rtx-3060") -> tuple[Gpu, ...]:
    """Cards of this machine, with so much memory free."""
    card = replace(gpu_from_profile(name), origin="nvml")
    return tuple(
        replace(card, index=i, uuid=f"GPU-{name}-{i}", free_bytes=int(gib * GIB)) for i, gib in enumerate(free_gib)
    )


def machine(*gpus: Gpu) -> Hardware:
    return Hardware(host=HOST, gpus=gpus)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config.json alone."""
    folder = tmp_path_factory.mktemp("model")
    wide = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4}
    family_config("llama3", num_hidden_layers=2, vocab_size=32_000, **wide).save_pretrained(folder)
    return folder


def request(model: Path, **words: Any) -> Request:
    return Request(**{"model": str(model), "seq_len": SEQ_LEN, **words})


@pytest.fixture(scope="module")
def two(model: Path) -> Plan:
    """A plan for two of two cards."""
    return make_plan(request(model, gpu="rtx-3060 x2"), NOWHERE)[0]


# What summing gradients takes


@pytest.fixture
def group() -> Iterator[Group]:
    """The first of two, of which the other is not there; gloo's threads would hold a buffer for a moment longer."""
    if not dist.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield Group(2, 0)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cpu_memory() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("cpu_memory")


@pytest.mark.parametrize(("buffer_bytes", "num_buffers"), [(MIB // 4, 8), (32 * MIB, 1)])
def test_what_it_takes_of_a_real_run_is_met(
    cpu_memory: Any, group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, buffer_bytes: int, num_buffers: int
) -> None:
    """All that summing takes, and every phase of two steps of two micro-batches each."""
    from torch.profiler import record_function
    from transformers import AutoConfig, AutoModelForCausalLM

    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives.loss import compute_loss
    from autoft.trainer.optimizers.optim import build_optimizer

    monkeypatch.setattr("autoft.trainer.distributed.group.BUFFER_BYTES", buffer_bytes)
    recipe = Recipe(base_dtype="float32", loss="logits", rank=128, micro_batch=2, seq_len=32)
    config = AutoConfig.for_model("llama", **{**cpu_memory.GROUPED, "num_hidden_layers": 2})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with cpu_memory.recorded() as record:
        built = build_model(recipe, config=config, weights=tmp_path, device="cpu")
        loaded = cpu_memory.stored_bytes(built)
        trained = [p for p in built.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, recipe, learning_rate=1e-4)
        for step in (1, 2):
            for _ in range(2):
                with record_function(f"phase {step} forward"):
                    batch = cpu_memory.a_batch(recipe, config)
                    loss = compute_loss(built, batch, recipe, num_trained_tokens=torch.tensor(64))
                with record_function(f"phase {step} backward"):
                    loss.backward()
                    loss = loss.detach()
            with record_function(f"phase {step} optimizer"):
                with record_function("sum"):
                    group.sum_gradients(built.parameters())
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del batch, loss
    alone = rehearse(recipe, config, Device(None), depth=find_depth(recipe, config), accumulate=True)
    one_of_several = replicated(alone)
    added = len(one_of_several.phases[-1].events) - len(alone.phases[-1].events)
    assert added == 2 * num_buffers
    for block in (event for event in record if event.name() == "sum"):
        within = (e for e in record if e.name() == "[memory]" and block.start_ns() <= e.start_ns() <= block.end_ns())
        assert [e.nbytes() for e in within] == one_of_several.phases[-1].events[:added, 1].tolist()
    measured = cpu_memory.peaks_by_phase(record, loaded)
    predicted = replay(one_of_several, ByteCounter()).phases
    first_step = max(measured[f"1 {name}"] for name in ("forward", "backward", "optimizer"))
    # AdamW counts the steps of each weight in 4 bytes of the host
    assert predicted["first_step"] == pytest.approx(first_step, abs=256)
    for name in ("forward", "backward", "optimizer"):
        assert predicted[name] == pytest.approx(measured[f"2 {name}"], abs=256)


def test_a_replica_takes_no_less_than_a_run_alone(model: Path) -> None:
    found = ask(request(model, gpu="rtx-3060 x2"), NOWHERE)
    recipes = [family.recipes[0] for family in found.question.families()]
    for recipe in (r for r in recipes if r.quant_type != "int8" and r.checkpoint_every == 1):
        for accumulation in (1, 2):
            alone, one = (
                found.question.estimator.estimate(recipe, replicas=Replicas(num, accumulation)) for num in (1, 2)
            )
            assert one.peak_allocated_bytes >= alone.peak_allocated_bytes
            assert one.device_bytes >= alone.device_bytes + NCCL_BYTES
            assert all(one.phases[name] >= num_bytes for name, num_bytes in alone.phases.items())
            assert sum(one.components.values()) == one.peak_allocated_bytes
            assert one.host_bytes["train"] == 2 * alone.host_bytes["train"]
            assert one.host_bytes["merge"] == alone.host_bytes["merge"]


# Its time


def test_a_ring_sends_each_gradient_twice_but_for_one_share() -> None:
    """30 MB over a link of 1 to 3 GB/s: each of 4 GPUs sends 45 MB, once in 3 micro-batches."""
    gpu = Gpu(name="a card", origin="user", total_bytes=0, free_bytes=0, profile=None)
    link = link_of(gpu)
    step, rates = Range(lower=1.0, upper=2.0), gpu_rates(replace(gpu, tdp_w=100.0))
    timing = Timing(step_s=step, energy_wh=None, basis="")
    found = together(timing, 30_000_000, Replicas(4, 3), gpu, rates)
    assert found.step_s.lower == pytest.approx(1 + 45e6 / link.upper / 3)
    assert found.step_s.upper == pytest.approx(2 + 45e6 / link.lower / 3)
    assert found.energy_wh is not None
    assert found.energy_wh.upper == pytest.approx(4 * 100 * found.step_s.upper / 3600)


def test_replicas_that_share_a_cpu_take_turns() -> None:
    timing = Timing(step_s=Range(lower=1.0, upper=2.0), energy_wh=None, basis="")
    found = together(timing, 1, Replicas(2, 1), None, gpu_rates(gpu_from_profile("t4")))
    assert found.step_s == Range(lower=2.0, upper=4.0)


@pytest.mark.parametrize(
    ("name", "status", "link"),
    [
        ("rtx-4090", None, Link(lower=0.2 * 31.504e9, upper=0.9 * 31.504e9, what="PCIe 4.0 x16")),
        (
            "rtx-4090",
            GpuStatus(pcie_max_generation=3, pcie_max_width=8),
            Link(lower=0.2 * 7.88e9, upper=0.9 * 7.88e9, what="PCIe 3.0 x8"),
        ),
        (
            "rtx-3090",
            None,
            Link(lower=0.2 * 31.504e9, upper=0.95 * 56.25e9, what="PCIe 4.0 x16, or NVLink where it is built in"),
        ),
        (
            "rtx-3090",
            GpuStatus(nvlink_active=0),
            Link(lower=0.2 * 31.504e9, upper=0.9 * 31.504e9, what="PCIe 4.0 x16"),
        ),
        ("h100-80gb", GpuStatus(nvlink_active=18), Link(lower=0.5 * 450e9, upper=0.95 * 450e9, what="NVLink")),
    ],
)
def test_the_link_is_the_catalogue_s_but_what_is_here_counts(name: str, status: GpuStatus | None, link: Link) -> None:
    found = link_of(replace(gpu_from_profile(name), status=status))
    assert found.what == link.what
    assert (found.lower, found.upper) == pytest.approx((link.lower, link.upper))


# How many


@pytest.fixture(scope="module")
def four(model: Path) -> Iterator[Asked]:
    """On one core, where a search forks no processes: they would not hand back what they have rehearsed."""
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    yield ask(request(model, gpu="rtx-3060 x4"), NOWHERE)
    if cores:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("room_gib", [1.5, 12])
def test_more_gpus_are_never_slower(four: Asked, prefer: Any, room_gib: float) -> None:
    whole = replace(four.question.whole, available_bytes=int(room_gib * GIB))
    whole = replace(whole, gpus=tuple(replace(g, free_bytes=int(room_gib * GIB)) for g in whole.gpus))
    question = replace(four.question.on(whole), prefer=prefer)
    alone, _ = plan_counts(question, [1])
    taken, tried = plan_counts(question, [1, 2, 4])
    assert len(tried) == 3
    if alone.best is None:
        return
    assert taken.best is not None
    assert row_time(taken.best) <= row_time(alone.best)
    assert taken.choice is not None
    job = taken.question.job_of(taken.choice.recipe)
    assert job.num_gpus * job.accumulation * job.recipe.micro_batch == question.rows_per_step


def test_only_numbers_that_keep_the_batch_are_planned_for(four: Asked) -> None:
    question = replace(four.question, rows_per_step=16)
    assert counts_of(question, None) == [1, 2, 4]
    assert counts_of(replace(question, rows_per_step=2), None) == [1, 2]
    assert counts_of(replace(question, rows_per_step=1), None) == [1]
    assert counts_of(replace(question, pinned={"micro_batch": 8}), None) == [1, 2]
    assert counts_of(question, 3) == [3]
    with pytest.raises(OptionError) as error:
        counts_of(question, 5)
    assert str(error.value) == (
        "--set num_gpus=5: planned for 4 x NVIDIA GeForce RTX 3060 (12.0 GiB)\n"
        "To fix: --set num_gpus=4, or --gpu 'NAME x5' for cards that are not here"
    )


def test_a_plan_says_what_several_gpus_gain(two: Plan) -> None:
    assert (two.job.num_gpus, two.estimate.num_gpus) == (2, 2)
    assert two.place == "2 x NVIDIA GeForce RTX 3060 (12.0 GiB)"
    rows = two.job.accumulation * two.job.recipe.micro_batch
    assert two.reasons[0].startswith(
        f"2 x NVIDIA GeForce RTX 3060, data parallel: each has the whole model and {rows} of a step's {2 * rows} rows; "
        "1."
    )
    (one,) = (a for a in two.alternatives if a.num_gpus == 1)
    assert one.reason.startswith("fits: 1.")
    assert [text for text in two.estimate.assumptions if "NCCL" in text]
    assert [text for text in two.estimate.assumptions if text.startswith("exchange: gradients of ")]


def test_a_pinned_number_is_kept_to_and_its_batch_told(model: Path) -> None:
    plan, _ = make_plan(request(model, gpu="rtx-3060 x3", settings=("num_gpus=3", "method=lora")), NOWHERE)
    assert plan.job.num_gpus == 3
    in_step = 3 * plan.job.accumulation * plan.job.recipe.micro_batch
    assert f"num_gpus=3: a step has {in_step} rows instead of 16, as many for each GPU" in plan.notes
    shared, _ = make_plan(request(model, gpu="cpu", settings=("num_gpus=2", "method=lora")), NOWHERE)
    assert shared.job.num_gpus == 2
    assert shared.estimate.device_bytes == 2 * max(shared.estimate.phases.values())


def test_like_cards_of_this_machine_are_used_and_the_fullest_decides(model: Path) -> None:
    other = cards(8, name="t4")
    plan, _ = make_plan(request(model, settings=("method=lora",)), machine(*cards(9, 11.5), *other))
    assert plan.job.num_gpus == 2
    alone = target_of(machine(*cards(9)), gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda *_: 1e11)
    assert plan.estimate.available_bytes == alone.available_bytes
    assert "not used beside the others: Tesla T4; all GPUs of a run must be of one kind" in plan.notes
    # with next to nothing free on the second card, the first one trains alone
    plan, _ = make_plan(request(model, settings=("method=lora",)), machine(*cards(11.5, 0.4)))
    assert plan.job.num_gpus == 1


def test_a_model_that_waits_for_its_host_stays_on_one(tiny_model: Path) -> None:
    plan, _ = make_plan(Request(model=str(tiny_model), gpu="rtx-3060 x2", seq_len=16), NOWHERE)
    assert plan.job.num_gpus == 1
    (more,) = (a for a in plan.alternatives if a.num_gpus == 2)
    times = more.reason.removeprefix("fits: ")
    assert plan.reasons[0] == f"1 of the GPUs: 2 ({describe(more.recipe)}) would be {times}"


def test_parts_of_one_card_stay_alone() -> None:
    parts = tuple(replace(gpu, uuid=f"MIG-{gpu.index}") for gpu in cards(11, 11))
    found = target_of(machine(*parts), gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda *_: 1e11)
    assert found.num_gpus == 1


def test_what_fits_no_single_gpu_is_refused(model: Path) -> None:
    with pytest.raises(DoesNotFit) as error:
        make_plan(
            request(model, gpu="rtx-3060 x2", seq_len=128, vram_gib=0.55, settings=("method=lora", "micro_batch=1")),
            NOWHERE,
        )
    assert error.value.exit_code == 3
    assert "More GPUs do not help: each has the whole model" in error.value.what


def test_steps_are_shared_out() -> None:
    rows = Rows((SEQ_LEN,) * 100, SEQ_LEN, packing=False)
    job = Job(model="m", recipe=Recipe(micro_batch=2), accumulation=3)
    assert steps_of(job, rows) == 17  # of 6 rows
    assert steps_of(replace(job, num_gpus=2), rows) == 9  # of 12 rows


# Who is told


def test_the_file_carries_it(two: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    write_plan(two, path)
    text = path.read_text()
    assert "# " + two.place[:20] in text.replace(f"# {two.job.model} on ", "# ")
    assert "num_gpus = 2  # copies of the model, each with its own micro-batches" in text
    assert f"micro-batches in an optimizer step: 2 GPUs x {two.job.recipe.micro_batch} x" in text
    assert read_plan(path) == two


def test_a_difference_names_it(two: Plan) -> None:
    one = replace(two, job=replace(two.job, num_gpus=1))
    found = {d.key: (d.group, d.a, d.b) for d in differences(one, two)}
    assert found["job.num_gpus"] == ("choice", 1, 2)


@pytest.fixture(scope="module")
def with_data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_jsonl(data, [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(400)])
    return make_plan(Request(model=str(tiny_model), data=str(data), settings=("num_gpus=2",)), machine(*cards(11, 11)))[
        0
    ]


def test_a_kept_plan_holds_as_long_as_every_card_has_as_much_free(two: Plan, model: Path) -> None:
    def asked(*free_gib: float) -> cached_plans.PlanQuestion:
        found = cached_plans.ask(request(model), machine(*cards(*free_gib)))
        assert found is not None
        return found

    cached_plans.keep(asked(12, 12), two)
    assert cached_plans.recall(asked(12, 11.9)) is not None
    assert cached_plans.recall(asked(12, 9)) is None
    assert cached_plans.recall(asked(12)) is None
    alone = replace(two, job=replace(two.job, num_gpus=1))
    cached_plans.keep(asked(12, 1), alone)
    assert cached_plans.recall(asked(12, 1)) is not None
    assert cached_plans.recall(asked(12, 12)) is None  # the second card is free again


def test_fewer_gpus_than_planned_are_named_and_refused(with_data: Plan) -> None:
    assert with_data.job.num_gpus == 2
    checked = recheck(with_data, with_data.job, machine(*cards(11, 11)), where="plan.toml")
    assert checked.notes == ()
    assert checked.plan.estimate == with_data.estimate
    assert checked.plan.steps == with_data.steps
    with pytest.raises(ModelError) as error:
        recheck(with_data, with_data.job, machine(*cards(11)), where="plan.toml")
    assert str(error.value) == (
        "plan.toml: job.num_gpus = 2 is more than there are here of one kind: NVIDIA GeForce RTX 3060\n"
        "To fix: job.num_gpus = 1, or plan again"
    )


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("axolotl", "axolotl train {out} --launcher torchrun -- --nproc_per_node=2"),
        ("llamafactory", "FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train {out}"),
        ("trl", "trl sft --config {out} --num_processes 2"),
        ("unsloth", "torchrun --nproc_per_node 2 {out}"),
    ],
)
def test_another_trainer_is_started_on_as_many(with_data: Plan, tmp_path: Path, tool: Any, command: str) -> None:
    out = tmp_path / "config"
    export = export_config(with_data, tool, out, where="plan.toml")
    assert export.command == command.format(out=out)
    assert [note for note in export.notes if note.startswith("it is for 2 GPUs")]
    assert f"on {with_data.place}"[:30] in " ".join(export.files[out].replace("\n# ", " ").split())


def test_runs_on_several_gpus_correct_no_run_on_one(with_data: Plan) -> None:
    hardware, predicted = (
        machine(*cards(11, 11)),
        Predicted(peak_bytes=1, step_time_lower_s=1.0, step_time_upper_s=2.0, method="rehearsal"),
    )
    run = past_run(with_data, predicted, hardware, None)
    assert run.circumstances["gpus"] == "2"
    from autoft.planner.history import past_runs

    past_runs.add(run)
    target = target_of(hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda *_: 1e11)
    found = correction_for(target, with_data.estimate, with_data.job.recipe)
    assert found is not None
    assert found.exhausted == (run.at,)
    assert correction_for(target, replace(with_data.estimate, num_gpus=1), with_data.job.recipe) is None


def test_an_estimate_is_of_a_replica_where_several_cards_are_named(model: Path) -> None:
    one, several = (
        make_estimate(request(model, gpu=gpu, settings=("method=lora",)), NOWHERE).estimate for gpu in ("t4", "t4x2")
    )
    assert (one.num_gpus, several.num_gpus) == (1, 2)
    assert several.device_bytes > one.device_bytes
    assert one.tokens_per_s < several.tokens_per_s <= 2 * one.tokens_per_s


def test_a_run_takes_cards_of_one_kind_with_the_most_memory_free() -> None:
    there = (*cards(9, 11, 10), *cards(8, name="rtx-3090"))
    assert uuids(there, 1) == ["GPU-rtx-3060-1"]
    assert uuids(there, 2) == ["GPU-rtx-3060-1", "GPU-rtx-3060-2"]
    assert uuids((), 1) == []
    with pytest.raises(ModelError, match="the plan is for 4 GPUs of one kind, and there are 3 here"):
        uuids(there, 4)


def test_processes_of_a_launcher_take_cards_in_the_order_of_the_machine() -> None:
    """By what is free two of them might take the same, since it changes as they begin."""
    launch = Launch(rank=1, size=2, local_rank=1, local_size=2, address="a", port=1)
    before = cards(6, 11)
    assert of_launch(before, launch) == of_launch(cards(11, 6), launch) == ["GPU-rtx-3060-0", "GPU-rtx-3060-1"]
    with pytest.raises(ModelError, match="2 processes were started on this host, and GPUs of one kind here: 1"):
        of_launch(cards(11), launch)


def test_questions_about_one_gpu_refuse_several(model: Path) -> None:
    with pytest.raises(OptionError, match="this question is about one GPU"):
        make_frame(request(model, gpu="t4x2"), NOWHERE)
    assert make_frame(request(model), machine(*cards(11, 11))).target.num_gpus == 2


def test_a_case_may_name_several(model: Path) -> None:
    pins = {"method": "lora", "seq_len": SEQ_LEN}
    cases = [Case("", str(model), gpu, None, pins, "plain", {}, None) for gpu in ("t4", "t4x2")]
    assert [estimate.num_gpus for _, _, estimate in estimates(cases, NOWHERE)] == [1, 2]


def test_the_command_line_tells_it(autoft: Any, model: Path) -> None:
    words = ("plan", model, "--gpu", "rtx-3060 x2", "--seq-len", SEQ_LEN, "--method", "lora")
    done = autoft(*words)
    assert done.code == 0, done.err
    assert "on 2 x NVIDIA GeForce RTX 3060 (12.0 GiB)" in " ".join(done.out.split())
    assert "2 GPUs x " in done.out
    assert "usable on each GPU" in done.out
    done = autoft(*words, "--json")  # kept from before
    assert json.loads(done.out)["job"]["num_gpus"] == 2
    assert autoft(*words, "--explain").code == 0
