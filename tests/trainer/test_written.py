"""What is trained is the answer: templates with the structure of the families, each kind of row, and what is said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from autoft.errors import DataError, ModelError
from autoft.planner.search.set_option import parse_settings
from autoft.trainer.data.check.examine import check
from autoft.trainer.data.fit import fit
from autoft.trainer.data.prepare import prepare
from autoft.trainer.data.read import RawRow
from autoft.trainer.data.shape import recognise
from autoft.trainer.data.tokens import prompt_ids, stop_ids, tokenize
from autoft.trainer.data.written import CONTROL, chat_of
from autoft.trainer.job import Job
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_stops, resolve
from tests.conftest import make_tokenizer, save_tiny_model, write_jsonl
from tests.trainer.test_templates import make

ASK = "{% if add_generation_prompt %}"
# GLM 4.5: no token ends an answer, the next role's does; an empty thought before each
NO_END = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|bot|>\n<think></think>\n{{ m.content }}"
    "{% else %}<|human|>\n{{ m.content }}{% endif %}{% endfor %}" + ASK + "<|bot|>{% endif %}"
)
# gpt-oss: channels, another end for earlier answers, and for calls
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|start|>assistant"
    "<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m.role }}<|message|>"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}" + ASK + "<|start|>assistant{% endif %}"
)
# Qwen 3.5: opens a thought unless it is told not to
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' not in m.content %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + ASK + "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    "{% endif %}{% endif %}"
)
# R1's distills: opens a thought, has no switch, writes no thought of any answer
STRIPS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|bot|>{{ m.content.split('</think>')[-1] }}</s>{% else %}"
    "<|human|>{{ m.content }}{% endif %}{% endfor %}" + ASK + "<|bot|><think>\n{% endif %}"
)
# Qwen 3: an empty thought before the last answer, no thoughts before earlier ones
EMPTY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set body = m.content.split('</think>')[-1].lstrip('\n') %}{% if loop.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ body }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    + ASK + "<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    + ASK + "<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
CALLS = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "</call>{% endfor %}",
)
TOKENS = {
    NO_END: ("<|bot|>", "<|human|>"),
    STRIPS: ("<|bot|>", "<|human|>"),
    CHANNELS: ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
}
PLAIN = ("What is 2 times 3?", "It is 6.", "And plus one?", "That is 7.")
THOUGHT = "<think>\n{}\n</think>\n\n{}"
THOUGHTS = (PLAIN[0], THOUGHT.format("2+2+2", PLAIN[1]), PLAIN[2], THOUGHT.format("6+1", PLAIN[3]))


def thinking_model(folder: Path) -> Path:
    """A tiny model whose template opens a thought unless it is told not to."""
    save_tiny_model(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKS
    tokenizer.save_pretrained(folder)
    return folder


class Trained:
    """The trained text of each answer, all that the model sees, and what is said of it."""

    def __init__(self, tokenizer: Any, done: Any, notes: list[str]) -> None:
        (example,) = done.examples
        runs = itertools.groupby(zip(example.input_ids, example.labels, strict=True), key=lambda p: p[1] != IGNORED)
        self.texts = [tokenizer.decode([label for _, label in run]) for trained, run in runs if trained]
        self.seen = tokenizer.decode(example.input_ids)
        self.said = [*notes, *(fact.format(n=count) for fact, (count, _) in done.facts.items())]
        self.tokenizer = tokenizer


def tokenizer_of(template: str) -> Any:
    tokens = TOKENS.get(template, ("<|im_start|>", "<|im_end|>"))
    return make(*tokens, template=template, merges=[("Ċ", "Ċ")])


def train(
    template: str,
    *turns: Any,
    stops: tuple[str, ...] | None = None,
    tokenizer: Any = None,
    thinking: Any = "auto",
    **others: Any,
) -> Trained:
    """Of one conversation: turns as texts, the user's first, or whole.

    stops: tokens at which the model stops beside </s>; None: <|im_end|> where the template has it.
    """
    stops = (("<|im_end|>",) if "<|im_end|>" in template else ()) if stops is None else stops
    tokenizer = tokenizer or tokenizer_of(template)
    roles = itertools.cycle(("user", "assistant"))
    messages = [t if isinstance(t, dict) else {"role": next(roles), "content": t} for t in turns]
    rows = recognise([RawRow({"messages": messages, **others}, "f:1")])
    ends = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    notes = fit(tokenizer, rows, stops=ends, thinking=thinking, model="tiny")
    return Trained(tokenizer, tokenize(rows, tokenizer, stops=ends), notes)


def test_where_the_next_role_ends_an_answer_it_is_trained_as_its_end() -> None:
    done = train(NO_END, *PLAIN, stops=("<|human|>",))
    assert done.texts == [f"\n<think></think>\n{answer}<|human|>" for answer in PLAIN[1::2]]
    assert done.seen.endswith("That is 7.<|human|>")
    assert done.said == [
        "the chat template adds an empty thought to 2 answers, which is trained too",
        "the chat template writes no stop token after 1 answers: <|human|> is trained there",
    ]


def test_where_nothing_ends_an_answer_the_eos_token_is_trained_as_its_end() -> None:
    """Behind the last answer, and in place of what follows an earlier one, which the model sees as it is written."""
    done = train(NO_END, *PLAIN)
    assert done.texts == [f"\n<think></think>\n{answer}</s>" for answer in PLAIN[1::2]]
    assert "It is 6.<|human|>\nAnd plus one?" in done.seen
    assert done.seen.endswith("That is 7.</s>")
    assert "the chat template writes no stop token after 2 answers: </s> is trained there" in done.said


def test_a_line_break_before_the_next_role_comes_before_the_end_that_is_trained() -> None:
    """It may be one token with the end of the answer, so that it cannot be left out."""
    template = NO_END.replace("<think></think>\n{{ m.content }}", "{{ m.content }}\n").replace(
        "m.content }}{% endif", "m.content }}\n{% endif"
    )
    for stops, end in (((), "</s>"), (("<|human|>",), "<|human|>")):
        done = train(
            template,
            *PLAIN,
            stops=stops,
            tokenizer=make("<|bot|>", "<|human|>", template=template, merges=[(".", "Ċ")]),
        )
        assert done.texts == [f"\n{answer}\n{end}" for answer in PLAIN[1::2]]


def test_an_earlier_answer_is_trained_to_end_as_the_last_does() -> None:
    tokenizer = tokenizer_of(CHANNELS)
    done = train(CHANNELS, *PLAIN, stops=("<|return|>",), tokenizer=tokenizer)
    assert done.texts == [f"<|channel|>final<|message|>{answer}<|return|>" for answer in PLAIN[1::2]]
    assert "It is 6.<|end|><|start|>user" in done.seen
    thought = train(CHANNELS, *THOUGHTS[:2], stops=("<|return|>",))
    assert thought.texts == [
        "<|channel|>analysis<|message|>2+2+2<|end|><|start|>assistant<|channel|>final<|message|>It is 6.<|return|>"
    ]


def test_plain_answers_are_asked_for_without_a_thought_by_the_template_s_own_switch() -> None:
    done = train(THINKS, *PLAIN)
    assert done.texts == ["It is 6.<|im_end|>", "That is 7.<|im_end|>"]
    assert done.said == [
        "thinking is off: the chat template is given enable_thinking=false, and the run's copy keeps it"
    ]
    turns = [{"role": "user", "content": "a"}]
    asked = done.tokenizer.decode(prompt_ids(turns, done.tokenizer))
    assert asked.endswith("assistant\n<think>\n\n</think>\n\n")
    told = done.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert told.endswith("assistant\n<think>\n")  # who asks for a thought still gets one


def test_thoughts_are_trained_where_the_prompt_opens_one() -> None:
    done = train(THINKS, *THOUGHTS)
    assert done.texts == ["2+2+2\n</think>\n\nIt is 6.<|im_end|>", "6+1\n</think>\n\nThat is 7.<|im_end|>"]
    assert done.said == []


def test_thinking_that_is_set_wins_over_what_the_data_has() -> None:
    on = train(THINKS, *PLAIN[:2], thinking="on")
    assert on.texts == ["</think>\n\nIt is 6.<|im_end|>"]
    assert on.said == ["the chat template adds an empty thought to 1 answers, which is trained too"]
    off = train(THINKS, *THOUGHTS[:2], thinking="off")
    assert off.texts == ["It is 6.<|im_end|>"]
    assert off.said[1:] == ["thinking is off: the reasoning of 1 answers is left out (--set thinking=on trains it)"]
    with pytest.raises(ModelError, match="tiny: thinking=on, but its chat template cannot be switched to it"):
        train(CHATML, *PLAIN, thinking="on")
    assert train(CHATML, *PLAIN, thinking="off").said == [
        "thinking=off changes nothing: the chat template opens no thought"
    ]


def test_a_template_that_strips_thoughts_trains_plain_answers_and_thoughts() -> None:
    plain = train(STRIPS, *PLAIN)
    assert plain.texts == ["It is 6.</s>", "That is 7.</s>"]
    assert plain.seen.endswith("<|bot|><think>\n\n</think>\n\nThat is 7.</s>")
    (note,) = plain.said
    assert note.startswith("thinking is off: the chat template opens a thought and has no switch")
    thoughts = train(STRIPS, *THOUGHTS)
    assert thoughts.texts[1] == "6+1\n</think>\n\nThat is 7.</s>"
    assert thoughts.said == ["the chat template drops the reasoning of 1 earlier answers, which is not trained"]


def test_a_thought_is_opened_once_where_the_template_opens_one_before_every_answer() -> None:
    opens = "<|im_start|>assistant\n<think>\n"
    template = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n{% endif %}{{ m.content }}")
    done = train(template.replace("<|im_start|>assistant\n", opens), *THOUGHTS)
    assert done.texts == ["2+2+2\n</think>\n\nIt is 6.<|im_end|>", "6+1\n</think>\n\nThat is 7.<|im_end|>"]
    assert done.seen.endswith(opens + done.texts[1] + "\n")


def test_a_thought_comes_behind_the_prompt_where_the_template_writes_another() -> None:
    """As DeepSeek V3.1's, which closes the thought of every answer that it writes."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|human|>{{ m.content }}{% else %}<|bot|></think>"
        "{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}" + ASK + "<|bot|>{% if thinking %}<think>"
        "{% else %}</think>{% endif %}{% endif %}"
    )
    tokenizer = make("<|bot|>", "<|human|>", template=template)
    assert train("", *PLAIN, tokenizer=tokenizer).texts == ["It is 6.</s>", "That is 7.</s>"]
    thoughts = train("", *THOUGHTS, tokenizer=tokenizer)
    assert thoughts.texts[1] == "6+1\n</think>\n\nThat is 7.</s>"
    assert thoughts.seen.endswith("<|bot|><think>" + thoughts.texts[1])
    assert thoughts.texts[0].strip() == "It is 6.</s>"
    assert thoughts.said[0].startswith("thinking is on: the chat template is given thinking=true")


