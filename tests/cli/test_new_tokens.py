"""New tokens: planned, trained, saved, opened by plain PEFT in a process of its own, resumed, merged, exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoft.cli.main import main
from autoft.errors import Resumable
from autoft.home import sha256
from autoft.trainer.evaluation.open_run import ADAPTER, load_base, load_trained, read_result
from autoft.trainer.events import Step
from autoft.trainer.run.session import resume, run
from tests.conftest import write_jsonl
from tests.trainer.exports import save_base

WORDS = ("<tool_call>", "</tool_call>")
TOKENS = f"new_tokens={','.join(WORDS)}"
SHORT = ("seq_len=96", "micro_batch=4", "accumulation=1", "eval_rows=4", "max_new_tokens=4", "learning_rate=0.01")
SETTINGS = ("max_steps=4", *SHORT, TOKENS)
BASES = ("shared", "apart")


def settings(*words: str) -> list[str]:
    return [part for word in words for part in ("--set", word)]


def autoft_in_fixture(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory) -> Path:
    """Runs on two bases: `shared` has one matrix for embedding and head, full; `apart` two, with rows to spare."""
    folder = tmp_path_factory.mktemp("tokens")
    os.environ["AUTOFT_HOME"] = str(folder / "home")
    rows = [{"prompt": f"number {n}", "completion": f"<tool_call>it is {n}</tool_call>"} for n in range(40)]
    write_jsonl(folder / "data.jsonl", rows)
    (folder / "bases").mkdir()
    (folder / "bases" / "shared").symlink_to(tiny_model)
    save_base(folder / "bases" / "apart")
    for name in BASES:
        given = ("--data", folder / "data.jsonl", "--gpu", "cpu", *settings(*SETTINGS))
        autoft_in_fixture("run", folder / "bases" / name, *given, "-o", folder / name)
    return folder


def ids_with_new_tokens(folder: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(f"a {WORDS[0]}b{WORDS[1]}", add_special_tokens=False)
    assert [tokenizer.decode([number]) for number in (ids[2], ids[4])] == list(WORDS)
    return ids


@pytest.mark.parametrize("name", BASES)
def test_the_plan_knows_ids_rows_and_weights(autoft, here, name) -> None:
    given = ("--data", here / "data.jsonl", "--gpu", "cpu", *settings(*SETTINGS))
    done = autoft("plan", here / "bases" / name, *given, "--json")
    assert done.code == 0, done.err
    plan, result = json.loads(done.out), read_result(here / name)
    first = len(AutoTokenizer.from_pretrained(here / "bases" / name))
    assert plan["job"]["recipe"]["first_new_id"] == first
    assert any(f"2 new tokens (ids {first} to {first + 1})" in text for text in plan["reasons"])
    assert plan["estimate"]["trainable_params"] == result.trainable_params
    assert plan["estimate"]["total_params"] == result.total_params
    rows = {name for name in load_file(here / name / ADAPTER) if "trainable_tokens" in name}
    assert len(rows) == (1 if name == "shared" else 2)


def test_a_plan_without_them_has_no_line_for_them(autoft, here, tmp_path) -> None:
    done = autoft("plan", here / "bases" / "shared", "--gpu", "rtx-3060", "-o", tmp_path / "plan.toml")
    assert done.code == 0, done.err
    text = (tmp_path / "plan.toml").read_text(encoding="utf-8")
    assert "\nnew_tokens =" not in text
    assert "first_new_id =" not in text


@pytest.mark.parametrize("name", BASES)
def test_a_new_token_begins_as_the_mean_of_its_pieces_and_is_trained(here, name) -> None:
    result, base = read_result(here / name), here / "bases" / name
    former = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    begun, trained = load_base(here / name, result), load_trained(here / name, result)
    for word, number in zip(WORDS, result.job.recipe.new_token_ids, strict=True):
        pieces = former.encode(word, add_special_tokens=False)
        assert len(pieces) > 1
        for part in ("get_input_embeddings", "get_output_embeddings"):
            mean = getattr(plain, part)().weight[pieces].mean(dim=0)
            row = getattr(begun, part)().weight[number].float()
            torch.testing.assert_close(row, mean, rtol=0, atol=2e-2)
            assert not torch.equal(getattr(trained.get_base_model(), part)().weight[number].float(), row)


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder, ids, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
base.resize_token_embeddings(max(len(tokenizer), base.config.vocab_size))
model = PeftModel.from_pretrained(base, folder).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([json.loads(ids)])).logits, out)
"""


