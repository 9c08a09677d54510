"""Do the examples of docs/python.md run, in their order, with a tiny model in the place of theirs?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import autoft
from autoft.errors import OptionError
from tests.conftest import write_jsonl

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the page's name, which is then a local model, and the data beside it."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "mine.jsonl", [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(24)])
    return str(tiny_model)


# Lightning 2.6 calls names that PyTorch 2.13 has renamed, and counts what it runs beside the loader
@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_the_page_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("qwen2.5-0.5b-instruct", model), str(PAGE), "exec"), names)
    assert names["same"].job.recipe == names["plan"].job.recipe
    assert len(names["losses"]) == names["plan"].steps
    assert "the setting is called rank here" in capsys.readouterr().out
    for folder in ("my-adapter", "from-accelerate", "from-lightning"):
        assert Path(folder, "adapter_model.safetensors").stat().st_size > 0


def test_an_adapter_that_vllm_does_not_load_is_refused(tiny_model) -> None:
    given = {"gpu": "rtx-3060", "seq_len": 64, "served_by": "vllm"}
    assert any("--max-lora-rank" in note for note in autoft.plan(str(tiny_model), **given, rank=32).notes)
    with pytest.raises(OptionError, match="vLLM takes no trained tokens"):
        autoft.plan(str(tiny_model), **given, new_tokens=["<a>", "<b>"])
    with pytest.raises(OptionError, match="served_by='tgi': not known"):
        autoft.plan(str(tiny_model), **{**given, "served_by": "tgi"})
