"""The evidence run for whoever has a GPU: its parts, its report, and tiny models of it on the CPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.validation.test_gpu_validate import BENCHMARKS


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "bundle"))


@pytest.fixture
def evidence() -> ModuleType:
    return importlib.import_module("gpu_evidence")


@pytest.fixture
def call(evidence, monkeypatch, capsys, tmp_path) -> Callable[..., tuple[dict[str, Any] | None, str, str]]:
    """A call of the script: the record that it leaves, and what it prints to standard output and error."""

    def run(*words: str) -> tuple[dict[str, Any] | None, str, str]:
        out = tmp_path / "new folder" / "evidence.json"
        monkeypatch.setattr(sys, "argv", ["gpu_evidence.py", "--smoke", "--out", str(out), *words])
        evidence.main()
        printed = capsys.readouterr()
        return json.loads(out.read_text()) if out.exists() else None, printed.out, printed.err

    return run


def test_twenty_recipes_are_measured_and_each_card_size_has_a_plan(evidence) -> None:
    parts, validate = importlib.import_module("gpu_parts"), importlib.import_module("gpu_validate")
    assert len(set(parts.RECIPES)) == 21
    assert set(parts.RECIPES) <= {case["id"] for case in validate.read_cases()}
    assert [case.cap_gib for case in parts.CAPPED] == [8, 12, 16, 24]
    assert set(parts.PARTS) == set(evidence.SHARES)
    assert sum(evidence.SHARES.values()) == pytest.approx(1)


def test_without_time_no_part_is_begun(call) -> None:
    record, out, err = call("--minutes", "0.1")
    assert (record, err) == (None, "")
    assert "torch" in out


def test_a_part_is_a_process_and_is_not_done_again(call) -> None:
    """Of a CPU there is no CUDA context to measure, which is soon done."""
    record, _, err = call("--parts", "c", "--minutes", "10")
    assert record is not None
    assert (record["parts"]["c"]["state"], record["parts"]["c"]["pieces"]) == ("done", {})
    assert err.startswith("c: done, 0 measured")
    again, _, err = call("--parts", "c", "--minutes", "10")
    assert (again, err) == (record, "")


@pytest.mark.slow
def test_recipes_are_measured_one_by_one_and_what_failed_is_tried_again(call, tmp_path) -> None:
    record, out, err = call("--parts", "b", "--minutes", "20")
    assert record is not None
    pieces = record["parts"]["b"]["pieces"]
    assert set(pieces) == {"tiny-lora", "tiny-qlora"}
    for piece in pieces.values():
        assert piece["measured"]["step_time_s"] > 0
        assert 0.3 < piece["predicted"]["peak_allocated_bytes"] / piece["measured"]["peak_allocated_bytes"] < 1.1
    assert [line.split(":")[0] for line in err.splitlines()] == ["b  tiny-lora", "b  tiny-qlora", "b"]
    assert "2 recipes" not in out
    assert "step time in the predicted range" in out
    before = pieces["tiny-qlora"]
    pieces["tiny-lora"]["measured"], record["parts"]["b"]["state"] = {"error": "the disk was full"}, "failed in a piece"
    (tmp_path / "new folder" / "evidence.json").write_text(json.dumps(record))
    again, _, err = call("--parts", "b", "--minutes", "20")
    assert again is not None
    assert again["parts"]["b"]["pieces"]["tiny-qlora"] == before
    assert "step_time_s" in again["parts"]["b"]["pieces"]["tiny-lora"]["measured"]
    assert [line.split(":")[0] for line in err.splitlines()] == ["b  tiny-lora", "b"]
    piece = again["parts"]["b"]["pieces"]["tiny-lora"]
    known, piece["predicted"]["peak_allocated_bytes"] = piece["predicted"]["peak_allocated_bytes"], 1
    (tmp_path / "new folder" / "evidence.json").write_text(json.dumps(again))
    predicted, _, err = call("--predict")
    assert predicted is not None
    assert predicted["parts"]["b"]["pieces"]["tiny-lora"]["predicted"]["peak_allocated_bytes"] == known
    assert [line.split(":")[0] for line in err.splitlines()] == ["b  tiny-lora", "b  tiny-qlora"]


def test_another_card_or_other_versions_need_another_file(call, tmp_path) -> None:
    record, *_ = call("--parts", "c", "--minutes", "10")
    assert record is not None
    record["versions"]["torch"] = "1.0"
    (tmp_path / "new folder" / "evidence.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"with other versions: .*1\.0"):
        call("--parts", "c", "--minutes", "10")


def test_an_unknown_part_is_refused(call, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("--parts", "b,x")
    assert stopped.value.code == 2
    assert "no part x" in capsys.readouterr().err


def test_what_failed_is_tried_again(evidence) -> None:
    assert evidence._failed({"error": "no disk"})
    assert evidence._failed({"measured": {"error": "no disk"}})
    assert evidence._failed({"runs": [{"measured": {}}, {"measured": {"error": "no disk"}}]})
    assert not evidence._failed({"measured": {"died_in": "load"}})


def test_the_report_has_predicted_beside_measured_and_what_lived_and_died() -> None:
    report = importlib.import_module("gpu_report").report
    gib = 2**30
    measured = {
        "peak_allocated_bytes": 4 * gib, "peak_reserved_bytes": 5 * gib, "device_bytes": 6 * gib, "step_time_s": 0.5,
        "phases": {"load": gib},
    }  # fmt: skip
    predicted = {
        **measured, "peak_allocated_bytes": 4.04 * gib, "fits": "yes", "step_time_s": {"lower": 0.4, "upper": 0.9},
        "phases": {"load": gib}, "context_bytes": gib,
    }  # fmt: skip
    runs = [
        {"candidate": "small", "predicted": {"fits": "yes"}, "measured": {}, "as_told": True},
        {"candidate": "large", "predicted": {"fits": "no"}, "measured": {"died_in": "load"}, "as_told": True},
    ]
    stage = {"after": "products", "nvml_bytes": 300 * 2**20, "error": None}
    recovered = {"event": "recovered", "step": 6, "micro_batch": 4}
    pieces = {
        "a": {"doctor": {"findings": [{"name": "driver", "status": "failed", "found": "too old"}]}},
        "b": {"one": {"case": {"id": "one"}, "cap_gib": None, "predicted": predicted, "measured": measured}},
        "c": {"context": {"stages": [stage], "assumed_bytes": 512 * 2**20}},
        "d": {"8 GiB": {"runs": runs}},
        "e": {
            "killed": {
                "killed_after_step": 3, "code": 0, "steps": 8, "events": [recovered], "predicted": {"peak_bytes": gib},
                "measured": {"peak_bytes": gib},
            }
        },
        "f": {"lora": {"ratio": 0.9, "pairs": [{"autoft": {"step_time_s": 0.9}, "trl": {"step_time_s": 1.0}}]}},
    }  # fmt: skip
    record = {
        "machine": {"gpus": ["a card"], "cpu": "", "driver": "580"}, "versions": {"torch": "2.14"}, "date": "today",
        "gpu": {"name": "a card"},
        "parts": {part: {"state": "done", "pieces": each} for part, each in pieces.items()},
    }  # fmt: skip
    record["parts"]["f"]["state"] = "out of time"
    lines = report(record).splitlines()
    for line in (
        "a card, driver 580, torch 2.14, today",
        "   doctor: driver failed (too old)",
        "   one: fits yes, lived, allocated 4.00 GiB +1.00%, reserved 5.00 GiB +0.00%, device 6.00 GiB +0.00%, "
        "step 0.500 s of 0.400-0.900 s",
        "   step time in the predicted range: 1 of 1 (goal 9 of 10)",
        "   context: products 300; assumed 512",
        "   8 GiB: small: fits yes, lived; large: fits no, died in load",
        "   killed: killed after step 3, exit 0 after 8 steps, out of memory in step 6, went on with micro-batch 4",
        "f  Beside TRL's own trainer (out of time)",
        "   lora: autoft 0.900 s, trl 1.000 s a step, ours / theirs 0.900",
    ):
        assert line in lines, report(record)


def test_a_bundle_holds_no_library_of_other_platforms_and_is_refused_when_it_is_too_large(tmp_path: Path) -> None:
    build = importlib.import_module("build_bundle")
    needed = build.needed("autoft")
    assert {"transformers", "trl", "bitsandbytes", "pydantic-core"} <= needed
    assert not needed & {"torch", "pyarrow", "numpy", "pandas", "python-dateutil", "pytest", "ruff"}
    assert all("==" in line for line in build.pins(needed))
    assert not set(build.THERE) ^ set(importlib.import_module("install").THERE)

    kept = [
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_cpu.so",
    ]
    others = ["bitsandbytes/libbitsandbytes_cuda118.so", "bitsandbytes/libbitsandbytes_rocm72.so"]
    record = "bitsandbytes-1.0.dist-info/RECORD"
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-any.whl"
    with build.zipfile.ZipFile(wheel, "w") as file:
        for name in (*kept, *others):
            file.writestr(name, "x")
        file.writestr(record, "".join(f"{name},sha256=0,1\n" for name in (*kept, *others, record)))
    build.trim(wheel)
    (trimmed,) = tmp_path.glob("*.whl")
    assert trimmed.name == "bitsandbytes-1.0-1cuda13-py3-none-any.whl"
    with build.zipfile.ZipFile(trimmed) as file:
        assert file.namelist() == [*kept, record]
        assert [line.split(",")[0] for line in file.read(record).decode().splitlines()] == [*kept, record]

    assert build.check_size(tmp_path) == trimmed.stat().st_size
    with (tmp_path / "large").open("wb") as large:
        large.truncate(build.MOST_BYTES)
    with pytest.raises(SystemExit, match=r"more than 64; the largest are large 64\.0"):
        build.check_size(tmp_path)
