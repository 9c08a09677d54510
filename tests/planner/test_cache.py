"""Kept answers: found again for the same question alone, never trusted when damaged, never stale."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import autoft.planner
import autoft.trainer
from autoft.planner.estimate import Estimate, Range
from autoft.planner.plan import cached_estimates, disk_cache
from autoft.planner.plan.cached_estimates import Kept, Question, ask, keep, recall
from autoft.planner.request import Request
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Gpu, GpuProcess, GpuStatus, Hardware
from autoft.trainer.recipe import Recipe
from tests.support.machines import HOST
from tests.support.machines import NO_GPU as CPU

GIB = 2**30
LIVE = replace(gpu_from_profile("rtx-3060"), origin="nvml", index=0, uuid="GPU-1")
REQUEST = Request(model="tinyllama-1.1b-chat-v1.0", gpu="rtx-4090", seq_len=512)
ESTIMATE = Estimate(
    method="rehearsal",
    peak_allocated_bytes=4 * GIB,
    peak_reserved_bytes=5 * GIB,
    device_bytes=6 * GIB,
    available_bytes=22 * GIB,
    fits="yes",
    components={"weights": 4 * GIB},
    phases={"load": 4 * GIB},
    step_time_s=Range(lower=1.0, upper=2.0),
    tokens_per_s=100.0,
    trainable_params=1,
    total_params=2,
    assumptions=("a",),
)
KEPT = Kept(Recipe(), ESTIMATE)


def asked(request: Request = REQUEST, hardware: Hardware = CPU) -> Question:
    question = ask(request, hardware)
    assert question is not None
    return question


def entry(question: Question) -> Path:
    return cached_estimates.SHELF.path(question.key)


def gpu_here(free_gib: float, **changes: object) -> Hardware:
    gpu: Gpu = replace(LIVE, free_bytes=int(free_gib * GIB), **changes)  # type: ignore[arg-type]
    return Hardware(host=HOST, gpus=(gpu,))


def test_an_answer_is_found_again_as_it_was() -> None:
    assert recall(asked()) is None
    keep(asked(), KEPT)
    found = recall(asked())
    assert found is not None
    assert found.recipe == KEPT.recipe
    assert found.estimate == replace(ESTIMATE, available_bytes=asked().target.available_bytes)
    assert recall(asked(), explained=True) is None
    keep(asked(), replace(KEPT, explanation=({"figure": "x", "bytes": 1},)))
    explained = recall(asked(), explained=True)
    assert explained is not None
    assert explained.explanation == ({"figure": "x", "bytes": 1},)
    assert recall(asked()) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"model": "qwen2.5-0.5b-instruct"},
        {"gpu": "rtx-3090"},
        {"gpu": "rtx-4080"},
        {"vram_gib": 24.0},
        {"seq_len": 513},
        {"settings": ("rank=8",)},
        {"settings": ("method=qlora",)},
        {"gpu": None},
    ],
)
def test_another_question_has_another_key(other) -> None:
    assert asked(replace(REQUEST, **other)).key != asked().key


def test_the_same_question_in_other_words_has_the_same_key() -> None:
    one = replace(REQUEST, settings=("rank=8", "method=qlora"))
    assert asked(one).key == asked(replace(REQUEST, settings=("method=qlora", "rank=8"))).key
    assert asked(replace(REQUEST, gpu="RTX 4090")).key == asked().key


def test_another_configuration_under_the_same_path_has_another_key(tmp_path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    request = replace(REQUEST, model=str(tmp_path))
    first = asked(request)
    written = config.stat()
    config.write_text('{"model_type": "llama", "num_hidden_layers": 3}')
    os.utime(config, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert asked(request).key != first.key
    # transformers would choose among the files named here by its own version
    config.write_text('{"model_type": "llama", "configuration_files": ["config.4.0.0.json"]}')
    assert ask(request, CPU) is None


def test_another_library_version_has_another_key(tmp_path, monkeypatch) -> None:
    first = asked()
    found = tmp_path / f"torch-{importlib.metadata.version('torch')}.post1.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("torch") == "99.0"
    assert asked().key != first.key


def test_a_changed_source_file_has_another_key_even_at_the_same_size_and_time(tmp_path, monkeypatch) -> None:
    copied = tmp_path / "trainer"
    shutil.copytree(Path(str(autoft.trainer.__file__)).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(autoft.trainer, "__file__", str(copied / "__init__.py"))
    first = asked()
    source = copied / "objectives" / "loss.py"
    written, text = source.stat(), source.read_text()
    source.write_text(text.replace("loss", "ssol", 1))
    os.utime(source, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert asked().key != first.key
    source.write_text(text)
    assert asked().key == first.key


def test_no_damaged_or_foreign_entry_is_trusted() -> None:
    question = asked()
    keep(question, KEPT)
    whole = entry(question).read_bytes()
    broken = [whole[:n] for n in range(0, len(whole), 97)]
    broken += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(0, len(whole), 7)]
    other = asked(replace(REQUEST, seq_len=256))
    keep(other, KEPT)
    data = json.loads(whole)
    data["answer"]["estimate"]["extra"] = 1
    signed = {**data, "sha256": disk_cache.digest([question.key, data["answer"]])}
    broken += [entry(other).read_bytes(), b"null", b"[]", b"\xff", b"[" * 100_000, json.dumps(signed).encode()]
    for content in broken:
        entry(question).write_bytes(content)
        assert recall(question) is None, content
    keep(question, KEPT)
    assert recall(question) is not None
    entry(question).unlink()
    entry(question).mkdir()
    keep(question, KEPT)
    assert recall(question) is None


def test_what_fits_is_told_by_the_memory_that_is_free_now() -> None:
    request = replace(REQUEST, gpu=None)
    roomy = asked(request, gpu_here(11))
    keep(roomy, replace(KEPT, estimate=replace(ESTIMATE, available_bytes=roomy.target.available_bytes)))
    busy = asked(request, gpu_here(9, index=1, uuid="GPU-2", processes=(GpuProcess(pid=1),)))
    assert busy.key == roomy.key
    found = recall(busy)
    assert found is not None
    assert (found.estimate.fits, found.estimate.available_bytes) == ("yes", busy.target.available_bytes)
    # too little is free now: whether it fits tightly takes a replay, so the kept answer does not do
    full = asked(request, gpu_here(4))
    assert full.key == roomy.key
    assert recall(full) is None
    keep(full, replace(KEPT, estimate=replace(ESTIMATE, fits="tight", available_bytes=full.target.available_bytes)))
    again = recall(full)
    assert again is not None
    assert again.estimate.fits == "tight"
    assert recall(asked(request, gpu_here(3.5))) is None
    roomy_again = recall(roomy)
    assert roomy_again is not None
    assert roomy_again.estimate.fits == "yes"


def test_what_a_gpu_does_at_the_moment_changes_no_key() -> None:
    request = replace(REQUEST, gpu=None)
    cold = GpuStatus(power_w=20.0, temperature_c=35, sm_clock_mhz=210, pcie_generation=1)
    hot = GpuStatus(power_w=170.0, temperature_c=83, sm_clock_mhz=1900, pcie_generation=4, throttle=("power limit",))
    calm = gpu_here(11, status=cold, pcie="gen1 x16", used_bytes=0, unknown={"ecc": "Not Supported"})
    busy = gpu_here(11, status=hot, pcie="gen4 x16", used_bytes=GIB, desktop_bytes=GIB)
    assert asked(request, calm).key == asked(request, busy).key
    other = gpu_here(11, status=cold, compute_capability=(8, 9))
    assert asked(request, other).key != asked(request, calm).key


def test_on_a_cpu_the_answer_says_when_it_was_measured(monkeypatch) -> None:
    request = replace(REQUEST, gpu="cpu")
    keep(asked(request), KEPT)
    found = recall(asked(request))
    assert found is not None
    assert found.estimate.assumptions[0] == "a"
    assert "measured earlier today" in found.estimate.assumptions[1]
    small = Hardware(host=replace(HOST, ram_available_bytes=5 * GIB), no_gpu_reason="none")
    refused = recall(asked(request, small))
    assert refused is not None
    assert refused.estimate.fits == "no"
    other = Hardware(host=replace(HOST, cpu="another"), no_gpu_reason="none")
    assert asked(request, other).key != asked(request).key
    first = asked(request).key
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert asked(request).key != first


def test_only_the_newest_entries_stay(monkeypatch) -> None:
    monkeypatch.setattr(disk_cache, "KEPT_ENTRIES", 5)
    questions = [asked(replace(REQUEST, seq_len=length)) for length in range(16, 32)]
    for second, question in enumerate(questions):
        keep(question, KEPT)
        os.utime(entry(question), (second, second))
    keep(questions[0], KEPT)
    assert [q for q in questions if recall(q)] == [questions[0], *questions[-4:]]


def test_a_home_that_cannot_be_written_to_costs_nothing_but_the_entry(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "file" / "home"))
    keep(asked(), KEPT)
    assert recall(asked()) is None


def test_writers_at_the_same_time_leave_whole_entries() -> None:
    code = (
        "from tests_cache import asked, KEPT\nfrom autoft.planner.plan.cached_estimates import keep\n"
        "question = asked()\nfor _ in range(100): keep(question, KEPT)\n"
    )
    module = "import importlib.util, sys\nspec = importlib.util.spec_from_file_location('tests_cache', sys.argv[1])\n"
    module += "sys.modules['tests_cache'] = found = importlib.util.module_from_spec(spec)\n"
    module += "spec.loader.exec_module(found)\n"
    question = asked()
    writers = [subprocess.Popen([sys.executable, "-c", module + code, __file__]) for _ in range(3)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        found = recall(question)
        assert found is not None or not seen
        seen += found is not None
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert seen
    assert sorted(entry(question).parent.iterdir()) == [entry(question)]
