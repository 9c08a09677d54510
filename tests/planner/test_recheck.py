"""A plan from a file is rehearsed anew: what no longer fits is refused with the figure, what has changed is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.errors import DataError, DoesNotFit, FileFormatError, ModelError
from autoft.planner.estimate import Estimate
from autoft.planner.plan.make import make_plan
from autoft.planner.plan.provenance import Inputs
from autoft.planner.plan.recheck import EDITED, Rechecked, recheck
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import GpuProcess, Hardware, Host
from autoft.trainer.job import Job
from autoft.units import GIB
from tests.conftest import write_jsonl

HOST = Host(
    cpu="a CPU", cores=2, ram_total_bytes=8 * GIB, ram_available_bytes=8 * GIB, disk_path="/", disk_free_bytes=GIB
)
CPU = Hardware(host=HOST)
RTX = replace(gpu_from_profile("rtx-3060"), origin="nvml", profile="rtx-3060")


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, str]:
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_jsonl(data, [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(40)])
    plan, _ = make_plan(Request(model=str(tiny_model), data=str(data), gpu="cpu"), CPU)
    return plan, data, data.read_text()


@pytest.fixture
def planned(made: tuple[Plan, Path, str]) -> Plan:
    plan, data, text = made
    data.write_text(text)
    return plan


def again(plan: Plan, hardware: Hardware = CPU, job: Job | None = None, **words: Any) -> Rechecked:
    return recheck(plan, job or plan.job, hardware, where="plan.toml", **words)


def edited(plan: Plan, **fields: Any) -> Plan:
    recipe = {name: fields.pop(name) for name in list(fields) if name in plan.job.recipe.to_dict()}
    return replace(plan, job=replace(plan.job, recipe=replace(plan.job.recipe, **recipe), **fields))


def test_nothing_has_changed(planned: Plan) -> None:
    checked = again(planned)
    assert checked.notes == ()
    # the CPU's throughput is measured anew, memory is exact
    times = {name: getattr(planned, name) for name in ("estimate", "run_time_s", "run_energy_kwh")}
    assert replace(checked.plan, **times) == planned
    assert checked.plan.estimate.components == planned.estimate.components
    assert checked.prepared.longest_tokens <= planned.job.recipe.seq_len


def test_an_edit_that_fits_is_told_and_goes_on(planned: Plan) -> None:
    checked = again(edited(planned, rank=32, epochs=1.0))
    (note,) = checked.notes
    assert note.startswith("[job] was edited since it was planned: it needs ")
    assert checked.plan.estimate.trainable_params == 2 * planned.estimate.trainable_params
    assert (planned.steps, checked.plan.steps) == (108, 36)
    assert (checked.plan.reasons[-1], checked.plan.reason_records[-1]) == (EDITED.text, EDITED)
    # what the run's folder gets is a plan in its own right
    assert again(checked.plan).notes == ()


def test_an_edit_that_no_longer_fits_is_refused_with_the_figure(planned: Plan) -> None:
    plan = edited(planned, seq_len=512, micro_batch=4096)
    with pytest.raises(DoesNotFit) as error:
        again(plan)
    estimate = again(plan, force=True).plan.estimate
    gib, over = estimate.device_bytes / GIB, (estimate.device_bytes - int(8 * GIB * 0.85)) / GIB
    assert error.value.what.startswith(
        f"plan.toml: LoRA (fp32 base), micro-batch 4096, 512 tokens, needs {gib:.1f} GiB, {over:.1f} GiB more than "
        "usable on CPU (a CPU) (6.8 GiB); [job] was edited since it was planned: "
    )
    assert "--force" in str(error.value.fix)
    assert again(plan, force=True).notes[-1].startswith("--force: LoRA (fp32 base), micro-batch 4096")


@pytest.mark.parametrize(
    ("fields", "error", "what"),
    [
        ({"seq_len": 1024}, FileFormatError, "plan.toml: job.recipe.seq_len = 1024 is more than .* \\(512 tokens\\)"),
        ({"seq_len": 8}, Exception, "longer than 8 tokens"),
        ({"attention": "flash_attention_2", "base_dtype": "bfloat16"}, ModelError, "flash_attention_2"),
        ({"model": "qwen3-0.6b"}, ModelError, "plan.toml: made for a different model than qwen3-0.6b: "),
        ({"model": "qwen2.5-0.5"}, ModelError, "no model 'qwen2.5-0.5'"),
        ({"device": "cuda"}, ModelError, "the plan is for CPU .*, and there is no GPU here"),
    ],
)
def test_what_cannot_be_run_at_all_is_refused_even_with_force(planned: Plan, fields, error, what) -> None:
    with pytest.raises(error, match=what):
        again(edited(planned, **fields), force=True)


def test_changed_data_is_named_with_its_rows(planned: Plan) -> None:
    path = Path(str(planned.job.data))
    write_jsonl(path, [{"prompt": f"number {n}", "completion": f"it is {n} or so"} for n in range(60)])
    (note,) = again(planned).notes
    assert note == (
        "the data is not what was planned with: 54 rows to train on (36 then), 6 held out (4 then), "
        "44 tokens in the longest (38 then)"
    )
    # the same lengths in other words: only the digest tells
    write_jsonl(path, [{"prompt": f"member {n}", "completion": f"it is {n}"} for n in range(40)])
    (note,) = again(planned).notes
    assert "36 rows to train on (36 then)" in note


def test_other_data_by_option_is_told_too(planned: Plan, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": f"{n}", "completion": "x"} for n in range(20)])
    checked = again(planned, job=replace(planned.job, data=str(other)))
    assert [note.partition(":")[0] for note in checked.notes] == ["the data is not what was planned with"]
    assert checked.plan.steps == 54


def test_data_is_read_as_the_plan_maps_it(planned: Plan, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"q": f"{n}", "a": "x"} for n in range(20)])
    job = replace(planned.job, data=str(other))
    with pytest.raises(DataError, match="columns 'q', 'a' have no known shape"):
        again(planned, job=job)
    assert again(planned, job=replace(job, mapping="prompt=q,completion=a")).plan.steps == 54


def on_gpu(plan: Plan, **fields: Any) -> Plan:
    estimate: Estimate = replace(plan.estimate, available_bytes=int(11.5 * GIB))
    job = replace(plan.job, device="cuda")
    return replace(plan, job=job, inputs=None, estimate=estimate, **fields)


def test_another_gpu_and_less_memory_are_named_and_who_holds_it(planned: Plan) -> None:
    holder = GpuProcess(pid=4321, name="python", used_bytes=5 * GIB)
    gpu = replace(RTX, free_bytes=6 * GIB, processes=(GpuProcess(pid=1, used_bytes=GIB), holder))
    notes = again(on_gpu(planned, card="NVIDIA L4"), Hardware(host=HOST, gpus=(gpu,))).notes
    assert "planned for NVIDIA L4, and this is NVIDIA GeForce RTX 3060" in notes
    assert "less memory than planned for: 5.8 GiB usable now, 11.5 GiB then; python (pid 4321) holds 5.0 GiB" in notes


def test_the_same_card_under_nvml_s_name_and_with_its_usual_memory_is_no_other(planned: Plan) -> None:
    gpu = replace(RTX, name="RTX 3060 as NVML calls it", free_bytes=RTX.free_bytes - 100 * 2**20)
    notes = again(on_gpu(planned, card=RTX.name), Hardware(host=HOST, gpus=(gpu,))).notes
    assert not [note for note in notes if "this is" in note or "less memory" in note]


def test_other_versions_and_another_configuration_are_named(planned: Plan, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert planned.inputs is not None
    versions = {**planned.inputs.versions, "trl": "1.0.0"}
    plan = replace(planned, inputs=replace(planned.inputs, versions=versions))
    notes = again(plan, job=replace(plan.job, model=str(model))).notes
    assert "the model's configuration has changed since the plan was made" in notes
    assert f"other versions than the plan was made with: trl {planned.inputs.versions['trl']} (1.0.0 then)" in notes


def test_of_a_plan_without_inputs_only_rows_and_device_are_compared(planned: Plan) -> None:
    checked = again(replace(planned, inputs=None))
    assert checked.notes == ()
    assert isinstance(checked.plan.inputs, Inputs)
    write_jsonl(Path(str(planned.job.data)), [{"prompt": f"{n}", "completion": "x"} for n in range(20)])
    (note,) = again(replace(planned, inputs=None)).notes
    assert note.startswith("the data is not what was planned with: 18 rows to train on (36 then)")


def test_a_tokenizer_of_another_model_is_refused_by_plan_and_recheck(planned: Plan, tiny_model, tmp_path) -> None:
    """Its vocabulary is larger than the embedding, and the data reaches beyond it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    what = "its tokenizer gives token \\d+, and the model has 100 embeddings"
    with pytest.raises(ModelError, match=what):
        make_plan(Request(model=str(model), data=planned.job.data, gpu="cpu"), CPU)
    shape = make_plan(Request(model=str(model), gpu="cpu"), CPU)[0].shape
    with pytest.raises(ModelError, match=what):
        again(replace(planned, job=replace(planned.job, model=str(model)), shape=shape))