def test_a_template_that_adds_empty_thoughts_says_so_and_trains_given_ones() -> None:
    plain = train(EMPTY, *PLAIN)
    assert plain.texts == ["It is 6.<|im_end|>", "<think>\n\n</think>\n\nThat is 7.<|im_end|>"]
    assert plain.said == ["the chat template adds an empty thought to 1 answers, which is trained too"]
    thoughts = train(EMPTY, *THOUGHTS)
    assert thoughts.texts == ["It is 6.<|im_end|>", "<think>\n6+1\n</think>\n\nThat is 7.<|im_end|>"]
    assert thoughts.said == ["the chat template drops the reasoning of 1 earlier answers, which is not trained"]
    answer = {"role": "assistant", "content": "It is 6.", "reasoning_content": "2+2+2"}
    assert train(EMPTY, PLAIN[0], answer).texts == ["<think>\n2+2+2\n</think>\n\nIt is 6.<|im_end|>"]


def test_reasoning_that_a_template_has_no_place_for_is_said_to_be_left_out() -> None:
    answer = {"role": "assistant", "content": "It is 6.", "reasoning_content": "2+2+2"}
    done = train(CHATML, PLAIN[0], answer)
    assert done.texts == ["It is 6.<|im_end|>"]
    assert done.said == ["the chat template has no place for reasoning: that of 1 answers is left out"]
    assert train(CHATML, *THOUGHTS[:2]).texts == [THOUGHTS[1] + "<|im_end|>"]  # a text like others


