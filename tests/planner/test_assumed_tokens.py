"""Plans of a catalogue model whose tokenizer cannot be fetched: lengths are assumed and said so; no run takes them."""

from __future__ import annotations

import json
import math

import pytest

from autoft.errors import HubError
from autoft.planner.plan.make import ask
from autoft.planner.request import Request
from autoft.planner.search.assumed_tokens import BYTES_PER_TOKEN, prepare_assumed
from autoft.profiles.hardware import Hardware
from autoft.trainer.sources.resolve import resolve
from tests.planner.test_several_gpus import HOST

MODEL = "smollm2-135m"
OPTIONS = {"eval_rows": 2, "max_tokens": 512, "mapping": None, "thinking": "auto"}
NOWHERE = Hardware(host=HOST, gpus=())


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no hub"))


def test_lengths_are_bytes_over_the_assumed_rate(tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "p" * 30 * n, "completion": "c" * 60 * n} for n in range(1, 11)]
    data.write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare_assumed(resolve(MODEL), str(data), None, dict(OPTIONS))
    answers = [row["completion"] for row in rows]
    for example in prepared.train.examples:
        answer = max(a for a in answers if len(a) < example.trained_tokens * BYTES_PER_TOKEN)
        # the end of a turn is trained, too, and the prompt is half as long as the answer
        assert len(answer) < example.trained_tokens * BYTES_PER_TOKEN < len(answer) + 30
        assert len(example.input_ids) > 1.5 * len(answer) / BYTES_PER_TOKEN
    assert prepared.notes(512)[0].endswith("lengths are assumed: a token for every 3 bytes of text")


def test_rows_are_left_out_by_assumed_lengths(tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "p", "completion": "c" * n} for n in (30, 60, 90, 3 * 512 + 3)]
    data.write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare_assumed(resolve(MODEL), str(data), None, OPTIONS | {"eval_rows": 0})
    assert len(prepared.train.too_long) == 1
    assert max(len(e.input_ids) for e in prepared.train.examples) < 512 // BYTES_PER_TOKEN + math.ceil(200 / 3)


def test_a_plan_assumes_and_a_run_does_not(data_file) -> None:
    request = Request(model=MODEL, data=str(data_file), gpu="rtx-4090")
    asked = ask(request, NOWHERE)
    assert asked.workload is not None
    assert asked.notes[0].startswith("HuggingFaceTB/SmolLM2-135M: no tokenizer here")
    with pytest.raises(HubError, match="autoft is offline"):
        ask(Request(model=MODEL, data=str(data_file), gpu="rtx-4090", assume_tokens=False), NOWHERE)