@pytest.mark.parametrize("name", BASES)
def test_plain_peft_opens_it_and_the_merged_model_computes_the_same(autoft, here, tmp_path, name) -> None:
    ids, logits = ids_with_new_tokens(here / name), tmp_path / "logits.pt"
    given = [here / "bases" / name, here / name, json.dumps(ids), logits]
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *map(str, given)], check=True, stderr=subprocess.DEVNULL)
    adapted = torch.load(logits)
    assert "base.resize_token_embeddings" in (here / name / "README.md").read_text(encoding="utf-8")

    done = autoft("merge", here / name, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.config.tie_word_embeddings == (name == "shared")
    rows = AutoModelForCausalLM.from_pretrained(here / "bases" / name).config.vocab_size
    needed = read_result(here / name).job.recipe.new_token_ids[-1] + 1
    assert merged.config.vocab_size == max(rows, needed)
    with torch.no_grad():
        got = merged(torch.tensor([ids])).logits
    torch.testing.assert_close(got, adapted, rtol=0, atol=5e-3)
    with torch.no_grad():
        loaded = load_trained(here / name, read_result(here / name))(torch.tensor([ids])).logits.float()
    torch.testing.assert_close(loaded, adapted, rtol=0, atol=0.15)  # computed in 16 bits


def test_it_is_asked_and_evaluated_as_the_run_was(autoft, here) -> None:
    asked = autoft("chat", here / "shared", "-p", "number 7", "--max-new-tokens", 4, "--json")
    assert asked.code == 0, asked.err
    scored = autoft("eval", here / "shared", "--json")
    assert scored.code == 0, scored.err
    result, again = read_result(here / "shared"), json.loads(scored.out)
    for when in ("before", "after"):
        assert again[when]["loss"] == pytest.approx(getattr(result, when).loss, rel=1e-3)
    assert result.after.loss < result.before.loss


class StopAt:
    """A listener that interrupts this process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: object) -> None:
        if isinstance(event, Step) and event.step == self.step:
            self.step = 0
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_ends_with_the_same_bytes(here, tmp_path) -> None:
    job = read_result(here / "shared").job
    with pytest.raises(Resumable):
        run(job, tmp_path / "out", plan_toml="", listener=StopAt(2))
    resume(tmp_path / "out", job)
    assert sha256(tmp_path / "out" / ADAPTER) == sha256(here / "shared" / ADAPTER)


def test_it_is_continued_with_its_tokens(autoft, here, tmp_path) -> None:
    given = ("--from-adapter", here / "shared", "--data", here / "data.jsonl", "--gpu", "cpu")
    done = autoft("run", *given, *settings("max_steps=1", *SHORT), "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    former = read_result(here / "shared").job.recipe
    assert result["job"]["recipe"]["new_tokens"] == list(WORDS)
    assert result["job"]["recipe"]["first_new_id"] == former.first_new_id
    assert result["before"]["loss"] == pytest.approx(read_result(here / "shared").after.loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_a_gguf_file_has_the_tokens_by_their_ids(autoft, here, tmp_path) -> None:
    done = autoft("export", here / "apart", "--to", "gguf", "--quant", "f32", "-o", tmp_path / "out.gguf", "--json")
    assert done.code == 0, done.err
    from gguf import GGUFReader

    words = GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.tokens"].contents()
    ids = read_result(here / "apart").job.recipe.new_token_ids
    assert [words[number] for number in ids] == list(WORDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "{shared}", "--to", "gguf-lora", "-o", "{out}"), "llama.cpp takes no trained tokens"),
        (("export", "{shared}", "--to", "vllm", "-o", "{out}"), "vLLM takes no trained tokens"),
        (("adapters", "combine", "{shared}", "{again}", "-o", "{out}"), "its new tokens would be lost"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_has_no_place_for_them_is_refused(autoft, here, tmp_path, words, message) -> None:
    again = tmp_path / "again"
    again.symlink_to(here / "shared")
    names = {"shared": here / "shared", "again": again, "out": tmp_path / "out"}
    done = autoft(*(word.format(**names) for word in words))
    assert done.code == 2, done.err
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_adapters_of_other_tokens_do_not_share_a_base(autoft, here, tmp_path) -> None:
    given = ("--data", here / "data.jsonl", "--gpu", "cpu", *settings("max_steps=1", *SHORT))
    assert autoft("run", here / "bases" / "shared", *given, "-o", tmp_path / "plain").code == 0
    done = autoft("serve", tmp_path / "plain", here / "shared")
    assert done.code == 2, done.err
    assert f"{here / 'shared'}: trained with other new_tokens than {tmp_path / 'plain'}" in done.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((TOKENS + ",a",), "new_tokens: 'a' is one token of"),
        (("new_tokens=<|im_end|>",), "new_tokens: '<|im_end|>' is one token of"),
        (('new_tokens=["<a>", ""]',), "new_tokens has an empty word: leave it out"),
        (("new_tokens=<a>,<b>,<a>",), "new_tokens has '<a>' twice: leave one of them out"),
        (('new_tokens=["<a> "]',), "new_tokens: '<a> ' begins or ends with a space: leave the space out"),
        ((TOKENS, "adapter=ia3"), "adapter ia3 has no new_tokens: leave new_tokens out"),
        ((TOKENS, "adapter=oft"), "adapter oft has no new_tokens: leave new_tokens out"),
        ((TOKENS, "method=full"), "method full trains the weights themselves and has no adapter: leave new_tokens out"),
        ((TOKENS, "init=pissa", "method=lora"), "init pissa is saved as plain LoRA, without new_tokens"),
        (
            (TOKENS, "streamed_layers=2", "gradient_checkpointing=true"),
            "new_tokens trains rows of an embedding that streamed_layers keeps on the host",
        ),
        (("new_token=<a>",), "no setting 'new_token'. Did you mean new_tokens"),
        (("additional_special_tokens=<a>",), "the setting is called new_tokens here"),
        (("first_new_id=3",), "first_new_id"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_line(autoft, tiny_model, given, message) -> None:
    done = autoft("plan", tiny_model, "--gpu", "rtx-3060", *settings(*given))
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_base_without_a_tokenizer_is_refused(autoft, wide_shape) -> None:
    done = autoft("estimate", wide_shape, "--gpu", "rtx-3060", *settings(TOKENS))
    assert done.code == 2, done.err
    assert "no tokenizer there, so new_tokens cannot be added to it" in done.err


def test_a_plan_of_another_tokenizer_is_refused(autoft, here, tmp_path) -> None:
    plan: Any = tmp_path / "plan.toml"
    given = ("--data", here / "data.jsonl", "--gpu", "cpu", *settings(*SETTINGS))
    assert autoft("plan", here / "bases" / "shared", *given, "-o", plan).code == 0
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace("first_new_id = 259", "first_new_id = 300"), encoding="utf-8")
    done = autoft("run", plan, "-o", tmp_path / "out")
    assert done.code == 2, done.err
    assert "its tokenizer numbers new_tokens from 259, the plan from 300" in done.err
