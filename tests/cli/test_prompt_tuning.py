"""Prompt tuning: planned, trained, opened by plain PEFT in a process of its own, asked, resumed; nothing to merge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from autoft.cli.main import main
from autoft.errors import Resumable
from autoft.home import sha256
from autoft.trainer.evaluation.generate import generate
from autoft.trainer.evaluation.open_run import ADAPTER, load_trained, read_result
from autoft.trainer.events import Step
from autoft.trainer.run.session import resume, run
from tests.conftest import write_forty_rows

SHORT = ("max_steps=4", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4", "max_new_tokens=4")
PROMPT = ("adapter=prompt", "virtual_tokens=8", "learning_rate=0.05")


def settings(*words: str) -> list[str]:
    return [part for word in words for part in ("--set", word)]


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory) -> Path:
    """A run of each loss: its folder has the name of the loss."""
    folder = tmp_path_factory.mktemp("prompt")
    os.environ["AUTOFT_HOME"] = str(folder / "home")
    write_forty_rows(folder / "data.jsonl")
    for loss in ("selected", "fused", "logits"):
        given = ("--data", folder / "data.jsonl", "--gpu", "cpu", *settings(*SHORT, *PROMPT, f"loss={loss}"))
        words = ("run", tiny_model, *given, "-o", folder / loss)
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code
    return folder


def test_the_plan_counts_what_is_trained_and_says_what_is_known(autoft, here, tiny_model) -> None:
    given = ("--data", here / "data.jsonl", "--gpu", "cpu", *settings(*SHORT, "adapter=prompt", "virtual_tokens=8"))
    done = autoft("plan", tiny_model, *given, "--json")
    assert done.code == 0, done.err
    plan, result = json.loads(done.out), read_result(here / "selected")
    counts = [plan["estimate"][name] for name in ("trainable_params", "total_params")]
    assert counts == [result.trainable_params, result.total_params]
    assert result.trainable_params == 8 * 64
    assert plan["job"]["learning_rate"] == 1e-3
    assert any(".391" in text for text in plan["reasons"])
    shown = autoft("plan", tiny_model, *given)
    assert "prompt tuning, 8 virtual tokens before every row" in shown.out


def test_every_loss_trains_the_same(here) -> None:
    """float32 sums in another order, and bfloat16: nothing else differs."""
    results = {loss: read_result(here / loss) for loss in ("selected", "fused", "logits")}
    for when in ("before", "after"):
        losses = [getattr(result, when).loss for result in results.values()]
        assert losses == pytest.approx([losses[0]] * 3, rel=2e-3)
    assert results["selected"].after.loss < results["selected"].before.loss


PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, folder, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), folder).eval()
ids = torch.arange(4, 20).unsqueeze(0)
with torch.no_grad():
    torch.save(model(ids).logits, out)
"""


def test_plain_peft_opens_it(here, tiny_model, tmp_path) -> None:
    given = [str(path) for path in (tiny_model, here / "selected", tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *given], check=True, stderr=subprocess.DEVNULL)
    model = load_trained(here / "selected", read_result(here / "selected"))
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        ours = model(ids).logits.float()
        with model.disable_adapter():
            base = model(ids).logits.float()
    torch.testing.assert_close(ours, torch.load(tmp_path / "logits.pt"), rtol=0, atol=0.05)  # ours in 16 bits
    assert ours.shape[1] == base.shape[1] + 8
    assert not torch.allclose(ours[:, 8:], base, atol=0.05)
    assert {name: tuple(weight.shape) for name, weight in load_file(here / "selected" / ADAPTER).items()} == {
        "prompt_embeddings": (8, 64)
    }


