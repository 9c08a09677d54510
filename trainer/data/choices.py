"""Questions with options: where a row has them, and how they go into the prompt.

The prompt gets a line "A. Lisbon" for each option after a blank line; the answer stays as the row has it, a letter or
the text of an option.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

LISTS = ("choices", "options", "candidates", "endings", "answer_choices", "alternatives")
# One column an option: A, option_a, option1, opa, choice_b, ending0, answer_a ...
ONE_EACH = re.compile(
    r"(?:(?:option|choice|opt?|ans(?:wer)?|ending|sol|candidate)s?[ _-]?)?(?P<label>[a-j]|\d{1,2})", re.I
)
# What names the right option where there are some; as an answer of their own these mean nothing
KEYS = ("answerkey", "answer_key", "answer", "correct_answer", "correct_option", "correct_choice", "correct",
        "answer_letter", "gold", "label", "target", "key", "cop", "correct_answer_letter")  # fmt: skip
# Prompts, where there are options
STEMS = ("question_stem", "stem", "sentence", "goal", "ctx")
TEXT_NAMES = ("text", "content", "value", "option", "choice", "answer", "texts")
LABEL_NAMES = ("label", "key", "id", "letter", "labels", "name")

Options = tuple[tuple[str, str], ...]
REMARK = 'options are put into the prompt, a line such as "A. ..." for each'
BESIDE = "options stand in the prompt already"


def option_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that hold the options of a question: one list of them, or one column each; else none."""
    named = {name.lower(): name for name in columns}
    for name in LISTS:
        if name in named:
            return (named[name],)
    groups: dict[str, list[str]] = {}
    for name in columns:
        match = ONE_EACH.fullmatch(name)
        if match:
            groups.setdefault(name[: match.start("label")].lower(), []).append(name)
    first = next((group for group in groups.values() if len(group) > 1 and label_of(group[0]).lower() in "a01"), ())
    return tuple(first)


def options_of(fields: Mapping[str, Any], columns: Sequence[str]) -> Options | None:
    """(label, text) of each option, from what option_columns gives; None where the values are no options."""
    if len(columns) > 1:
        pairs = [(label_of(name).upper(), fields.get(name)) for name in columns]
        return _complete([(label, text) for label, text in pairs if text not in (None, "")])
    value = fields.get(columns[0])
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict):
        texts: Any = next((value[name] for name in TEXT_NAMES if isinstance(value.get(name), list)), None)
        if texts is None:
            return _complete(list(value.items())) if all(ONE_EACH.fullmatch(str(name)) for name in value) else None
        labels = next((value[name] for name in LABEL_NAMES if isinstance(value.get(name), list)), None)
        return _listed(texts, labels)
    return _listed(value, None) if isinstance(value, list) else None


def _listed(options: list[Any], labels: list[Any] | None) -> Options | None:
    if labels is not None and len(labels) == len(options):
        return _complete(list(zip(map(str, labels), options, strict=True)))
    if all(isinstance(option, dict) for option in options):
        return _complete([_labelled(option, at) for at, option in enumerate(options)])
    return _complete([_split(option, at) for at, option in enumerate(options)])


def _labelled(option: dict[str, Any], at: int) -> tuple[str, Any]:
    """Of {"label": "A", "text": ...}, or of {"A": ...}."""
    if len(option) == 1 and ONE_EACH.fullmatch(next(iter(option))):
        return next(iter(option.items()))
    label = next((option[name] for name in LABEL_NAMES if option.get(name) is not None), None)
    return _letter(at) if label is None else str(label), next((option[n] for n in TEXT_NAMES if n in option), None)


def _split(option: Any, at: int) -> tuple[str, Any]:
    """The label that a text begins with: "A) Lisbon", "B. Bonn", "(c) Rome"."""
    letter = _letter(at)
    match = re.match(rf"\(?{letter}[).:]\s*", option, re.IGNORECASE) if isinstance(option, str) else None
    return letter, option[match.end() :] if match else option


def _complete(options: Sequence[tuple[str, Any]]) -> Options | None:
    """The options if there are two or more and all are texts or numbers."""
    if len(options) < 2 or not all(isinstance(text, str | int | float) for _, text in options):
        return None
    return tuple((label, text if isinstance(text, str) else json.dumps(text)) for label, text in options)


def asked_with(prompt: str, options: Options) -> str:
    """The prompt and a line for each option; the prompt alone where it has them already."""
    if are_in(prompt, options):
        return prompt
    return prompt + "\n\n" + "\n".join(f"{label}. {text}" for label, text in options)


def are_in(prompt: str, options: Options) -> bool:
    """Whether a prompt holds the texts of all options, in their order."""
    at = 0
    for _, text in options:
        at = prompt.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


def is_answer(answer: Any, options: Options) -> bool:
    """Whether an answer names one of the options, by its label or its text; a number may count from 0, and does not."""
    word = str(answer).strip()
    letter = None if isinstance(answer, int | float) else word.strip("().: ").upper()
    return any(letter == label.upper() or word == text.strip() for label, text in options)


def label_of(name: str) -> str:
    """The label in the name of a column that holds one option: "a" of option_a."""
    match = ONE_EACH.fullmatch(name)
    return match["label"] if match else name


def _letter(at: int) -> str:
    return string.ascii_uppercase[at] if at < 26 else str(at + 1)
