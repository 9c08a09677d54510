"""What a row means: its shape is recognised by its columns and brought to one form, a conversation or a plain text."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.mapping import Mapping, parse_mapping, propose
from autoft.trainer.data.read import RawRow

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
    "ai": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
# Of several the first counts: Alpaca's input goes with its instruction, MATH's answer is what its solution ends with.
PROMPTS = ("prompt", "question", "instruction", "query", "problem", "input", "inputs", "user")
ANSWERS = ("completion", "response", "output", "solution", "answer", "target", "targets", "reply", "assistant")
CONTEXTS = ("input", "context")  # what a prompt is about
SYSTEMS = ("system", "system_prompt")
LABELS = ("label_text", "label")
SHAPES_HELP = (
    'rows need "messages", "conversations", "text", or a pair such as "prompt" and "completion", '
    '"question" and "answer", "instruction" and "output"'
)
TURN_HELP = '[{"role": "user", "content": ...}, ...]'

PREFERRED = "of preference pairs only the chosen answers are trained"
NUMBERS = "numbers are trained as their text"
ALTERNATING = "turns without roles are taken in turn, the user's first"
TOOLS = "the tools that rows name are not put into their prompts"
WEIGHTS = "turns of weight 0 are trained like all others"
CLASSIFIED = "text is taken as the prompt and label as the answer (--map text=text trains on the text alone)"
HUMAN = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.MULTILINE)

Message = dict[str, str]
Convert = Callable[[RawRow], "Row"]
SHOWN = 60  # characters of a text in a line about its row


@dataclass(frozen=True, slots=True)
class Row:
    """One example: `messages` (role, content) ending with the assistant, or `text`.

    where: file:line. goes_on: the text has no end here. remark: what the user should know of how the row was read.
    """

    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    goes_on: bool = False
    remark: str | None = None


def recognise(raw_rows: Iterable[RawRow], mapping: Mapping | None = None) -> list[Row]:
    """The rows in one form. Raises: as convert_rows."""
    return list(convert_rows(raw_rows, mapping))


def convert_rows(raw_rows: Iterable[RawRow], mapping: Mapping | None = None) -> Iterator[Row]:
    """The rows in one form, one after the other. All must have the shape of the first.

    Raises: DataError naming file:line and the columns found when a shape is unknown, differs, or an answer is empty.
    """
    rows = iter(raw_rows)
    first = next(rows, None)
    if first is None:
        return
    shape, convert = shape_of(first, mapping)
    yield convert(first)
    for raw in rows:
        found = (shape, convert) if mapping else _shape(raw)
        if found is None or found[0] != shape:
            raise DataError(
                f"{raw.where}: mixed shapes: columns {_columns(raw)}, but {first.where} has {_columns(first)}",
                fix="give all rows the same columns",
            )
        yield found[1](raw)


def shape_of(raw: RawRow, mapping: Mapping | None = None) -> tuple[str, Convert]:
    """(name of the row's shape, what turns a row of that shape into its one form).

    mapping: which column is what; without one that is told by the columns' names, whatever their case.
    Raises: DataError if the shape is unknown, with an example of a mapping that would make one.
    """
    if mapping is not None:
        return mapping.words, partial(_mapped, mapping=mapping)
    found = _shape(raw)
    if found is None:
        raise DataError(f"{raw.where}: columns {_columns(raw)} have no known shape", fix=_proposal(raw))
    return found


def shown(row: Row) -> str:
    """A row in one short line: user 'What is 2 + 2?', assistant '4'."""
    if row.text is not None:
        return f"text {_short(row.text)}"
    return ", ".join(f"{message['role']} {_short(message['content'])}" for message in row.messages)


def _shape(raw: RawRow) -> tuple[str, Convert] | None:
    """A column that is null counts only where nothing else makes a shape: tables have all columns in every row."""
    filled = tuple(name for name, value in raw.fields.items() if value is not None)
    return _shape_of_columns(filled) or _shape_of_columns(tuple(raw.fields))


@lru_cache(1024)
def _shape_of_columns(columns: tuple[str, ...]) -> tuple[str, Convert] | None:
    """The first that fits: a conversation, preference pairs, a prompt and its answer, a text and its label, a text."""
    named = {name.lower(): name for name in columns}

    def first(names: Iterable[str]) -> str | None:
        return next((name for name in names if name in named), None)

    system = named.get(first(SYSTEMS) or "")
    talk, prompt, answer, label = first(CONVERSATIONS), first(PROMPTS), first(ANSWERS), first(LABELS)
    if talk:
        return talk, partial(_talk, key=named[talk], system=system)
    if "chosen" in named and "rejected" in named:
        return "chosen", partial(_preferred, prompt=named.get(prompt or ""), system=system, key=named["chosen"])
    if prompt and answer:
        context = first(name for name in CONTEXTS if name != prompt and prompt != "prompt")
        pair = partial(_pair, context=named.get(context or ""), system=system, history=named.get("history"))
        return f"{prompt}/{answer}", partial(pair, prompt=named[prompt], answer=named[answer])
    if "text" in named and label:
        return f"text/{label}", partial(_pair, prompt=named["text"], answer=named[label], remark=CLASSIFIED)
    if "text" in named and not first((*ANSWERS, "summary")):
        return "text", partial(_text, key=named["text"])
    return None


def _mapped(raw: RawRow, *, mapping: Mapping) -> Row:
    row = mapping.apply(raw)
    system = "system" if "system" in row.fields else None
    if "messages" in row.fields:
        return _talk(row, key="messages", system=system)
    if "text" in row.fields:
        return _text(row, key="text")
    prompt = "prompt" if "prompt" in row.fields else None
    if "chosen" in row.fields or prompt is None:
        return _preferred(row, prompt=prompt, system=system, key="chosen")
    return _pair(row, prompt=prompt, answer="completion", system=system)


def _text(raw: RawRow, *, key: str) -> Row:
    return Row(raw.where, text=_filled(raw, key), goes_on=raw.goes_on)


def _talk(raw: RawRow, *, key: str, system: str | None) -> Row:
    return _conversation(raw, _turns(raw.fields[key]), system)


def _preferred(raw: RawRow, *, prompt: str | None, system: str | None, key: str) -> Row:
    """The chosen answer to the prompt, or a whole conversation: as turns, or as text of Human and Assistant."""
    chosen = _turns(raw.fields.get(key))
    if isinstance(chosen, str) and len(pieces := HUMAN.split(chosen)) > 1 and not pieces[0].strip():
        roles = ("user" if name == "Human" else "assistant" for name in pieces[1::2])
        chosen = [{"role": r, "content": text.strip()} for r, text in zip(roles, pieces[2::2], strict=True)]
    elif prompt is not None and not (isinstance(chosen, list) and chosen and _role(chosen[0]) in ("user", "system")):
        row = _pair(raw, prompt=prompt, answer=key, system=system)
        return replace(row, remark=PREFERRED)
    return replace(_conversation(raw, chosen, system), remark=PREFERRED)


def _pair(
    raw: RawRow,
    *,
    prompt: str,
    answer: str,
    context: str | None = None,
    system: str | None = None,
    history: str | None = None,
    remark: str | None = None,
) -> Row:
    question, reply = _turns(raw.fields[prompt]), _turns(raw.fields.get(answer))
    if raw.fields.get("label") is False:
        raise DataError(
            f"{raw.where}: its label is false, so that {answer} is no good answer", fix="keep the rows labelled true"
        )
    earlier = _earlier(raw, history)
    if isinstance(question, list) or isinstance(reply, list):
        turns = [*_as_turns(raw, prompt, question, "user"), *_as_turns(raw, answer, reply, "assistant")]
        return _conversation(raw, [*earlier, *turns], system)
    text = _filled(raw, prompt)
    about = raw.fields.get(context) if context else None
    if context and about and str(about).strip():
        text = f"{text}\n\n{_filled(raw, context)}"
    if isinstance(reply, int | float):
        _demand_no_choices(raw, answer)
        remark = f"{remark}; {NUMBERS}" if remark else NUMBERS
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": _filled(raw, answer)}]
    return Row(raw.where, messages=(*_system(raw, system), *earlier, *turns), remark=remark)


def _as_turns(raw: RawRow, key: str, value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": _filled(raw, key)}]


def _earlier(raw: RawRow, history: str | None) -> list[Message]:
    """Turns before the prompt, from a list of [question, answer]."""
    pairs = raw.fields[history] if history else None
    if not pairs:
        return []
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs):
        raise DataError(f"{raw.where}: {history} is not a list of [question, answer]", fix="write it so, or remove it")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _system(raw: RawRow, key: str | None) -> list[Message]:
    text = raw.fields.get(key) if key else None
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _turns(value: Any) -> Any:
    """A list that stands in a table's cell as JSON, as that list; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _conversation(raw: RawRow, turns: Any, system: str | None) -> Row:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{raw.where}: its conversation is not a list of turns", fix=f"write {TURN_HELP}")
    remark = _unused(raw, turns)
    if all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
        remark = ALTERNATING
    messages = tuple(_message(raw, number, turn) for number, turn in enumerate(turns, start=1))
    if messages[0]["role"] == "assistant":
        raise DataError(
            f"{raw.where}: the conversation begins with the assistant, so there is nothing to answer",
            fix="begin it with a user turn, or remove the row",
        )
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{raw.where}: the conversation ends with the {messages[-1]['role']}, so there is no answer to learn",
            fix="end it with an assistant turn, or remove the row",
        )
    if messages[0]["role"] != "system":
        messages = (*_system(raw, system), *messages)
    return Row(raw.where, messages=messages, remark=remark)


