"""`autoft data check` as a user runs it: what is shown, exit codes, the cleaned copy, and bad input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from autoft.cli.show_data import show_report
from autoft.trainer.data.check.examine import check
from tests.conftest import Done, write_jsonl

BROKEN = {"messages": [{"role": "user", "content": "a"}]}


def assert_refused(done: Done, *parts: str) -> None:
    assert done.code == 2
    assert done.err.splitlines()[-2].startswith("Error: ")
    assert done.err.splitlines()[-1].startswith("To fix: ")
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(5)
    ]
    return write_jsonl(tmp_path / "faulty.jsonl", [*rows, BROKEN, rows[0]])


def test_good_data_exits_with_0_and_marks_what_is_trained(autoft, data_file) -> None:
    done = autoft("data", "check", data_file)
    assert done.code == 0
    assert done.err == ""
    for part in ("ready to train", "40 (40 usable)", "prompt/completion, 100%", "assistant: «it is 0»"):
        assert part in done.out
    assert "Errors" not in done.out


def test_faults_exit_with_2_after_the_whole_report(autoft, faulty) -> None:
    done = autoft("data", "check", faulty)
    assert done.code == 2
    for part in (
        "errors would stop a run",
        "the conversation ends with the user",
        "faulty.jsonl:6",
        "faulty.jsonl:7 = faulty",
    ):
        assert part in " ".join(done.out.split())


def test_json_is_the_report(autoft, faulty) -> None:
    done = autoft("data", "check", faulty, "--json")
    assert done.code == 2
    report = json.loads(done.out)
    assert report["usable"] is False
    assert report["rows"] == 7
    assert report["usable_rows"] == 6
    assert report["findings"][0]["places"] == [f"{faulty}:6"]


def test_fix_writes_what_a_second_check_finds_good(autoft, faulty, tmp_path) -> None:
    out = tmp_path / "clean.jsonl"
    done = autoft("data", "check", faulty, "--fix", out)
    assert done.code == 0
    assert "1 broken, 1 duplicate" in " ".join(done.out.split())
    again = autoft("data", "check", out, "--json")
    assert again.code == 0
    assert json.loads(again.out)["rows"] == 5
    assert json.loads((tmp_path / "clean.jsonl.report.json").read_text(encoding="utf-8"))["kept"] == 5
    assert_refused(autoft("data", "check", faulty, "--fix", out), "clean.jsonl is there already")


def test_with_a_model_tokens_are_real(autoft, data_file, tiny_model) -> None:
    done = autoft("data", "check", data_file, "--model", tiny_model)
    assert done.code == 0
    assert "<|im_start|>assistant" in done.out
    assert "«it is 0<|im_end|>»" in done.out
    assert "estimated" not in done.out
    assert "0 over 512" in done.out


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_report_fits_the_width(autoft, faulty, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = autoft("data", "check", faulty)
    assert max(map(len, done.out.splitlines())) <= width
    assert "\x1b" not in done.out


def test_bad_input_is_one_line(autoft, tmp_path, data_file) -> None:
    assert_refused(autoft("data", "check", tmp_path / "no.jsonl"), "no.jsonl: no such file")
    assert_refused(autoft("data", "check", data_file, "--eval-data", tmp_path / "no.jsonl"), "no.jsonl: no such file")
    assert_refused(autoft("data", "check", data_file, "--model", "no-such-model"), "no model 'no-such-model'")
    assert_refused(autoft("data", "check", data_file, "--fix", tmp_path / "a.csv"), "the copy is JSONL")
    assert_refused(autoft("data", "chek", data_file), "data chek: not known. Did you mean check?")
    assert_refused(autoft("data", "check"), "Missing argument 'PATH'")


def test_a_model_without_a_tokenizer_cannot_count_tokens(autoft, tiny_model, data_file, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    assert_refused(autoft("data", "check", data_file, "--model", tmp_path), "has no tokenizer")


def test_without_a_model_neither_torch_nor_transformers_is_imported(data_file) -> None:
    code = (
        "import sys\nfrom autoft.cli.main import main\n"
        f"try: main(['data', 'check', {str(data_file)!r}])\nexcept SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "HEAVY []" in done.stderr, done.stderr


def test_in_a_terminal_color_marks_what_is_trained(data_file) -> None:
    shown = io.StringIO()
    show_report(
        check(str(data_file)).report, Console(file=shown, force_terminal=True, width=80, color_system="standard")
    )
    assert "\x1b[1;32mit is 0\x1b[0m" in shown.getvalue()
    assert "«" not in shown.getvalue()
