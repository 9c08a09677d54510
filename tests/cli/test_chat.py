"""A conversation in a real terminal: base and adapters beside each other, settings, and a file of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.cli.main import main
from tests.cli.terminal import plain, read_terminal, terminal
from tests.conftest import write_jsonl

QUESTION = "number 7"
SETTINGS = (
    "max_steps=12",
    "learning_rate=0.01",
    "base_dtype=float32",
    "seq_len=64",
    "micro_batch=4",
    "accumulation=1",
    "eval_rows=4",
)


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Two finished runs on one base, that have learnt other answers."""
    folder = tmp_path_factory.mktemp("runs")
    for name, word in (("yes", "yes"), ("no", "no no")):
        rows = [{"prompt": f"number {n}", "completion": word} for n in range(40)]
        data = write_jsonl(folder / f"{name}.jsonl", rows)
        words = ["run", tiny_model, "--data", data, "--gpu", "cpu", "-o", folder / name]
        words += [part for setting in (*SETTINGS, "max_new_tokens=4") for part in ("--set", setting)]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code
    return {name: folder / name for name in ("yes", "no")}


def answer(autoft, folder: Path, *words: object) -> str:
    done = autoft("chat", folder, "-p", QUESTION, "--max-new-tokens", 4, "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)["answer"]


def test_the_base_answers_beside_the_adapter(autoft, runs) -> None:
    trained, base = answer(autoft, runs["yes"]), answer(autoft, runs["yes"], "--base")
    assert trained != base
    assert answer(autoft, runs["no"], "--base") == base


def test_lines_of_a_conversation(autoft, runs, tmp_path) -> None:
    yes, no, base = answer(autoft, runs["yes"]), answer(autoft, runs["no"]), answer(autoft, runs["yes"], "--base")
    assert len({yes, no, base}) == 3
    saved = tmp_path / "talk.jsonl"
    steps = [
        (QUESTION, yes),
        (f"/base {QUESTION}", ""),  # after an earlier turn: another answer than alone
        ("/reset", "conversation forgotten"),
        (f"/base {QUESTION}", base),
        (f"/adapter {runs['no']}", f"adapter: {runs['no']}"),
        (QUESTION, no),
        (f"/save {saved}", f"written to {saved}"),
        ("/reset", "conversation forgotten"),
        (f"/adapter {runs['yes']}", f"adapter: {runs['yes']}"),
        (QUESTION, yes),
        ("/set temperature=9", "Error: /set temperature=9: not a setting"),
        ("/set max_new_tokens=3", "max_new_tokens 3"),
        ("/rest", "Error: /rest: not known. Did you mean reset"),
        (f"/adapter {tmp_path}", "holds no finished run"),
        ("word " * 600, "and the model takes 512"),
        ("/help", "/adapter DIR"),
    ]
    words = [sys.executable, "-m", "autoft", "chat", str(runs["yes"]), "--max-new-tokens", "4"]
    with terminal(200) as (ours, theirs):
        env = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
        process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        read_terminal(ours, until="/help lists commands")
        for line, expected in steps:
            os.write(ours, f"{line}\n".encode())
            text = read_terminal(ours, until=f"{expected}"[:60].strip() or ">")
            assert "Traceback" not in "".join(plain(text))
        os.write(ours, b"\n")
        assert process.wait(60) == 0
    assert json.loads(saved.read_text(encoding="utf-8")) == {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": no}]
    }


def test_what_answers_once_only(autoft, runs) -> None:
    done = autoft("chat", runs["yes"], "-p", "word " * 600)
    assert done.code == 2
    assert "and the model takes 512" in done.err
