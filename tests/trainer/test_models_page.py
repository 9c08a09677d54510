"""The page of models is of the installed transformers, names all of its classes, and quick rows come out again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") > 4}
SCRIPT = ROOT / "docs" / "models_table.py"
# One of each kind: trains, by each loss and with towers; refused as what it is; broken by its own defaults
QUICK = ("llama", "opt", "falcon", "lfm2_vl", "bert-generation", "bart", "paligemma", "ministral")


def test_the_page_names_every_model_type_of_this_transformers() -> None:
    spec = importlib.util.spec_from_file_location("models_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    ROWS.pop("model type", None)
    assert list(ROWS) == table.model_types(), "python docs/models_table.py"
    assert f"transformers {transformers.__version__}," in PAGE
    assert {row.split("|")[3].strip() for row in ROWS.values()} == {"trains", "refused", "no default"}


def test_quick_rows_are_what_the_command_makes() -> None:
    words = [sys.executable, str(SCRIPT), "--check", *QUICK]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
