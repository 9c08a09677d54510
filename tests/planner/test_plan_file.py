"""The plan file: whatever is in a plan comes back from its text, older files load the same, comments say why."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoft.errors import FileFormatError
from autoft.planner.alternative import Alternative
from autoft.planner.estimate import Correction, Estimate, Range, Ratio, Source
from autoft.planner.facts import Assumption, Reason
from autoft.planner.plan.provenance import Inputs, data_digest, job_digest
from autoft.planner.plan.record import Plan, read_plan, write_plan
from autoft.planner.search.hyperparameters import Rows, schedule
from autoft.planner.workload import Workload
from autoft.trainer.adapters import ADAPTERS
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe

OLD = Path(__file__).parent.parent / "data" / "plan-v1.toml"
PLAN = read_plan(OLD)

# Anything that a name, a path or a sentence may hold: quotes, newlines, other scripts, C:\paths, control characters
TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    [
        "", '"""', "'''", "a\nb = 1", "# no comment", "\\", r"C:\new\table\u1234", "naïve 数据.jsonl", "\r\n",
        "\x00\x1b\x7f", "]",
    ]
)  # fmt: skip
WHOLE = st.integers(1, 2**62)
REAL = st.floats(1e-300, 1e300)
FIGURES = st.dictionaries(TEXT, st.integers(0, 2**62) | REAL | TEXT, max_size=2)
RANGES = st.builds(Range, lower=REAL, upper=REAL)
BYTES = st.dictionaries(TEXT, WHOLE, max_size=3)
RECIPES = st.one_of(
    st.builds(
        Recipe,
        method=st.just("lora"),
        rank=WHOLE,
        alpha=REAL,
        dropout=st.floats(0, 0.99),
        target_modules=st.just("all-linear") | st.lists(TEXT, max_size=3).map(tuple),
        micro_batch=WHOLE,
        gradient_checkpointing=st.booleans(),
    ),
    st.builds(Recipe, method=st.just("qlora"), quant_type=st.sampled_from(["nf4", "fp4"]), double_quant=st.booleans()),
    st.just(Recipe(method="full")),
)
ESTIMATES = st.builds(
    replace,
    st.just(PLAN.estimate),
    components=BYTES,
    phases=BYTES,
    step_time_s=RANGES,
    step_energy_wh=st.none() | RANGES,
    assumptions=st.lists(TEXT, max_size=2).map(tuple),
    assumption_records=st.lists(
        st.builds(Assumption, kind=st.just("time"), basis=TEXT, text=TEXT, figures=FIGURES), max_size=2
    ).map(tuple),
    fits=st.sampled_from(["yes", "tight", "no"]),
    device_bytes=WHOLE,
)
RATIOS = st.builds(
    Ratio,
    median=REAL,
    least=REAL,
    most=REAL,
    same_recipe=st.booleans(),
    sources=st.lists(st.builds(Source, at=TEXT, model=TEXT, ratio=REAL), max_size=2).map(tuple),
)
CORRECTIONS = st.builds(
    Correction,
    memory=st.none() | RATIOS,
    device_bytes=st.none() | WHOLE,
    time=st.none() | RATIOS,
    step_time_s=st.none() | RANGES,
    exhausted=st.lists(TEXT, max_size=2).map(tuple),
)
PLANS = st.builds(
    Plan,
    autoft_version=TEXT,
    target=TEXT,
    card=TEXT.filter(bool),
    prefer=TEXT,
    preset=st.none() | TEXT,
    reasons=st.lists(TEXT | TEXT.map("rank {}".format), max_size=3).map(tuple),
    reason_records=st.lists(st.builds(Reason, key=TEXT, text=TEXT, figures=FIGURES), max_size=2).map(tuple),
    notes=st.lists(TEXT, max_size=2).map(tuple),
    pruned=st.lists(TEXT, max_size=2).map(tuple),
    steps=st.none() | WHOLE,
    run_time_s=st.none() | RANGES,
    run_energy_kwh=st.none() | RANGES,
    job=st.builds(
        Job,
        model=TEXT,
        recipe=RECIPES,
        data=st.none() | TEXT,
        max_steps=st.none() | WHOLE,
        accumulation=WHOLE,
        learning_rate=REAL,
        seed=st.integers(0, 2**32 - 1),
    ),
    estimate=ESTIMATES,
    shape=st.builds(replace, st.just(PLAN.shape), name=TEXT),
    workload=st.none() | st.builds(replace, st.just(PLAN.workload), mean_tokens=REAL, rows=WHOLE),
    hardware=st.just(PLAN.hardware),
    alternatives=st.lists(
        st.builds(Alternative, role=st.just("rejected"), recipe=RECIPES, estimate=ESTIMATES, reason=TEXT), max_size=2
    ).map(tuple),
    correction=st.none() | CORRECTIONS,
    inputs=st.none() | st.builds(Inputs, job_sha256=TEXT, versions=st.dictionaries(TEXT, TEXT, max_size=2)),
)
LORA = ADAPTERS["lora"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PLANS)
def test_a_plan_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    file = tmp_path_factory.getbasetemp() / "plan.toml"
    write_plan(plan, file)
    assert read_plan(file) == plan


