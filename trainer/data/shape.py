"""What a row means: its shape is recognised by its columns and brought to one form, a conversation or a plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.read import RawRow

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "tool": "tool",
}  # fmt: skip
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("input", "output"),
)  # fmt: skip
SHAPES_HELP = (
    'rows need "messages", "conversations", "text", or a pair such as "prompt" and "completion", '
    '"question" and "answer", "instruction" and "output"'
)

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One example: `messages` (role, content) ending with the assistant, or `text`. where: file:line."""

    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None


def recognise(raw_rows: Sequence[RawRow]) -> list[Row]:
    """The rows in one form. All must have the shape of the first.

    Raises: DataError naming file:line and the columns found when a shape is unknown, differs, or an answer is empty.
    """
    first = raw_rows[0]
    shape, convert = shape_of(first)
    rows = []
    for raw in raw_rows:
        try:
            found, _ = shape_of(raw)
        except DataError:
            found = None
        if found != shape:
            raise DataError(
                f"{raw.where}: mixed shapes: columns {_columns(raw)}, but {first.where} has {_columns(first)}",
                fix="give all rows the same columns",
            )
        rows.append(convert(raw))
    return rows


def shape_of(raw: RawRow) -> tuple[str, Callable[[RawRow], Row]]:
    """(name of the row's shape, what turns a row of that shape into its one form). Raises: DataError if unknown."""
    columns = {name.lower(): name for name in raw.fields}
    for name in ("messages", "conversations", "conversation"):
        if name in columns:
            return name, lambda raw, key=columns[name]: _conversation(raw, raw.fields[key])
    for prompt, answer in PAIRS:
        if prompt in columns and answer in columns:
            keys = (columns[prompt], columns[answer])
            return f"{prompt}/{answer}", lambda raw, keys=keys: _pair(raw, *keys)
    if "text" in columns:
        return "text", lambda raw, key=columns["text"]: Row(raw.where, text=_filled(raw, key))
    raise DataError(f"{raw.where}: columns {_columns(raw)} have no known shape", fix=SHAPES_HELP)


def _pair(raw: RawRow, prompt: str, answer: str) -> Row:
    question, reply = raw.fields[prompt], raw.fields[answer]
    if isinstance(question, list) or isinstance(reply, list):
        return _conversation(raw, [*_as_messages(question, "user"), *_as_messages(reply, "assistant")])
    text = _filled(raw, prompt)
    extra = raw.fields.get("input") if prompt.lower() == "instruction" else None
    if isinstance(extra, str) and extra.strip():
        text = f"{text}\n\n{extra}"
    system = raw.fields.get("system")
    start = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    turns = [*start, {"role": "user", "content": text}, {"role": "assistant", "content": _filled(raw, answer)}]
    return Row(raw.where, messages=tuple(turns))


def _as_messages(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _conversation(raw: RawRow, turns: Any) -> Row:
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{raw.where}: its conversation is not a list of turns", fix='write [{"role": "user", "content": ...}, ...]'
        )
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
    return Row(raw.where, messages=messages)


def _message(raw: RawRow, number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{raw.where}: turn {number} is not an object", fix='write {"role": "user", "content": ...}')
    given = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    role = ROLES.get(str(given).lower())
    if role is None:
        raise DataError(f"{raw.where}: turn {number} has role {given!r}", fix=f"use one of: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"{raw.where}: turn {number} has no text content", fix="give every turn a content string")
    if role == "assistant" and not content.strip():
        raise DataError(f"{raw.where}: turn {number}, an answer, is empty", fix="fill it in, or remove the row")
    return {"role": role, "content": content}


def _filled(raw: RawRow, key: str) -> str:
    value = raw.fields.get(key)
    if not isinstance(value, str):
        raise DataError(f"{raw.where}: {key} is {type(value).__name__}, not text", fix=f"give every row a text {key}")
    if not value.strip():
        raise DataError(f"{raw.where}: {key} is empty", fix="fill it in, or remove the row")
    return value


def _columns(raw: RawRow) -> str:
    return ", ".join(map(repr, raw.fields)) or "none"
