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
from autoft.trainer.data import choices, rendered
from autoft.trainer.data.calls import parsed, tools_of
from autoft.trainer.data.conversation import (
    ALTERNATING,
    ROLES,
    TEXT_NAMES,
    TURN_HELP,
    Message,
    checked,
    messages_of,
    role_of,
    said_by,
    text_of,
    turns_in,
)
from autoft.trainer.data.layout import PREFERENCES, Layout, layout_of
from autoft.trainer.data.lines import RawRow
from autoft.trainer.data.mapping import Mapping, alternatives, parse_mapping, propose
from autoft.trainer.data.marks import CLEAR, OPPOSITE, is_good, to_train
from autoft.trainer.data.notes import OF_TURNS, Notes

__all__ = ["ALTERNATING", "Message", "Row", "convert_rows", "recognise", "shape_of", "shown"]

# One message a row: who says it, what it answers
WHO = ("role", "from", "speaker", "sender", "author_role", "message_role")
PARENTS = ("parent_id", "parent", "parent_message_id", "parent_uuid", "reply_to", "in_reply_to", "reply_to_id")
SHAPES_HELP = (
    'rows need "messages", "conversations", "text", or a pair such as "prompt" and "completion", '
    '"question" and "answer", "instruction" and "output"'
)

PREFERRED = "of preference pairs only the chosen answers are trained"
NUMBERS = "numbers are trained as their text"
SAID = re.compile(
    r"(?im:^\W{0,5}(?:user|human|assistant|ai|bot|gpt|customer|agent|system|model|q|a)\W{0,3}:)|\b(?:USER|ASSISTANT|HUMAN):"
)
HUMAN = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.MULTILINE)

Convert = Callable[[RawRow], "Row"]
SHOWN = 60  # characters of a text in a line about its row


@dataclass(frozen=True, slots=True)
class Row:
    """One example: `messages` ending with the assistant, or `text`.

    where: file:line. goes_on: the text has no end here. tools: what the assistant may call, in OpenAI's form. remarks:
    what the user should know of how the row was read. unused: its columns, and fields of its turns, that nothing is
    made of. left_out: why the row is not to be trained, None where it is.
    """

    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    goes_on: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: str | None = None


def recognise(raw_rows: Iterable[RawRow], mapping: Mapping | None = None) -> list[Row]:
    """The rows to train on, in one form. Raises: as convert_rows."""
    return [row for row in convert_rows(raw_rows, mapping) if row.left_out is None]


def convert_rows(raw_rows: Iterable[RawRow], mapping: Mapping | None = None) -> Iterator[Row]:
    """The rows in one form, one after the other, those that are left out too. All must have the shape of the first.

    Raises: DataError naming file:line and the columns found when a shape is unknown, differs, or an answer is empty.
    """
    rows = iter(raw_rows)
    first = next(rows, None)
    if first is None:
        return
    shape, convert = shape_of(first, mapping)
    yield convert(first)
    for raw in rows:
        own_shape = (shape, convert) if mapping else _shape(raw)
        if own_shape is None or own_shape[0] != shape:
            raise DataError(
                f"{raw.where}: mixed shapes: columns {_columns(raw)}, but {first.where} has {_columns(first)}",
                fix="give all rows the same columns",
            )
        yield own_shape[1](raw)


def shape_of(raw: RawRow, mapping: Mapping | None = None) -> tuple[str, Convert]:
    """(name of the row's shape, what turns a row of that shape into its one form).

    mapping: which column is what; without one that is told by the columns' names, whatever their case.
    Raises: DataError if the shape is unknown, with an example of a mapping that would make one.
    """
    if mapping is not None:
        return mapping.words, partial(_mapped, mapping=mapping)
    shape = _shape(raw)
    if shape is None:
        raise DataError(f"{raw.where}: columns {_columns(raw)} have no known shape", fix=_proposal(raw))
    return shape


def shown(row: Row) -> str:
    """A row in one short line: user 'What is 2 + 2?', assistant '4'."""
    if row.text is not None:
        return f"text {_short(row.text)}"
    return ", ".join(f"{message['role']} {_short(said_in(message))}" for message in row.messages)


def said_in(message: Message) -> str:
    """All that a message says, as one text: its thoughts, its content, its calls of tools."""
    if len(message) == 2:
        return str(message["content"])
    calls = [json.dumps(call["function"], ensure_ascii=False, default=str) for call in message.get("tool_calls", ())]
    return "\n".join(filter(None, (message.get("reasoning_content"), message["content"], *calls)))