def called(*names: str, text: str = "", **arguments: Any) -> dict[str, Any]:
    calls = [{"id": "call00001", "type": "function", "function": {"name": n, "arguments": arguments}} for n in names]
    return {"role": "assistant", "content": text, "tool_calls": calls}


RESULT = {"role": "tool", "tool_call_id": "call00001", "content": '{"temp": 20}'}


def test_a_call_is_trained_as_the_template_writes_it_and_its_result_is_context() -> None:
    answer = {"role": "assistant", "content": "20."}
    done = train(CALLS, "How warm?", called("weather", city='"Lisbon"'), RESULT, answer)
    assert done.texts == [r'<call>weather({"city": "\"Lisbon\""})</call><|im_end|>', "20.<|im_end|>"]
    assert 'tool\n{"temp": 20}<|im_end|>' in done.seen
    beside = train(CALLS, "How warm?", called("weather", text="One moment.", city="Oslo"))
    assert beside.texts == ['One moment.<call>weather({"city": "Oslo"})</call><|im_end|>']


@pytest.mark.parametrize(
    ("template", "names", "words"),
    [
        (CHATML, ["weather"], "has no place for calls of tools, so this row cannot be trained"),
        (
            CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
            ["a", "b"],
            "writes one call of a tool an answer",
        ),
        (
            CALLS.replace("{{ c.function.arguments | tojson }}", ""),
            ["weather"],
            "leaves out an argument of a call: Lisbon",
        ),
        (
            CALLS.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"),
            ["weather"],
            "no place for the results of",
        ),
    ],
)
def test_what_a_template_has_no_place_for_is_refused_by_its_name(template, names, words) -> None:
    with pytest.raises(DataError, match=f"f:1: the model's chat template {words}" if "results" not in words else words):
        train(template, "How warm?", called(*names, city="Lisbon"), RESULT, {"role": "assistant", "content": "20."})