def _unused(raw: RawRow, turns: list[Any]) -> str | None:
    """What the row says of the conversation and nothing is made of."""
    if raw.fields.get("tools") or raw.fields.get("functions"):
        return TOOLS
    return WEIGHTS if any(isinstance(turn, dict) and turn.get("weight") == 0 for turn in turns) else None


def _role(turn: Any) -> str | None:
    given = next((turn[name] for name in ("role", "from", "speaker") if turn.get(name) is not None), None)
    return ROLES.get(str(given).lower())


def _message(raw: RawRow, number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{raw.where}: turn {number} is not an object", fix='write {"role": "user", "content": ...}')
    role = _role(turn)
    if role is None:
        given = turn.get("role", turn.get("from", turn.get("speaker")))
        raise DataError(f"{raw.where}: turn {number} has role {given!r}", fix=f"use one of: {', '.join(ROLES)}")
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    if isinstance(content, list):
        content = _parts(raw, number, content)
    if not isinstance(content, str):
        also = ", only a call of a tool" if turn.get("tool_calls") else ""
        raise DataError(f"{raw.where}: turn {number} has no text content{also}", fix="give every turn a content string")
    if role == "assistant" and not content.strip():
        raise DataError(f"{raw.where}: turn {number}, an answer, is empty", fix="fill it in, or remove the row")
    return {"role": role, "content": content}


def _parts(raw: RawRow, number: int, parts: list[Any]) -> str:
    """The text of content in parts, {"type": "text", "text": ...}."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{raw.where}: turn {number} has content that is no text", fix="leave images and the like out of the data"
        )
    return "".join(str(text) for text in texts)


def _filled(raw: RawRow, key: str) -> str:
    value = raw.fields.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, bool):
        raise DataError(
            f"{raw.where}: {key} is {json.dumps(value)}, not text", fix="write the words that the model shall answer"
        )
    if not isinstance(value, str):
        raise DataError(f"{raw.where}: {key} is {type(value).__name__}, not text", fix=f"give every row a text {key}")
    if not value.strip():
        raise DataError(f"{raw.where}: {key} is empty", fix="fill it in, or remove the row")
    return value


def _demand_no_choices(raw: RawRow, answer: str) -> None:
    choices = next((name for name in raw.fields if name.lower() in ("choices", "options") and raw.fields[name]), None)
    if choices is not None:
        raise DataError(
            f"{raw.where}: {answer} is a number that stands for one of its {choices}",
            fix=f"write the {choices} into the prompt, and the right one as the answer",
        )


def _proposal(raw: RawRow) -> str:
    words = propose(raw.fields)
    if words is None:
        return f"name the columns with --map prompt=...,completion=...; {SHAPES_HELP}"
    option = f"for example --map {shlex.quote(words)}"
    try:
        reads = f", which makes of it: {shown(_mapped(raw, mapping=parse_mapping(words)))}"
    except DataError:
        reads = ""
    return f"{option}{reads}; without --map {SHAPES_HELP}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")


def _columns(raw: RawRow) -> str:
    return ", ".join(map(repr, raw.fields)) or "none"