def test_answers_are_those_of_whole_forwards_whatever_is_asked_beside_them(here) -> None:
    model = load_trained(here / "selected", read_result(here / "selected"))
    tokenizer = AutoTokenizer.from_pretrained(here / "selected")
    prompts = [tokenizer.encode(text) for text in ("number 7", "a much longer number, 12345678")]
    answers = generate(model, tokenizer, prompts, max_new_tokens=4, stop=())
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(4):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_it_is_asked_evaluated_served_and_continued(autoft, here, tmp_path) -> None:
    asked = autoft("chat", here / "selected", "-p", "number 7", "--max-new-tokens", 4, "--json")
    assert asked.code == 0, asked.err
    scored = autoft("eval", here / "selected", "--json")
    assert scored.code == 0, scored.err
    result, again = read_result(here / "selected"), json.loads(scored.out)
    assert again["after"]["loss"] == pytest.approx(result.after.loss, rel=1e-3)
    estimated = autoft(
        "estimate", result.job.model, "--gpu", "rtx-3060", "--serve", *settings("adapter=prompt", "seq_len=64")
    )
    assert estimated.code == 0, estimated.err
    given = ("--from-adapter", here / "selected", "--data", here / "data.jsonl", "--gpu", "cpu", *settings(*SHORT))
    more = autoft("run", *given, "-o", tmp_path / "more", "--json")
    assert more.code == 0, more.err
    assert json.loads(more.out)["before"]["loss"] == pytest.approx(result.after.loss, rel=1e-3)
    shown = autoft("adapters", "show", here / "selected")
    assert shown.code == 0, shown.err
    assert "prompt tuning" in shown.out
    assert "8 virtual tokens before every row" in (here / "selected" / "README.md").read_text(encoding="utf-8")


class StopAt:
    """A listener that interrupts this process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: object) -> None:
        if isinstance(event, Step) and event.step == self.step:
            self.step = 0
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_ends_with_the_same_bytes(here, tmp_path) -> None:
    job = read_result(here / "selected").job
    with pytest.raises(Resumable):
        run(job, tmp_path / "out", plan_toml="", listener=StopAt(2))
    resume(tmp_path / "out", job)
    assert sha256(tmp_path / "out" / ADAPTER) == sha256(here / "selected" / ADAPTER)


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "{run}", "-o", "{out}"),
        ("export", "{run}", "--to", "gguf", "-o", "{out}"),
        ("export", "{run}", "--to", "gguf-lora", "-o", "{out}"),
        ("export", "{run}", "--to", "vllm", "-o", "{out}"),
    ],
    ids=" ".join,
)
def test_there_is_nothing_to_merge(autoft, here, tmp_path, words) -> None:
    done = autoft(*(word.format(run=here / "selected", out=tmp_path / "out") for word in words))
    assert done.code == 2, done.err
    assert "changes no weight of the base: there is nothing to merge or to export" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("adapter=prompt", "packing=true"), "adapter prompt puts vectors before rows, not before each packed example"),
        (
            ("adapter=prompt", "streamed_layers=2", "gradient_checkpointing=true"),
            "adapter prompt is put before embeddings, which streamed_layers keeps on the host",
        ),
        (("adapter=prompt", "rank=8"), "adapter prompt has no rank: leave rank out"),
        (("adapter=prompt", "target_modules=q_proj"), "adapter prompt has no target_modules"),
        (("virtual_tokens=8",), "adapter lora has no virtual_tokens: leave virtual_tokens out"),
        (("adapter=prompt", "seq_len=510"), "virtual_tokens=20 and rows of 510 tokens are more than"),
        (("adapter=prompt_tuning",), "adapter=prompt_tuning: it is called prompt here"),
        (("adapter=prefix",), "adapter=prefix: it was far worse than LoRA in PEFT's comparison (.147 beside .482)"),
        (("adapter=promt",), "adapter = 'promt' is not known"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_line(autoft, tiny_model, given, message) -> None:
    done = autoft("plan", tiny_model, "--gpu", "rtx-3060", *settings(*given))
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_vllm_and_sums_do_not_take_it(autoft, here, tiny_model, tmp_path) -> None:
    done = autoft("plan", tiny_model, "--gpu", "rtx-3060", "--for", "vllm", *settings("adapter=prompt"))
    assert done.code == 2, done.err
    assert "vLLM takes LoRA adapters alone" in done.err
    done = autoft("adapters", "combine", here / "selected", here / "fused", "-o", tmp_path / "out")
    assert done.code == 2, done.err
    assert "PEFT has no sum of PROMPT adapters" in done.err
