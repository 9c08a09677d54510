"""The chat template of a tokenizer that brings none: its family's where its tokens are there, else a plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoft.trainer.data.plain import special_texts

PLAIN = "plain"
# Only characters and the tokenizer's own stop token: no new tokens needed.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Assistant:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """tokens: each must be one special token of the tokenizer for its family's `template` to fit."""

    name: str
    tokens: tuple[str, ...]
    template: str


def _turns(begin: str, end: str) -> str:
    """Every turn as `begin`, with its role where ROLE stands, the content and `end`."""
    turn = begin.replace("ROLE", "{{ message['role'] }}") + "{{ message['content'] }}" + end
    prompt = begin.replace("ROLE", "assistant")
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


# Of the models' own chat versions, without tools, dates and default system prompts. A system turn goes into the first
# user turn where the family knows none.
SYSTEM_INTO_USER = (
    "{% set lead = messages[0]['content'] + '\n\n' if messages and messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if lead else messages %}"
    "{% for message in turns %}{% set content = (lead if loop.first else '') + message['content'] %}"
)
FAMILIES = (
    Family("ChatML", ("<|im_start|>", "<|im_end|>"), _turns("<|im_start|>ROLE\n", "<|im_end|>\n")),
    Family(
        "Llama 3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>"),
    ),
    Family(
        "Granite",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        _turns("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n"),
    ),
    Family("Phi", ("<|user|>", "<|assistant|>", "<|end|>"), _turns("<|ROLE|>\n", "<|end|>\n")),
    Family(
        "Gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        SYSTEM_INTO_USER
        + "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    Family(
        "Mistral",
        ("[INST]", "[/INST]"),
        SYSTEM_INTO_USER + "{% if message['role'] == 'assistant' %}{{ content }}{{ eos_token }}"
        "{% else %}[INST]{{ content }}[/INST]{% endif %}{% endfor %}",
    ),
)


def supply_template(tokenizer: Any) -> str | None:
    """Give `tokenizer` a template if it has none: its name, or None where none was needed.

    The template begins with the bos token where the tokenizer begins every text with it.
    """
    if tokenizer.chat_template:
        return None
    special = special_texts(tokenizer)
    family = next((family for family in FAMILIES if special.issuperset(family.tokens)), None)
    template = family.template if family else PLAIN_TEMPLATE
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + template
    return family.name if family else PLAIN