def test_a_file_of_before_inputs_were_written_loads_the_same() -> None:
    raw = tomllib.loads(OLD.read_text(encoding="utf-8"))
    assert "inputs" not in raw
    assert PLAN.inputs is None
    assert PLAN.job == Job(
        model="starter",
        data="mine.jsonl",
        device="cuda",
        epochs=3.0,
        accumulation=4,
        max_new_tokens=16,
        recipe=Recipe(autocast=True, micro_batch=1, seq_len=256),
    )
    assert PLAN.estimate.device_bytes == 1_124_073_472
    assert isinstance(PLAN.estimate, Estimate)
    assert isinstance(PLAN.workload, Workload)
    assert [a.reason.split(";")[0] for a in PLAN.alternatives] == [
        "fits in 898 MiB",
        "fits in 900 MiB",
        "fits in 760 MiB",
    ]


def test_a_file_name_that_is_not_unicode_is_refused_in_one_line() -> None:
    with pytest.raises(FileFormatError) as error:
        Job.from_dict({"model": "m", "data": "rows\udcff.jsonl", "recipe": {}}, where="--set")
    assert str(error.value) == (
        "--set: a text in it is not Unicode, such as a file name in another encoding\nTo fix: rename that file"
    )


def test_a_version_that_is_newer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(OLD.read_text(encoding="utf-8").replace("schema_version = 1", "schema_version = 9"))
    with pytest.raises(FileFormatError, match="schema_version 9 is newer than this autoft reads"):
        read_plan(file)


def test_what_a_person_wants_comes_first_with_its_reasons() -> None:
    text = PLAN.to_toml()
    sections = [line for line in text.splitlines() if line.startswith("[")]
    assert sections[:3] == ["[job]", "[job.recipe]", "[estimate]"]
    assert text.startswith("# starter on NVIDIA GeForce RTX 3060 (12.0 GiB)\n")
    lines = text.splitlines()
    method = next(n for n, line in enumerate(lines) if line.startswith('method = "lora"  # '))
    assert "not QLoRA (NF4), micro-batch 1: fits in 900 MiB" in lines[method - 1]
    assert "accumulation = 4  # micro-batches in an optimizer step: 1 x 4 rows" in lines
    assert "device_bytes = 1124073472  # 1.0 GiB" in lines
    assert max(len(line) for line in lines if line.startswith("#")) <= 100


def test_a_full_fine_tune_has_no_lines_of_an_adapter() -> None:
    plan = replace(PLAN, job=replace(PLAN.job, recipe=Recipe(method="full")))
    recipe = tomllib.loads(plan.to_toml())["job"]["recipe"]
    assert not {"rank", "alpha", "target_modules"} & set(recipe)
    assert recipe["method"] == "full"


@pytest.mark.parametrize("text", ["half of it\ndiverged (source)", "4-bit base, needed to fit: it is not about that"])
@pytest.mark.parametrize("key", ["learning_rate", "rank", "epochs", "method", "gradient_checkpointing"])
def test_a_reason_stands_at_the_line_that_its_key_names_whatever_its_words(key: str, text: str) -> None:
    reason = Reason(key=key, text=text)
    lines = replace(PLAN, reasons=(text,), reason_records=(reason,), alternatives=()).to_toml().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"{key} = "))
    assert lines[at - 1] == f"# {' '.join(text.split())}"
    assert [line for line in lines if line.startswith("# ") and " ".join(text.split()) in line] == [lines[at - 1]]


@pytest.mark.parametrize("name", ["plan-v1.toml", "plan-v1-sentences.toml"])
def test_files_from_before_there_were_records_load_with_their_card(name: str) -> None:
    plan = read_plan(OLD.with_name(name))
    assert plan.reasons
    assert plan.estimate.assumptions
    assert (plan.reason_records, plan.estimate.assumption_records) == ((), ())
    assert plan.card == "NVIDIA GeForce RTX 3060"
    assert Plan.from_toml(plan.to_toml()) == plan


@pytest.mark.parametrize("rows", [2000, 36])
def test_the_planner_s_own_reasons_find_their_lines(rows: int) -> None:
    workload = replace(PLAN.workload, rows=rows) if PLAN.workload else None
    lengths = tuple(40 + n % 200 for n in range(rows))
    _, sources = schedule(False, workload, Rows(lengths, 256, False), 256, adapter=LORA)
    assert set(sources) >= {"learning_rate", "epochs", "accumulation"}
    lines = replace(PLAN, reason_records=tuple(sources.values()), alternatives=()).to_toml().splitlines()
    for key in sources:
        at = next(n for n, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# "), key


def test_the_digest_of_a_job_tells_an_edit_and_not_a_default_written_out() -> None:
    job = Job(model="m", recipe=Recipe())
    assert job_digest(job) == job_digest(Job.from_dict(job.to_dict()))
    assert job_digest(job) != job_digest(replace(job, epochs=2.0))
    assert job_digest(job) != job_digest(replace(job, recipe=Recipe(rank=8)))


def test_the_digest_of_data_is_the_file_s_own_and_that_of_a_folder_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("abc")
    assert data_digest(str(tmp_path / "a.jsonl")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    whole = data_digest(str(tmp_path))
    assert whole == data_digest(str(tmp_path / "*.jsonl"))
    (tmp_path / "b.jsonl").write_text("")
    assert data_digest(str(tmp_path)) != whole
    assert data_digest(None) is data_digest("owner/name") is data_digest(str(tmp_path / "none*")) is None