def names_of(unused: Iterable[str]) -> str:
    """The names that rows have as unused, in a few words: columns id, url and the turns' weight."""
    columns = [_printable(name) for name in unused if not name.startswith(OF_TURNS)]
    fields = [_printable(name.removeprefix(OF_TURNS)) for name in unused if name.startswith(OF_TURNS)]
    words = [f"column{'s' * (len(columns) > 1)} {', '.join(columns)}"] if columns else []
    return " and ".join([*words, *([f"{OF_TURNS}{', '.join(fields)}"] if fields else [])])


def _printable(name: str) -> str:
    """A column's name, with escapes where a terminal would obey it."""
    return name if name.isprintable() else repr(name)[1:-1]


def _shape(raw: RawRow) -> tuple[str, Convert] | None:
    """A column that is null counts only where nothing else makes a shape: tables have all columns in every row."""
    fields = raw.fields
    filled = tuple(fields if None not in fields.values() else (n for n, value in fields.items() if value is not None))
    known = _shape_of_columns(filled) or _shape_of_columns(tuple(raw.fields))
    if known is None or known[0].text:
        _demand_whole(raw)
    if known is None:
        return None
    layout, convert = known
    if layout.talk and not isinstance(turns_in(raw.fields[layout.talk]), list):
        # a number of turns, or a text that is called dialogue
        others = _shape_of_columns(tuple(name for name in filled if name != layout.talk))
        if others is not None and others[0].answer is not None:
            layout = replace(others[0], unused=(*others[0].unused, layout.talk))
            convert = partial(_converted, layout=layout)
    return layout.name, convert


@lru_cache(1024)
def _shape_of_columns(columns: tuple[str, ...]) -> tuple[Layout, Convert] | None:
    layout = layout_of(columns)
    return None if layout is None else (layout, partial(_converted, layout=layout))


def _mapped(raw: RawRow, *, mapping: Mapping) -> Row:
    row = mapping.apply(raw)
    prompt = "prompt" if "prompt" in row.fields else None
    layout = Layout(
        mapping.words,
        talk="messages" if "messages" in row.fields else None,
        prompt=prompt,
        answer="chosen" if "chosen" in row.fields else "completion" if "completion" in row.fields else None,
        text="text" if "text" in row.fields else None,
        system="system" if "system" in row.fields else None,
        preferred="chosen" in row.fields,
    )
    notes = Notes()
    used = mapping.columns(raw)
    left = [name for name in raw.fields if name not in used]
    if layout.text is None:
        for name in [name for name in left if _is_clear_mark(name, raw.fields[name])]:
            left.remove(name)
            _judge(raw, name, notes)
    notes.unused += [name for name in left if _says_something(raw.fields[name])]
    return Row(raw.where, left_out=notes.left_out) if notes.left_out else _row(row, layout, notes)


def _converted(raw: RawRow, *, layout: Layout) -> Row:
    notes = Notes()
    for name in layout.unused:
        if _says_something(raw.fields.get(name)):
            notes.unused.append(name)
    if layout.media:
        rendered.refuse_media(raw.where, raw.fields, layout.media, notes)
    for name in layout.marks:
        _judge(raw, name, notes)
    for name in layout.flags:
        _heed(raw, name, notes)
    return Row(raw.where, left_out=notes.left_out) if notes.left_out else _row(raw, layout, notes)


def _is_clear_mark(name: str, value: Any) -> bool:
    """Whether a column that a mapping leaves aside says without doubt whether an answer is good."""
    return name.lower() in (*CLEAR, *OPPOSITE) or (name.lower() == "label" and isinstance(value, bool))


def _judge(raw: RawRow, name: str, notes: Notes) -> None:
    """Leave a row out whose mark says that its answer is bad."""
    value = raw.fields.get(name)
    good = is_good(name, value)
    if good is None:
        if _says_something(value):
            notes.unused.append(name)
    elif not good:
        notes.left_out = f"{name} {json.dumps(value, ensure_ascii=False)} marks a bad answer"


