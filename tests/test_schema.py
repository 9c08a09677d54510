"""Records: exact inverses through dicts, JSON and TOML; dotted paths in errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import FileFormatError
from autoft.profiles.hardware import Gpu, GpuProcess, GpuStatus, Hardware, Host, MigInstance
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe

recipes = st.builds(
    Recipe,
    method=st.just("lora"),
    base_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    rank=st.integers(1, 4096),
    alpha=st.floats(0.1, 1e6),
    dropout=st.floats(0, 0.99),
    target_modules=st.one_of(st.just("all-linear"), st.lists(st.text(min_size=1), min_size=1).map(tuple)),
    micro_batch=st.integers(1, 1024),
    gradient_checkpointing=st.booleans(),
)
jobs = st.builds(
    Job,
    model=st.text(),
    recipe=recipes,
    data=st.one_of(st.none(), st.text()),
    max_steps=st.one_of(st.none(), st.integers(1, 10**9)),
    learning_rate=st.floats(1e-12, 10),
    seed=st.integers(0, 2**31),
)


@given(jobs)
def test_dicts_json_and_toml_round_trip(job: Job) -> None:
    assert Job.from_dict(job.to_dict()) == job
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert Job.from_toml(job.to_toml()) == job


def test_nested_tuples_of_records_round_trip() -> None:
    host = Host(cpu="x", cores=2, ram_total_bytes=1, ram_available_bytes=1, disk_path="/", disk_free_bytes=1)
    gpu = Gpu(
        name="g",
        origin="nvml",
        total_bytes=2**40,
        free_bytes=1,
        compute_capability=(8, 9),
        processes=(GpuProcess(pid=1),),
        status=GpuStatus(power_w=1.5, throttle=("heat (software)",), mig_instances=(MigInstance(uuid="MIG-1"),)),
        unknown={"ecc": "Not Supported"},
    )
    hardware = Hardware(host=host, gpus=(gpu, gpu))
    assert Hardware.from_dict(hardware.to_dict()) == hardware
    assert Hardware.from_toml(hardware.to_toml()) == hardware


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rnk", 3, "plan.toml: unknown key recipe.rnk. Did you mean rank?"),
        ("rank", "x", "plan.toml: recipe.rank = 'x': input should be a valid integer"),
        ("rank", 0, "plan.toml: recipe.rank = 0: input should be greater than 0"),
        ("rank", True, "plan.toml: recipe.rank = True: input should be a valid integer"),
        ("method", "qlorra", "plan.toml: recipe.method = 'qlorra' is not known. Did you mean qlora, lora?"),
        ("method", "qlora", "plan.toml: recipe: method qlora and a quant_type go together: set both or neither"),
        ("target_modules", 3, "plan.toml: recipe.target_modules = 3 is not known."),
    ],
)
def test_what_is_wrong_is_named_with_its_path(key: str, value: object, message: str) -> None:
    data = Job(model="m", recipe=Recipe()).to_dict()
    data["recipe"][key] = value
    with pytest.raises(FileFormatError) as error:
        Job.from_dict(data, where="plan.toml")
    assert error.value.what == message
    assert error.value.fix


def test_a_missing_key_without_default_is_named() -> None:
    with pytest.raises(FileFormatError, match=r"^p: model is missing"):
        Job.from_dict({"recipe": {}}, where="p")


def test_broken_toml_names_its_line() -> None:
    with pytest.raises(FileFormatError, match="line 2"):
        Job.from_toml('model = "m"\nrecipe = \n', where="p")
