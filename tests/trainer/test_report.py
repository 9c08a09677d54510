"""The report: one page, whole in itself, that says what the result says, and runs nothing that came with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.report import report_html
from autoft.trainer.report.charts import nice_step, smooth, thin
from autoft.trainer.report.model_card import model_card
from autoft.trainer.report.tables import compared_memory, compared_time, happened, judged, settings
from autoft.trainer.report.wording import snippet
from autoft.trainer.result import Evaluation, RunResult, Sample
from tests.trainer.results import HOSTILE, LESS, result_of

ROOT = Path(__file__).parents[2]


def read(result: RunResult, name: str = "my run") -> ElementTree.Element:
    """The page, read as XML, which forgives nothing."""
    return ElementTree.fromstring(report_html(result, name).strip().encode())


def all_text(page: ElementTree.Element) -> str:
    return " ".join(" ".join(page.itertext()).split())


def check_sound(page: ElementTree.Element) -> None:
    """Names are unique, references lead somewhere, nothing is loaded, and a screen reader finds its way."""
    elements = list(page.iter())
    ids = [e.get("id") for e in elements if e.get("id")]
    assert len(ids) == len(set(ids))
    for e in elements:
        for name in ("href", "src", "srcset", "data", "poster", "action"):
            assert e.get(name, "#").startswith(("#", "data:,")), (e.tag, e.get(name))
        assert not any(name.startswith("on") for name in e.attrib), e.attrib
        assert set((e.get("aria-labelledby") or "").split()) <= set(ids)
        if e.tag == "a":
            assert e.get("href", "")[1:] in ids
        if e.tag == "th":
            assert e.get("scope") in ("col", "row")
        if e.tag == "svg" and e.get("aria-hidden") is None:
            assert e.get("role") == "img"
            assert e.findtext("title")
            assert e.findtext("desc")
    levels = [int(e.tag[1]) for e in elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    style = page.findtext("head/style") or ""
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", all_text(page.find("body") or page))


def test_the_page_is_sound_and_says_what_the_result_says() -> None:
    page = read(result_of())
    check_sound(page)
    text = all_text(page)
    assert page.findtext("body/header/h1") == "my run"
    for words in (
        "A LoRA adapter for org/model , trained on 1,200 rows of mails.jsonl in 300 steps on NVIDIA A100",
        "qlora on a base in nf4 4-bit, computed in bfloat16, LoRA of rank 32",
        "60 held-out rows; greedy answers to 50 of them",
        "fields right 11.0% 83.0% +72.0 points better",
        "loss, nats a token 1.900 0.600 -1.300 better",
        "The weights of step 50 were kept: the best by fields right.",
        "6 evaluations during training",
        "After as expected It is.",
        "training 8.0 GiB 9.0 GiB +12.5%",
        "loading 6.0 GiB -",
        "0.8 s to 1.2 s 1.1 s within the range",
        "held 10.0 GiB of the device",
        "drew 180 Wh",
        "autoft chat . -p 'Is it blue?'",
        "recipe.rank 32 16",
        "peft 0.21.2",
        "ef" * 32,
    ):
        assert words in text, words


def test_curves_have_a_point_for_every_step_and_dots_for_every_evaluation() -> None:
    result = result_of(300)
    page = read(result)
    paths = {e.get("class", ""): e.get("d", "") for e in page.iter("path")}
    lines = page.findall(".//figure[@id='loss-chart']//path")
    drawn = {e.get("class"): e.get("d", "") for e in lines}
    assert drawn["line raw"].count("L") == 299
    assert drawn["line main"].count("L") == 299
    assert drawn["line second dots"].count("M") == 1 + 6  # before, and every fifty steps; the last is the one after
    assert drawn["line kept dots"].count("M") == 1
    assert paths["line third"] == "M0 161.4H1000"  # 8 GiB under a top of 9.54
    marks = [e.findtext("title") for e in lines if e.get("class") == "mark"]
    assert marks == ["step 7: recovered", "step 9: resumed"]


def test_a_hundred_thousand_steps_stay_a_small_page_with_their_extremes() -> None:
    result = result_of(100_000)
    losses = list(result.losses)
    losses[54_321] = (54_322, 77.5)
    html = report_html(replace(result, losses=tuple(losses)), "long")
    assert len(html.encode()) < 200_000
    page = ElementTree.fromstring(html.strip())
    check_sound(page)
    figure = page.find(".//figure[@id='loss-chart']")
    assert figure is not None
    points = [point.split() for point in figure.get("data-points", "").split(";")]
    assert ["54322", "77.5"] in points
    assert (points[0][0], points[-1][0]) == ("1", "100000")
    assert len(points) <= 1002
    assert figure.findtext("div/div[@class='x']/span[last()]") == "100,000"


@pytest.mark.parametrize("steps", [1, 2, 19, 20])
def test_few_steps_make_a_page_too(steps) -> None:
    page = read(result_of(steps))
    check_sound(page)
    drawn = [e.get("class") for e in page.findall(".//figure[@id='memory-chart']//path")]
    assert ("line main dots" if steps == 1 else "line main") in drawn


@pytest.mark.parametrize("changes", LESS.values(), ids=LESS.keys())
def test_what_a_result_lacks_is_left_out_or_said(changes) -> None:
    check_sound(read(replace(result_of(30), **changes)))


def test_what_is_missing_is_said_in_words() -> None:
    changes = {**LESS["no evaluation"], **LESS["no prediction"], **LESS["no events"]}
    text = all_text(read(replace(result_of(), **changes)))
    assert "nothing was evaluated" in text
    assert "there are no samples" in text
    assert "no prediction to be compared with" in text
    assert "no restart, no recovery, no warning" in text


def test_no_text_of_a_run_becomes_part_of_the_page() -> None:
    sample = Sample(prompt=HOSTILE, expected=HOSTILE, before=HOSTILE, after=HOSTILE)
    result = result_of(3)
    hostile = replace(
        result,
        base=HOSTILE,
        hardware=HOSTILE,
        system_prompt=HOSTILE,
        samples=(sample,),
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
        artifacts={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
        events=({"event": "note", "text": HOSTILE}, {"event": HOSTILE, "at": HOSTILE, HOSTILE: HOSTILE}),
        job=replace(result.job, model=HOSTILE, data=HOSTILE),
    )
    html = report_html(hostile, HOSTILE)
    html.encode()  # halves of characters could not be written
    page = ElementTree.fromstring(html.strip())
    check_sound(page)
    usual = [e.tag for e in read(result).iter("script")]
    assert [e.tag for e in page.iter("script")] == usual == ["script"]
    assert not list(page.iter("img"))
    shown = HOSTILE.translate({0: "\ufffd", 0x1B: "\ufffd", 0xD800: "\ufffd"})
    assert page.findtext("body/header/h1") == shown
    texts = [e.text for e in page.findall(".//div[@class='text']")]
    assert texts == [shown] * 5


def test_the_browser_is_told_to_run_our_script_alone_and_to_load_nothing() -> None:
    page = read(result_of())
    policy = page.find("head/meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256((page.findtext("body/script") or "").encode()).digest()).decode()
    rules = [rule.strip() for rule in policy.get("content", "").split(";")]
    assert "default-src 'none'" in rules
    assert f"script-src 'sha256-{digest}'" in rules
    assert not any("http" in rule or "*" in rule for rule in rules)


def test_colours_can_be_told_from_their_ground_in_light_and_dark() -> None:
    """Text 4.5 to 1 and lines 3 to 1 at least, as WCAG 2.2 has it in 1.4.3 and 1.4.11."""
    style = read(result_of()).findtext("head/style") or ""
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 3
    for colours in schemes:
        for name in ("text", "fine", "link", "better", "worse"):
            assert contrast(colours[name], colours["page"]) >= 4.5, name
            assert contrast(colours[name], colours["card"]) >= 4.5, name
        for name in ("main", "second", "third", "kept"):
            assert contrast(colours[name], colours["page"]) >= 3, name


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_change_is_better_or_worse_by_what_the_figure_means() -> None:
    before = Evaluation(rows=9, loss=1.0, f1=0.5, rouge_l=0.2, json_valid=0.3)
    rows = judged(before, Evaluation(rows=9, loss=1.5, f1=0.5, rouge_l=0.4))
    assert [(row.label, row.change, row.turn) for row in rows] == [
        ("loss, nats a token", "+0.500", "worse"),
        ("valid JSON", "", ""),
        ("F1 of words", "+0.0 points", "same"),
        ("ROUGE-L", "+20.0 points", "better"),
    ]


def test_memory_and_time_are_compared_with_what_was_promised() -> None:
    result = result_of()
    rows = {row.label: row for row in compared_memory(result)}
    assert (rows["evaluation"].predicted_bar, rows["evaluation"].measured_bar) == ((0.0, 55.56), (0.0, 55.56))
    assert rows["evaluation"].difference == "+0.0%"
    assert "saving" not in rows
    assert compared_time(result).predicted_bar == (66.67, 100.0)
    slow, quick = (replace(result, measured=replace(result.measured, step_time_s=s)) for s in (1.5, 0.4))
    assert compared_time(slow).difference == "+25.0% of its upper end"
    assert compared_time(quick).difference == "-50.0% of its lower end"


def test_events_are_told_in_words() -> None:
    went_on = "Out of memory: no room. The run went on with"
    offloaded = "checkpoints kept in the host's memory and micro-batches of 1"
    assert [(e.when, e.text, e.kind) for e in happened(result_of().events)] == [
        ("before step 1", f"{went_on} micro-batches of 4.", "warning"),
        ("step 7", f"{went_on} {offloaded}.", "warning"),
        (
            "step 9, 2026-11-25 18:10:00 UTC",
            "Resumed from the checkpoint of step 9. Skipped: step 12: a file is cut short.",
            "plain",
        ),
        ("", "step 8: the loss rose to 4.1", "warning"),
        ("step 10", "overheated: degrees: 91", "plain"),
    ]  # fmt: skip


def test_settings_that_were_chosen_come_first() -> None:
    chosen, defaults = settings(Job(model="m", recipe=Recipe(rank=32), report_to=("wandb",), max_steps=5))
    assert [(s.name, s.value, s.default) for s in chosen] == [
        ("model", "m", ""),
        ("recipe.rank", "32", "16"),
        ("max_steps", "5", "none"),
        ("report_to", "wandb", "none"),
    ]
    assert ("recipe.packing", "false") in [(s.name, s.value) for s in defaults]
    assert len(chosen) + len(defaults) == len(Job.__dataclass_fields__) - 1 + len(Recipe.__dataclass_fields__)


def test_thinning_keeps_order_ends_and_extremes() -> None:
    figures = [(step, float(step % 97)) for step in range(10_000)]
    thinned = thin(figures, 50)
    assert thinned == sorted(thinned)
    assert len(thinned) <= 102
    assert (thinned[0], thinned[-1]) == (figures[0], figures[-1])
    assert {value for _, value in thinned} >= {0.0, 96.0}
    assert thin(figures[:100], 50) == figures[:100]


def test_a_smoothed_constant_is_itself_and_a_jump_is_followed_slowly() -> None:
    assert [value for _, value in smooth([(step, 2.0) for step in range(50)])] == pytest.approx([2.0] * 50)
    jump = [value for _, value in smooth([(step, float(step >= 50)) for step in range(100)])]
    assert jump[49] == 0
    assert 0 < jump[50] < jump[60] < jump[99] < 1


@pytest.mark.parametrize(("span", "step"), [(1, 0.2), (3.1, 1), (7, 2), (0.03, 0.01), (100_000, 20_000)])
def test_ticks_are_at_round_figures(span, step) -> None:
    assert nice_step(span, 5) == pytest.approx(step)


def test_the_shown_python_answers(tiny_model, tmp_path, monkeypatch, capsys) -> None:
    """What page and card give to copy is run as it stands, on a real adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    recipe = Recipe(base_dtype="float32")
    result = replace(result_of(3), job=Job(model=str(tiny_model), recipe=recipe, max_new_tokens=8))
    page, card = read(result), model_card(result, "name", None, None)
    code = page.findtext(".//code[@id='snippet']") or ""
    assert code == snippet(result)
    assert f"```python\n{code}```\n" in card
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "snippet", "exec"), {})
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Is it blue?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = model.eval().generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].size(1) :]
    assert capsys.readouterr().out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_the_card_says_every_figure_that_there_is() -> None:
    card = model_card(result_of(), "name", "org/model", "mit")
    assert "| perplexity | 6.686 | 1.822 |" in card
    assert "| fields right | 11.0% | 83.0% |" in card
    assert "60 held-out rows; greedy answers to 50 of them." in card


def test_the_documented_fields_are_those_of_the_dataclasses() -> None:
    words = [sys.executable, str(ROOT / "docs" / "result_page.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_result_of_these_tests_is_one_that_is_read_back() -> None:
    result = result_of(3)
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))).to_dict() == result.to_dict()