def _heed(raw: RawRow, name: str, notes: Notes) -> None:
    """Leave a row out whose flag says that it is not to be trained."""
    value = raw.fields.get(name)
    trained, unclear = to_train({name.lower(): value})
    if trained is False:
        notes.left_out = f"{name} {json.dumps(value)} marks a row that is not to be trained"
    elif unclear and _says_something(value):
        notes.unused.append(name)


def _row(raw: RawRow, layout: Layout, notes: Notes) -> Row:
    if layout.remark:
        notes.remark(layout.remark)
    tools = _tools(raw, layout.tools, notes) if layout.tools else ()
    if layout.text is not None:
        text = rendered.plain(_filled(raw, layout.text), notes)
        return Row(
            raw.where, text=text, goes_on=raw.goes_on, remarks=tuple(notes.remarks), unused=tuple(notes.unused),
            left_out=notes.left_out,
        )  # fmt: skip
    if layout.preferred:
        messages = _preferred(raw, layout, notes)
    elif layout.calls is not None:
        messages = _called(raw, layout, notes)
    elif layout.talk is not None:
        messages = checked(raw.where, _conversation(raw, turns_in(raw.fields[layout.talk]), notes), notes)
    else:
        messages = _pair(raw, layout, notes)
    system = text_of(raw.fields.get(layout.system)) if layout.system else None
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    elif _says_something(system) and messages[0]["content"] != system:
        notes.unused.append(str(layout.system))
    rendered.tidied(raw.where, messages, notes)
    return Row(
        raw.where, messages=tuple(messages), tools=tools, remarks=tuple(notes.remarks), unused=tuple(notes.unused),
        left_out=notes.left_out,
    )  # fmt: skip


def _tools(raw: RawRow, key: str, notes: Notes) -> tuple[dict[str, Any], ...]:
    value = raw.fields.get(key)
    if not _says_something(value):
        return ()
    tools = tools_of(value)
    if tools is None:
        notes.unused.append(key)
    return tools or ()


def _preferred(raw: RawRow, layout: Layout, notes: Notes) -> list[Message]:
    """The chosen answer to the prompt or to a conversation, or a whole conversation: as turns, or as text."""
    notes.remark(PREFERRED)
    assert layout.answer is not None
    chosen = said_by(raw.fields.get(layout.answer))
    if isinstance(chosen, str) and len(pieces := HUMAN.split(chosen)) > 1 and not pieces[0].strip():
        roles = ("user" if name == "Human" else "assistant" for name in pieces[1::2])
        chosen = [{"role": r, "content": text.strip()} for r, text in zip(roles, pieces[2::2], strict=True)]
    whole = isinstance(chosen, list) and bool(chosen) and role_of(chosen[0]) in ("user", "system")
    if whole or (layout.prompt is None and layout.talk is None):
        messages = checked(raw.where, _conversation(raw, chosen, notes), notes)
        contents = [message["content"].strip() for message in messages]
        for key in filter(None, (layout.prompt, layout.talk)):
            earlier = said_by(raw.fields.get(key))
            texts = (
                [m["content"] for m in messages_of(raw.where, earlier, notes)]
                if isinstance(earlier, list)
                else [earlier]
            )
            if not all(text is None or str(text).strip() in contents for text in texts):
                notes.unused.append(key)
        return messages
    if layout.talk is None:
        return _pair(raw, layout, notes)
    turns = _conversation(raw, turns_in(raw.fields[layout.talk]), notes)
    if turns and turns[-1]["role"] == "assistant":
        raise DataError(
            f"{raw.where}: {layout.talk} ends with an answer, and {layout.answer} is another",
            fix=f"end {layout.talk} with the user's turn, or remove {layout.answer}",
        )
    answer = _as_turns(raw, layout.answer, chosen, "assistant", notes)
    return checked(raw.where, [*turns, *answer], notes)


