"""A plan for other trainers: read by TRL's own parser, held against the keys of axolotl and LLaMA-Factory, compiled."""

from __future__ import annotations

import ast
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoft.errors import DataError, OptionError
from autoft.planner.export.write import CONTEXT_TRAINED, Export, export_config, write_export
from autoft.planner.plan.provenance import Inputs, job_digest
from autoft.planner.plan.record import Plan, read_plan
from tests.conftest import write_jsonl

DATA = Path(__file__).parent.parent / "data"
PLAN = read_plan(DATA / "plan-v1.toml")
KEYS = json.loads((DATA / "export_keys.json").read_text())
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": 'c: "é"'},
    {"role": "assistant", "content": "d"},
]
ROWS: dict[str, list[Any]] = {
    "pairs": [{"question": f"number {n}", "answer": f"it is {n}"} for n in range(40)],
    "turns": [{"messages": [*TURNS[:-1], {"role": "assistant", "content": str(n)}]} for n in range(40)],
    "text": [{"text": f"text {n}"} for n in range(40)],
}
CHANGES: dict[str, dict[str, Any]] = {
    "lora": {"use_rslora": True},
    "qlora": {"method": "qlora", "quant_type": "nf4", "double_quant": True, "packing": True, "alpha": 16.5},
    "int8": {"method": "qlora", "quant_type": "int8", "base_dtype": "float16", "optimizer": "paged_adamw_8bit"},
    "offloaded": {"gradient_checkpointing": True, "offload_checkpoints": True, "target_modules": ("q_proj", "v_proj")},
    "full": {"method": "full", "autocast": True, "gradient_checkpointing": True},
    "dft": {"objective": "dft"},
    "pissa": {"init": "pissa_niter_16", "lora_plus_ratio": 16.0},
    "float32": {"base_dtype": "float32", "autocast": False, "loss": "selected", "optimizer": "adamw_8bit"},
}
CASES = [
    ("lora", "pairs"),
    ("qlora", "turns"),
    ("int8", "text"),
    ("offloaded", "turns"),
    ("full", "turns"),
    ("dft", "pairs"),
    ("pissa", "pairs"),
    ("float32", "pairs"),
]


def a_plan(folder: Path, change: str, rows: str, **job: Any) -> Plan:
    data = write_jsonl(folder / "rows.jsonl", ROWS[rows])
    recipe = replace(PLAN.job.recipe, **CHANGES[change])
    return replace(PLAN, job=replace(PLAN.job, recipe=recipe, data=str(data), **job))


def exported(folder: Path, tool: str, change: str, rows: str, **job: Any) -> tuple[Export, Path]:
    out = folder / ("x.py" if tool == "unsloth" else "x.yaml")
    export = export_config(a_plan(folder, change, rows, **job), tool, out, where="plan.toml")
    write_export(export)
    return export, out


# the key that TRL 1.16 documents, which transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("change", "rows"), CASES)
def test_trl_s_own_parser_reads_it_and_finds_the_data(tmp_path: Path, change: str, rows: str) -> None:
    from datasets import load_dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_peft_config

    export, out = exported(tmp_path, "trl", change, rows, accumulation=3, max_steps=7)
    recipe = replace(PLAN.job.recipe, **CHANGES[change])
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    # bf16 without a GPU is refused when the arguments are made, for the machine that the test is on
    script, args, model, _ = parser.parse_args_and_config(["--config", str(out), "--use_cpu", "true"])
    assert model.model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (model.dtype, model.attn_implementation) == (recipe.weights_dtype, "sdpa")
    assert (model.load_in_4bit, model.load_in_8bit) == (recipe.quant_type == "nf4", recipe.quant_type == "int8")
    assert model.use_bnb_nested_quant == recipe.double_quant
    adapter = get_peft_config(model)
    assert (adapter is None) == (change == "full")
    if adapter is not None:
        assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (16, round(recipe.alpha), 0.0)
        assert adapter.use_rslora == recipe.use_rslora
        assert adapter.target_modules in ("all-linear", {"q_proj", "v_proj"})
    assert (args.max_length, args.packing, args.pad_to_multiple_of) == (256, recipe.packing, 16)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 3)
    assert (args.num_train_epochs, args.max_steps, args.learning_rate) == (3.0, 7, 2e-4)
    assert (args.lr_scheduler_type, args.warmup_steps, args.optim) == ("cosine", 1, recipe.optimizer)
    assert (args.bf16, args.fp16) == (change not in ("int8", "float32"), change == "int8")
    assert args.gradient_checkpointing == recipe.gradient_checkpointing
    assert args.loss_type == ("dft" if change == "dft" else "nll")
    assert args.assistant_only_loss == (rows == "turns")
    assert args.report_to == []
    data = load_dataset(script.dataset_name, cache_dir=str(tmp_path / "cache"))
    assert (len(data[script.dataset_train_split]), len(data[script.dataset_test_split])) == (36, 4)
    columns = {"pairs": ["prompt", "completion"], "turns": ["messages"], "text": ["text"]}
    assert data["train"].column_names == columns[rows]
    assert export.command == f"trl sft --config {out}"