def test_a_template_that_takes_arguments_as_text_is_given_text() -> None:
    template = CALLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
    done = train(template, "How warm?", called("weather", city="Évora"))
    assert done.texts == ['<call>weather({"city": "Évora"})</call><|im_end|>']


def test_descriptions_of_tools_are_in_the_prompt_or_said_to_be_left_out() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}]
    without = train(CALLS, "How warm?", called("weather", city="Oslo"), tools=tools)
    assert without.said == ["the chat template has no place for descriptions of tools: those of 1 rows are left out"]
    done = train("{{ tools | tojson if tools }}" + CALLS, "How warm?", called("weather", city="Oslo"), tools=tools)
    assert done.said == []
    assert done.seen.startswith('[{"type": "function", "function": {"name": "weather"')
    assert done.texts == ['<call>weather({"city": "Oslo"})</call><|im_end|>']


def test_text_that_a_template_drops_beside_a_call_is_said() -> None:
    template = CALLS.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    done = train(template, "How warm?", called("weather", text="One moment.", city="Oslo"))
    assert done.texts == ['<call>weather({"city": "Oslo"})</call><|im_end|>']
    assert done.said == ["the chat template drops the text beside 1 calls of tools"]


def test_an_answer_that_is_not_to_be_trained_is_context() -> None:
    bad = {"role": "assistant", "content": "Go away.", "train": False}
    done = train(
        CHATML, "Where?", bad, {"role": "user", "content": "Be nice."}, {"role": "assistant", "content": "There."}
    )
    assert done.texts == ["There.<|im_end|>"]
    assert "Go away.<|im_end|>" in done.seen


def test_a_template_that_changes_an_answer_is_refused_and_one_that_trims_it_is_named() -> None:
    with pytest.raises(DataError, match="f:1: the model's chat template rewrites the text of an answer"):
        train(CHATML.replace("m.content }}", "m.content | upper }}"), *PLAIN)
    done = train(CHATML.replace("m.content }}", "m.content | trim }}"), "a", " b\n")
    assert done.texts == ["b<|im_end|>"]
    assert done.said == ["the chat template trims spaces and line breaks around 1 answers"]
    assert train(CHATML, "a", " b\n").texts == [" b\n<|im_end|>"]


def test_a_stop_token_at_the_end_of_an_answer_s_text_is_trained_once() -> None:
    tokenizer = make("<|close|>", template=CHATML.replace("<|im_end|>", "<|close|>"))
    tokenizer.eos_token = "<|close|>"
    done = train("", "a", "b<|close|>", tokenizer=tokenizer)
    assert done.texts == ["b<|close|>"]
    assert done.said == ["1 answers end with a stop token as text, which is trained once"]
    inner = train("", "a", "b<|close|>c", tokenizer=tokenizer)
    assert inner.texts == ["b<|close|>c<|close|>"]
    assert inner.said == [CONTROL.format(n=1)]  # as text it stops nothing


def test_only_what_ends_every_turn_is_a_stop_that_the_model_s_settings_lack() -> None:
    """The template's turn end is; an added token that an answer merely holds, or the role that comes next, is not."""
    tokenizer = tokenizer_of(CHATML)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|im_end|>")]
    assert stop_ids(tokenizer) == sorted(ends)
    done = train(CHATML, *PLAIN, stops=())
    assert done.texts == ["It is 6.<|im_end|>", "That is 7.<|im_end|>"]
    assert done.said == [
        "the model's own settings do not stop at <|im_end|>, which ends 2 answers: "
        "autoft stops there, others must be told"
    ]
    without = tokenizer_of(NO_END)
    assert stop_ids(without) == [without.eos_token_id]