def _pair(raw: RawRow, layout: Layout, notes: Notes) -> list[Message]:
    prompt, answer = layout.prompt, layout.answer
    assert prompt is not None
    assert answer is not None
    question, reply = said_by(raw.fields[prompt]), said_by(raw.fields.get(answer))
    earlier = _earlier(raw, layout.history)
    if isinstance(question, list) or isinstance(reply, list):
        beside = (layout.context, layout.thought, *layout.options)
        notes.unused += [name for name in beside if name and _says_something(raw.fields.get(name))]
        turns = _as_turns(raw, prompt, question, "user", notes)
        return checked(raw.where, [*earlier, *turns, *_as_turns(raw, answer, reply, "assistant", notes)], notes)
    text = _asked(raw, prompt, layout.context)
    if layout.options:
        text = _with_options(raw, text, layout, notes)
    if isinstance(reply, int | float):
        notes.remark(NUMBERS)
    message: Message = {"role": "assistant", "content": _filled(raw, answer)}
    thought = raw.fields.get(layout.thought) if layout.thought else None
    if _says_something(thought):
        if isinstance(thought, str) and "<think>" not in message["content"]:
            message["reasoning_content"] = thought
            notes.remark(f"{layout.thought} is taken as the reasoning before the answer")
        else:
            notes.unused.append(str(layout.thought))
    if ("<" in text or "[INST]" in text or "Human:" in text) and "reasoning_content" not in message:
        unrendered = rendered.unrendered(text, message["content"], notes)
        if unrendered is not None:
            return checked(raw.where, [*earlier, *unrendered], notes)
    return [*earlier, {"role": "user", "content": text}, message]


def _called(raw: RawRow, layout: Layout, notes: Notes) -> list[Message]:
    """A prompt, and the calls of tools that answer it."""
    assert layout.prompt is not None
    assert layout.calls is not None
    answer = {"role": "call", "content": raw.fields.get(layout.calls)}
    return [{"role": "user", "content": _asked(raw, layout.prompt, None)}, *messages_of(raw.where, [answer], notes)]


def _asked(raw: RawRow, prompt: str, context: str | None) -> str:
    """The prompt and what it is about; either may be empty."""
    about = raw.fields.get(context) if context else None
    if not context or not about or not str(about).strip():
        return _filled(raw, prompt)
    if raw.fields[prompt] is None or raw.fields[prompt] == "":
        return _filled(raw, context)
    question, matter = _filled(raw, prompt), _filled(raw, context)
    return question if matter.strip() in question else f"{question}\n\n{matter}"


def _as_turns(raw: RawRow, key: str, value: Any, role: str, notes: Notes) -> list[Message]:
    if not isinstance(value, list):
        return [{"role": role, "content": _filled(raw, key)}]
    if value and not any(isinstance(each, dict) for each in value):
        texts = "text" if all(isinstance(each, str) for each in value) else "value"
        raise DataError(
            f"{raw.where}: {key} is a list of {len(value)} {texts}{'s' * (len(value) > 1)}, not one text",
            fix="write a row for each, or take the first of each: --map "
            f"{'completion' if role == 'assistant' else 'prompt'}={key}.0",
        )
    return messages_of(raw.where, value, notes)


def _earlier(raw: RawRow, history: str | None) -> list[Message]:
    """Turns before the prompt, from a list of [question, answer]."""
    pairs = parsed(raw.fields[history]) if history else None
    if not pairs:
        return []
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs
    ):
        raise DataError(f"{raw.where}: {history} is not a list of [question, answer]", fix="write it so, or remove it")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _conversation(raw: RawRow, turns: Any, notes: Notes) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise _no_turns(raw, turns)
    return messages_of(raw.where, turns, notes)


def _no_turns(raw: RawRow, value: Any) -> DataError:
    """What is wrong with a conversation that is no list of turns, and a way on."""
    key = next((name for name in raw.fields if raw.fields[name] is value), None)
    if key is None or not isinstance(value, str) or not value.strip():
        return DataError(f"{raw.where}: its conversation is not a list of turns", fix=f"write {TURN_HELP}")
    if key.lower() in dict(PREFERENCES):
        return DataError(
            f"{raw.where}: {key} is a text, and the row has no prompt",
            fix=f"name the prompt: --map prompt=...,chosen={key}; or write {key} as {TURN_HELP}",
        )
    if len(SAID.findall(value)) > 1:
        what = f"{raw.where}: {key} is one text with lines such as {SAID.findall(value)[0]!r}, not a list of turns"
        return DataError(
            what, fix=f"write its turns as {TURN_HELP}; --map text={shlex.quote(key)} trains on all of it as plain text"
        )
    words = propose({name: text for name, text in raw.fields.items() if isinstance(text, str)})
    option = _mapped_so(raw, words)
    return DataError(
        f"{raw.where}: {key} is a text, not a list of turns",
        fix=f"{option}; without --map write {TURN_HELP}" if option else f"write {TURN_HELP}",
    )