@pytest.mark.parametrize(("change", "rows"), CASES)
def test_axolotl_and_llamafactory_know_every_key(tmp_path: Path, change: str, rows: str) -> None:
    from transformers import Seq2SeqTrainingArguments

    _, out = exported(tmp_path, "axolotl", change, rows, max_steps=7)
    config = yaml.safe_load(out.read_text())
    keys = KEYS["axolotl 0.19.0"]
    assert set(config) <= set(keys["config"])
    for dataset in (*config["datasets"], *config["test_datasets"]):
        assert set(dataset) <= set(keys["dataset"])
        assert Path(dataset["path"]).is_file()
    assert config.get("adapter") == {"qlora": "qlora", "full": None}.get(change, "lora")
    assert (config["sequence_len"], config["sample_packing"], config["num_epochs"]) == (256, change == "qlora", 3.0)

    _, out = exported(tmp_path, "llamafactory", change, rows)
    config = yaml.safe_load(out.read_text())
    keys = KEYS["llamafactory 0.9.5"]
    training = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert set(config) <= set(keys["arguments"]) | training
    assert config.get("quantization_bit") == {"qlora": 4, "int8": 8}.get(change)
    assert config["finetuning_type"] == ("full" if change == "full" else "lora")
    assert config["stage"] == ("pt" if rows == "text" else "sft")
    assert config.get("use_dft_loss") == (True if change == "dft" else None)
    info = json.loads((Path(config["dataset_dir"]) / "dataset_info.json").read_text())
    assert set(info) == {config["dataset"], config["eval_dataset"]}
    for entry in info.values():
        assert set(entry) <= set(keys["dataset_info"])
        assert set(entry["columns"]) <= set(keys["columns"])
        assert set(entry.get("tags", {})) <= set(keys["tags"])
        assert (Path(config["dataset_dir"]) / entry["file_name"]).is_file()


def _is_plain(value: ast.expr) -> bool:
    return not isinstance(value, (ast.Name, ast.Subscript))


@pytest.mark.parametrize(("change", "rows"), CASES)
def test_the_unsloth_script_compiles_and_says_what_the_plan_says(tmp_path: Path, change: str, rows: str) -> None:
    _, out = exported(tmp_path, "unsloth", change, rows)
    tree = ast.parse(out.read_text(encoding="utf-8"))
    said = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        said |= {word.arg: ast.literal_eval(word.value) for word in call.keywords if _is_plain(word.value)}
    recipe = replace(PLAN.job.recipe, **CHANGES[change])
    assert (said["max_seq_length"], said["full_finetuning"]) == (256, change == "full")
    assert (said.get("r"), said.get("lora_alpha")) == ((None, None) if change == "full" else (16, recipe.alpha))
    assert (said["load_in_4bit"], said["load_in_8bit"]) == (recipe.quant_type == "nf4", recipe.quant_type == "int8")
    assert said["warmup_steps"] == 1  # 3 % of 27 steps, rounded up as the trainer does
    assert said["data_files"] == {s: str(tmp_path / "x-data" / f"{s}.jsonl") for s in ("train", "test")}