def test_the_end_of_every_turn_comes_before_that_of_the_whole_conversation() -> None:
    """Phi 3's template writes its eos token behind the last turn."""
    done = train(
        CHATML.replace("{% if add", "{{ '' if add_generation_prompt else eos_token }}{% if add"), *PLAIN, stops=()
    )
    assert done.texts == ["It is 6.<|im_end|>", "That is 7.<|im_end|>"]


def test_a_template_for_parts_is_given_parts() -> None:
    """As those of vision-language models, which write nothing of a text."""
    template = CHATML.replace("{{ m.content }}", "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}")
    done = train(template, *PLAIN)
    assert done.texts == ["It is 6.<|im_end|>", "That is 7.<|im_end|>"]
    assert "What is 2" in done.tokenizer.decode(prompt_ids([{"role": "user", "content": PLAIN[0]}], done.tokenizer))


def test_a_system_turn_that_a_template_drops_is_said() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    done = train(template, {"role": "system", "content": "Be brief."}, *PLAIN[:2])
    assert done.said == ["the chat template drops the system turn of 1 rows"]


def test_an_answer_is_judged_without_its_thought() -> None:
    chat = chat_of(tokenizer_of(EMPTY))
    (row,) = recognise([RawRow({"prompt": "a", "completion": THOUGHTS[1]}, "f:1")])
    assert chat.expected(row) == chat.spoken("<think>\n2*3\n</think>\n\nIt is 6.") == "It is 6."
    assert chat.spoken("It is 6.") == "It is 6."
    (row,) = recognise(
        [RawRow({"messages": [{"role": "user", "content": "a"}, called("weather", city="Oslo")]}, "f:1")]
    )
    assert chat_of(tokenizer_of(CALLS)).expected(row) == '<call>weather({"city": "Oslo"})</call>'


def test_check_says_what_a_run_says_and_the_saved_tokenizer_asks_as_it_was_trained(tmp_path) -> None:
    model = thinking_model(tmp_path / "model")
    rows = [{"prompt": f"{n}", "completion": THOUGHT.format("hm", f"{n}") if n == 3 else f" {n}"} for n in range(30)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    for data, thinking in ((path, True), (str(write_jsonl(tmp_path / "b.jsonl", rows[4:])), False)):
        prepared = prepare(resolve(str(model)), data, eval_rows=0)
        report = check(data, model=str(model)).report
        found = [f.what for f in report.findings if f.kind in ("thinking", "template")]
        assert found == [note.split(" (the first at")[0] for note in prepared.notes(512)][: len(found)]
        assert len(found) == len(prepared.thinking) + len(prepared.train.facts) >= 1
        assert report.usable
        prepared.tokenizer.save_pretrained(tmp_path / "saved")
        saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
        asked = saved.decode(prompt_ids([{"role": "user", "content": "a"}], saved))
        assert asked.endswith("assistant\n<think>\n" if thinking else "<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("thinking", "value"), [("on", None), ("off", "enable_thinking=false"), ("auto", "enable_thinking=false")]
)
def test_check_takes_the_setting_of_a_run(autoft, tmp_path, thinking: str, value: str | None) -> None:
    model = thinking_model(tmp_path / "model")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": f" {n}"} for n in range(30)])
    done = autoft("data", "check", path, "--model", model, "--thinking", thinking, "--json")
    said = [each["what"] for each in json.loads(done.out)["findings"] if each["kind"] == "thinking"]
    assert [value in what for what in said] == ([True] if value else [])
    assert autoft("data", "check", path, "--thinking", thinking).code == 2


def test_the_model_s_own_stops_are_those_of_its_generation_settings(tmp_path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    assert load_stops(resolve(str(folder))) == [make_tokenizer().eos_token_id]
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}', encoding="utf-8")
    assert load_stops(resolve(str(folder))) == [5, 7]
    (folder / "generation_config.json").unlink()
    assert load_stops(resolve(str(folder))) == [make_tokenizer().eos_token_id]


def test_thinking_is_a_setting_and_plans_without_it_still_load() -> None:
    for word, value in (("off", "off"), ("on", "on"), ("true", "on"), ("False", "off"), ("auto", "auto")):
        assert parse_settings((f"thinking={word}",)) == ({}, {"thinking": value})
    assert Job.from_dict({"model": "a", "recipe": Recipe().to_dict()}, where="plan").thinking == "auto"
