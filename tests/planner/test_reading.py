"""Data read in a process of its own: the same rows, the same mistakes, and no process left behind."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoft.errors import DataError
from autoft.planner.plan import prefetch
from autoft.planner.plan.make import ask
from autoft.planner.plan.prefetch import LEAST_BYTES, begin
from autoft.planner.request import Request
from autoft.profiles.hardware import Hardware
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.runtime.environment import of_child
from autoft.trainer.sources.resolve import resolve
from tests.conftest import write_jsonl
from tests.support.machines import HOST
from tests.trainer.test_written import thinking_model

ROWS = 2500
MACHINE = Hardware(host=HOST, no_gpu_reason="none")
pytestmark = pytest.mark.skipif(prefetch.cores() < 2, reason="no second core to read on, or processes do not fork")


@pytest.fixture(scope="module")
def much_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a process of its own."""
    words = "so that a row is long enough for few of them to be much, and the text of each another " * 2
    rows = [{"prompt": f"{words}{n}", "completion": f"it is {n}"} for n in range(ROWS)]
    file = write_jsonl(tmp_path_factory.mktemp("much") / "data.jsonl", rows)
    assert file.stat().st_size > LEAST_BYTES
    return file


@pytest.fixture
def asked(tiny_model: Path, much_data: Path) -> Request:
    return Request(model=str(tiny_model), data=str(much_data), gpu="rtx-3060")


@pytest.fixture(scope="module")
def expected(tiny_model: Path, much_data: Path) -> Prepared:
    return in_line(Request(model=str(tiny_model), data=str(much_data)))


def in_line(request: Request, **options):
    options = {"eval_rows": 100, "max_tokens": 512, "mapping": None, "thinking": "auto"} | options
    return prepare(resolve(request.model), request.data, request.eval_data, **options)


def test_the_rows_are_those_read_in_line(asked, expected) -> None:
    with begin(asked) as found:
        assert found is not None
        prepared = found(
            resolve(asked.model), asked.data, None, eval_rows=100, max_tokens=512, mapping=None, thinking="auto"
        )
    assert prepared.train == expected.train
    assert prepared.heldout == expected.heldout
    assert prepared.splits.heldout == expected.splits.heldout
    assert list(prepared.splits.train) == list(expected.splits.train)
    assert prepared.notes(512) == expected.notes(512)
    assert prepared.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "said",
    [
        {"settings": ("method=lora",), "seq_len": 256},
        {"settings": ("seq_len=256", "eval_rows=10")},
        {"preset": "chatbot", "mapping": "prompt=prompt,completion=completion"},
    ],
)
def test_a_plan_is_of_what_was_read_beside_it(asked, said, monkeypatch) -> None:
    asked = replace(asked, **said)
    expected = ask(asked, MACHINE)
    with begin(asked) as found:
        assert found is not None
        monkeypatch.setattr(prefetch, "prepare", None)  # it is not read again
        question = ask(asked, MACHINE, found)
    assert (question.workload, question.notes, question.reasons) == (
        expected.workload,
        expected.notes,
        expected.reasons,
    )
    if asked.seq_len is not None:
        assert question.question.search().found == expected.question.search().found


def test_a_mistake_in_the_data_is_told_as_in_line(asked, much_data, tmp_path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(much_data.read_text(encoding="utf-8") + '{"prompt": "no answer"\n', encoding="utf-8")
    asked = replace(asked, data=str(file))
    with pytest.raises(DataError) as expected:
        in_line(asked)
    with begin(asked) as found:
        assert found is not None
        with pytest.raises(DataError) as met:
            ask(asked, MACHINE, found)
    assert f"{file}:{ROWS + 1}" in str(met.value)
    assert (str(met.value), met.value.exit_code) == (str(expected.value), 2)


def test_what_a_process_that_ends_early_has_not_read_is_read_in_line(asked, expected) -> None:
    with begin(asked) as found:
        assert found is not None
        [process] = multiprocessing.active_children()
        process.kill()
        process.join()
        prepared = found(
            resolve(asked.model), asked.data, None, eval_rows=100, max_tokens=512, mapping=None, thinking="auto"
        )
    assert prepared.train == expected.train


def test_an_interrupt_ends_the_process_that_reads(asked) -> None:
    with pytest.raises(KeyboardInterrupt), begin(asked):
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "said",
    [
        {"data": None},
        {"data": "starter"},
        {"data": "nowhere.jsonl"},
        {"eval_data": "some/dataset"},
        {"model": "nowhere"},
        {"settings": ("rnak=8",)},
        {"preset": "chatbto"},
    ],
)
def test_nothing_is_begun_that_would_not_pay_or_cannot_be(asked, said) -> None:
    with begin(replace(asked, **said)) as found:
        assert found is None


def test_nothing_is_begun_for_little_data_or_on_one_core(asked, data_file, monkeypatch) -> None:
    with begin(replace(asked, data=str(data_file))) as found:
        assert found is None
    monkeypatch.setattr(prefetch, "cores", lambda: 1)
    with begin(asked) as found:
        assert found is None


def test_a_forked_process_ends_with_its_parent() -> None:
    code = (
        "import os, signal\nfrom autoft.planner.search.parallel import end_with_parent\n"
        "parent, child = os.getpid(), os.fork()\n"
        "if not child:\n    end_with_parent(parent)\n    print(os.getpid(), flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=of_child()) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_template_is_as_the_data_needs_it(asked, tmp_path) -> None:
    """Thinking is switched in the process that reads, and holds for what is asked in this one."""
    model = thinking_model(tmp_path / "model")
    with begin(replace(asked, model=str(model))) as found:
        assert found is not None
        words = {"eval_rows": 100, "max_tokens": 512, "mapping": None, "thinking": "auto"}
        prepared = found(resolve(str(model)), asked.data, None, **words)
    assert prepared.thinking == in_line(replace(asked, model=str(model))).thinking != ()
    asks = prepared.tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    assert asks.endswith("<think>\n\n</think>\n\n")