def test_what_a_tool_cannot_express_stands_at_its_top(tmp_path: Path) -> None:
    job = {"max_new_tokens": 64, "group_by_length": True}
    for tool, note in (
        ("trl", "# - offload_checkpoints = true has no key here"),
        ("trl", "# - rows longer than 256 tokens are cut at their end: autoft leaves them out"),
        ("unsloth", "# - group_by_length = true has no key here"),
        ("llamafactory", "# - a conversation in which user and assistant do not alternate is skipped"),
        ("unsloth", "# - kernels, loss and checkpointing are unsloth's own"),
    ):
        _, out = exported(tmp_path, tool, "offloaded", "turns", **job)  # type: ignore[arg-type]
        assert note in out.read_text().splitlines()
        assert all(len(line) <= 102 for line in out.read_text().splitlines() if line.startswith("#"))
    minimised = '# - objective = "dft" has no key here'
    for tool, rows, is_noted in (
        ("trl", "text", False),
        ("llamafactory", "pairs", False),
        ("llamafactory", "text", True),
        ("axolotl", "pairs", True),
        ("unsloth", "pairs", True),
    ):
        _, out = exported(tmp_path, tool, "dft", rows)
        assert (minimised in out.read_text().splitlines()) == is_noted
    _, out = exported(tmp_path, "axolotl", "qlora", "turns")
    assert "# - lora_alpha 16.5 is written as 16: it takes whole numbers only" in out.read_text().splitlines()


def test_the_rows_are_autoft_s_own_split_in_one_shape(tmp_path: Path) -> None:
    export, _ = exported(tmp_path, "axolotl", "lora", "pairs")
    rows = [json.loads(line) for line in (tmp_path / "x-data" / "train.jsonl").read_text().splitlines()]
    heldout = [json.loads(line) for line in (tmp_path / "x-data" / "test.jsonl").read_text().splitlines()]
    assert (len(rows), len(heldout)) == (36, 4)
    questions = {row["messages"][0]["content"] for row in (*rows, *heldout)}
    assert questions == {f"number {n}" for n in range(40)}
    assert {tuple(m["role"] for m in row["messages"]) for row in rows} == {("user", "assistant")}
    assert next(iter(export.files)).name == "x.yaml"


def test_an_edited_plan_says_that_its_figures_are_of_before(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, "lora", "pairs")
    plan = replace(plan, inputs=Inputs(job_sha256=job_digest(plan.job)))
    edited = replace(plan, job=replace(plan.job, epochs=1.0))
    told = [
        [note for note in export_config(p, "trl", tmp_path / "x.yaml", where="").notes if "was edited" in note]
        for p in (plan, edited)
    ]
    assert [len(notes) for notes in told] == [0, 1]


def test_columns_that_the_plan_maps_are_written_as_mapped(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, "lora", "pairs")
    write_jsonl(tmp_path / "rows.jsonl", [{"q": f"{n}", "a": f"is {n}", "b": "!"} for n in range(40)])
    plan = replace(plan, job=replace(plan.job, mapping="prompt=q,completion={a}{b}"))
    files = export_config(plan, "trl", tmp_path / "x.yaml", where="plan.toml").files
    row = json.loads(files[tmp_path / "x-data" / "train.jsonl"].splitlines()[0])
    assert row["completion"] == [{"role": "assistant", "content": f"is {row['prompt'][0]['content']}!"}]


def test_context_and_tools_of_rows_are_written_or_said(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, "lora", "pairs")
    ask, no = {"role": "user", "content": "q"}, {"role": "assistant", "content": "no", "train": False}
    rows = [
        {"messages": [ask, no, ask, {"role": "assistant", "content": str(n)}], "tools": [{"name": "f"}]}
        for n in range(9)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for tool, expected in (("trl", 0), ("axolotl", 1)):
        export = export_config(plan, tool, tmp_path / "x.yaml", where="plan.toml")
        assert export.notes.count(CONTEXT_TRAINED) == expected
        row = json.loads(export.files[tmp_path / "x-data" / "train.jsonl"].splitlines()[0])
        assert row["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert no in row["messages"]


def test_odd_names_and_missing_data(tmp_path: Path) -> None:
    odd = tmp_path / 'na: "mé" #1'
    odd.mkdir()
    _, out = exported(odd, "axolotl", "lora", "pairs")
    assert Path(yaml.safe_load(out.read_text(encoding="utf-8"))["datasets"][0]["path"]).is_file()
    _, script = exported(odd, "unsloth", "lora", "pairs")
    ast.parse(script.read_text(encoding="utf-8"))
    plan = a_plan(tmp_path, "lora", "pairs")
    with pytest.raises(OptionError, match=r"plan\.toml: the plan names no data to train on"):
        export_config(replace(plan, job=replace(plan.job, data=None)), "trl", tmp_path / "x", where="plan.toml")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl: no such file"):
        export_config(plan, "trl", tmp_path / "x", where="plan.toml")