def _says_something(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _filled(raw: RawRow, key: str) -> str:
    value = raw.fields.get(key)
    if isinstance(value, str):
        if value.strip():
            return value
        raise DataError(f"{raw.where}: {key} is empty", fix="fill it in, or remove the row")
    if isinstance(value, bool):
        raise DataError(f"{raw.where}: {key} is {json.dumps(value)}, not text", fix="write the answer as text")
    if isinstance(value, int | float) and math.isfinite(value):
        return json.dumps(value)
    raise DataError(f"{raw.where}: {key} is {type(value).__name__}, not text", fix=f"give every row a text {key}")


def _with_options(raw: RawRow, prompt: str, layout: Layout, notes: Notes) -> str:
    """The prompt with the options that the row has for it. Raises: DataError for an answer that names none of them."""
    first = raw.fields.get(layout.options[0])
    if not _says_something(first):
        return prompt
    options = choices.options_of(raw.fields, layout.options)
    whole: str | None
    if options is None and isinstance(first, str):  # as one text: "A) Lisbon, B) Bonn"
        whole = prompt if first.strip() in prompt else f"{prompt}\n\n{first}"
    elif options is None or not choices.is_answer(raw.fields.get(layout.answer or ""), options):
        _refuse_letter(raw, layout, readable=options is not None)
        whole = choices.asked_with(prompt, options) if options else None
    else:
        whole = choices.asked_with(prompt, options)
    if whole is None:
        notes.unused += [name for name in layout.options if _says_something(raw.fields.get(name))]
        return prompt
    notes.remark(choices.BESIDE if whole == prompt else choices.REMARK)
    return whole


def _refuse_letter(raw: RawRow, layout: Layout, *, readable: bool) -> None:
    """Raises: DataError for an answer that is a letter or a number and so stands for an option that is not known."""
    answer = raw.fields.get(layout.answer or "")
    names = layout.options[0] if len(layout.options) == 1 else "options"
    word = str(answer).strip("(). ")
    if word.isdecimal():
        raise DataError(
            f"{raw.where}: {layout.answer} is a number that stands for one of its {names}",
            fix=f"write the {names} into the prompt, and the right one as the answer",
        )
    if len(word) == 1 and readable:
        raise DataError(
            f"{raw.where}: {layout.answer} {answer!r} is none of its {names}", fix="correct or remove the row"
        )
    if len(word) == 1:
        raise DataError(
            f"{raw.where}: {layout.answer} {answer!r} stands for one of its {names}, which cannot be read",
            fix=f"write the {names} into the prompt",
        )


def _demand_whole(raw: RawRow) -> None:
    """Raises: DataError where a row is one message of a conversation."""
    named = {name.lower(): name for name in raw.fields}
    who = next((named[n] for n in WHO if n in named and str(raw.fields[named[n]]).strip().lower() in ROLES), None)
    parent = next((named[name] for name in PARENTS if name in named), None)
    text = next((named[name] for name in (*TEXT_NAMES, "utterance", "message", "body") if name in named), None)
    if text is None or (who is None and parent is None):
        return
    column = who if parent is None else parent
    raise DataError(
        f"{raw.where}: one message of a conversation, as its column {column} says, not an example",
        fix=f'put each conversation together in one row, {{"messages": {TURN_HELP}}}; --map text={shlex.quote(text)} '
        "trains on every message alone",
    )


def _proposal(raw: RawRow) -> str:
    several = alternatives(raw.fields)
    if several:
        return (
            f"a row has one answer, and {' and '.join(several)} are several: name the better with --map "
            f"prompt=...,chosen=...; {SHAPES_HELP}"
        )
    option = _mapped_so(raw, propose(raw.fields))
    if option is None:
        return f"name the columns with --map prompt=...,completion=...; {SHAPES_HELP}"
    return f"{option}; without --map {SHAPES_HELP}"


def _mapped_so(raw: RawRow, words: str | None) -> str | None:
    """A proposal and what it makes of the row; None where it makes nothing of it."""
    if words is None:
        return None
    try:
        row = _mapped(raw, mapping=parse_mapping(words))
    except DataError:
        return None
    return f"for example --map {shlex.quote(words)}, which makes of it: {shown(row)}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")


def _columns(raw: RawRow) -> str:
    return ", ".join(map(repr, raw.fields)) or "none"
