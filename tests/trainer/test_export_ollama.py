"""Modelfiles: the template in Ollama's language renders what Jinja's does, and what it cannot render is refused."""

from __future__ import annotations

from typing import Any

import pytest

from autoft.errors import ModelError
from autoft.trainer.export.chat_template import go_template, render_go, turns_of, without_bos
from autoft.trainer.export.gguf import CHATS
from autoft.trainer.export.ollama import NAME, parse_modelfile
from tests.conftest import CHAT_TEMPLATE, make_tokenizer

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe {{ '{{' }} kind<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
IN_FIRST_TURN = (
    "{% set s = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}"
    "{% if m['role'] == 'user' %}[INST] {% if loop.first %}{{ s }}{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "llama 3": LLAMA_3,
    "default system": DEFAULT_SYSTEM,
    "no system": NO_SYSTEM,
    "in the first turn": IN_FIRST_TURN,
}


def tokenizer_with(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_renders_what_jinja_does(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    template = go_template(turns_of(tokenizer))
    compared = 0
    for chat in CHATS:
        if name == "no system" and chat[0]["role"] == "system":
            continue
        assert render_go(template, chat) == without_bos(tokenizer, chat)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "leaves out, or changes, what is said"),
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}", "depends on more than the roles"),
        ("{{ raise_exception('never') }}", "takes no plain conversation: never"),
    ],
)
def test_templates_that_do_more_are_refused(template: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        turns_of(tokenizer_with(template))  # type: ignore[arg-type]


def test_a_modelfile_is_parsed_as_it_was_written() -> None:
    text = 'FROM ./model.gguf\nTEMPLATE """a\n"b" {{ .Content }}\n"""\nPARAMETER stop "<|x|>"\n'
    assert parse_modelfile(text) == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", 'a\n"b" {{ .Content }}\n'),
        ("PARAMETER", 'stop "<|x|>"'),
    ]
    with pytest.raises(ValueError, match="not a command: 'from"):
        parse_modelfile("from x\n")


@pytest.mark.parametrize("name", ["my-model", "me/my_model:q4", "_a.b", "A" * 80])
def test_names_that_ollama_takes(name: str) -> None:
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "my model", "-a", "a/b/c/", "a:b:c", "é", "A" * 81, "a.b/c", "a\n"])
def test_names_that_ollama_does_not_take(name: str) -> None:
    assert not NAME.fullmatch(name)
