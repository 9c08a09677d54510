"""A conversation in a real terminal: base and adapters beside each other, settings, and a file of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoft.cli.chat_commands import Conversation
from autoft.cli.main import main
from autoft.errors import ModelError
from autoft.trainer.evaluation.chat import open_run
from tests.cli.terminal import plain, read_terminal, terminal
from tests.conftest import write_jsonl
from tests.trainer.exports import save_adapter

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
        ("/help", "/adapter NAME"),
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


def test_several_adapters_answer_on_one_base(autoft, runs) -> None:
    yes, no = answer(autoft, runs["yes"]), answer(autoft, runs["no"])
    given = ("-p", QUESTION, "--max-new-tokens", 4)
    done = autoft("chat", runs["no"], runs["yes"], *given, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"prompt": QUESTION, "answers": {"no": no, "yes": yes}}
    assert autoft("chat", runs["no"], runs["yes"], *given).out.splitlines() == [f"no: {no}", f"yes: {yes}"]
    base = json.loads(autoft("chat", runs["no"], runs["yes"], *given, "--base", "--json").out)["answer"]
    assert base == answer(autoft, runs["yes"], "--base")


def test_an_adapter_of_another_tool_answers_as_plain_peft_does(autoft, runs, tiny_model, tmp_path) -> None:
    own = json.loads((runs["yes"] / "result.json").read_text(encoding="utf-8"))["job"]["recipe"]["rank"]
    for name in ("peft", "same/yes"):
        folder = tmp_path / name
        shutil.copytree(runs["yes"], folder, ignore=shutil.ignore_patterns("result.json", "local.json", "tokenizer*"))
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["r"] == own
        changed = {**config, "base_model_name_or_path": str(tiny_model)}
        (folder / "adapter_config.json").write_text(json.dumps(changed), encoding="utf-8")
    expected = answer(autoft, runs["yes"])
    assert answer(autoft, tmp_path / "peft") == expected
    done = autoft("chat", runs["yes"], tmp_path / "same" / "yes", "-p", QUESTION, "--max-new-tokens", 4, "--json")
    assert json.loads(done.out)["answers"] == {"yes": expected, str(tmp_path / "same" / "yes"): expected}


def test_a_conversation_switches_by_name(runs, tiny_model, tmp_path) -> None:
    wide = save_adapter(tiny_model, tmp_path / "wide", r=2, target_modules=["q_proj"])
    for name in ("torn", "ia3"):
        shutil.copytree(wide, tmp_path / name)
    save_file({"a": torch.zeros(1)}, tmp_path / "torn" / "adapter_model.safetensors")
    targets = {"target_modules": ["k_proj"], "feedforward_modules": []}
    save_adapter(tiny_model, tmp_path / "ia3", ia3=True, **targets)
    talker = open_run(runs["yes"])
    talker.take_adapter(runs["no"])
    talk = Conversation(talker, system=None, max_new_tokens=4, show=lambda _: None)
    assert talk.run("/adapter") == f"  yes   {runs['yes']}\n* no   {runs['no']}"
    no = talk.say(QUESTION)
    talk.run("/reset")
    assert talk.run("/adapter yes") == "adapter: yes"
    yes = talk.say(QUESTION)
    assert yes != no
    for folder, message in (("torn", "weights in all do not fit"), ("ia3", "ia3 and lora cannot be on one base")):
        with pytest.raises(ModelError, match=message):
            talk.run(f"/adapter {tmp_path / folder}")
    talk.run("/reset")
    assert talk.say(QUESTION) == yes  # what failed has changed nothing
    assert talk.run(f"/adapter {wide}") == f"adapter: {wide}"
    assert [voice.name for voice in talker.voices] == ["yes", "no", "wide"]
    assert talk.run("/adapter no") == "adapter: no"
    talk.run("/reset")
    assert talk.say(QUESTION) == no


def test_adapters_of_other_bases_are_refused(autoft, runs, tmp_path) -> None:
    other = Path(shutil.copytree(runs["no"], tmp_path / "other"))
    result = json.loads((other / "result.json").read_text(encoding="utf-8"))
    (other / "result.json").write_text(json.dumps({**result, "base_fingerprint": "0" * 64}), encoding="utf-8")
    done = autoft("chat", runs["yes"], other, "-p", QUESTION, "--accept-changes")
    assert done.code == 2
    assert f"Error: {other}: trained on another base" in done.err


def test_what_answers_once_only(autoft, runs) -> None:
    done = autoft("chat", runs["yes"], "-p", "word " * 600)
    assert done.code == 2
    assert "and the model takes 512" in done.err
