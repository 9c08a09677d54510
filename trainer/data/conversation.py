"""What a list of turns means: roles, texts, thoughts, calls of tools, and which answers are context only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.calls import calls_of, parsed
from autoft.trainer.data.marks import FLAGS, is_good, to_train
from autoft.trainer.data.notes import Notes

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
    "ai": "assistant", "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
    "tool_response": "tool", "tool_result": "tool", "function_response": "tool", "function_result": "tool",
    "function_call": "call", "tool_call": "call", "call": "call",
}  # fmt: skip
ROLE_NAMES = ("role", "from", "speaker")
TEXT_NAMES = ("content", "value", "text", "parts")
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "thinking_content", "chain_of_thought")
CALLS = ("tool_calls", "function_call", "tool_call", "function_calls")
TURN_HELP = '[{"role": "user", "content": ...}, ...]'
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning", "thought")
CALL_PARTS = ("tool_use", "tool_call", "function_call")
RESULT_PARTS = ("tool_result", "tool_response", "function_call_output")

ALTERNATING = "turns without roles are taken in turn, the user's first"
CONTEXT = "answers that the data marks as not to be trained are context only"
AFTER = "turns after the last answer to be trained are left out"
UNTRAINED = "none of its answers is to be trained"

# Keys beside "role" and "content": "reasoning_content" (str), "tool_calls" (list of OpenAI's objects, arguments as
# dict), "name" and "tool_call_id" of a tool's turn, "train": False on an answer that is context only
Message = dict[str, Any]


def turns_in(value: Any) -> Any:
    """A list of turns as data holds it: itself, JSON text of it, or one list for each field; else `value`."""
    if isinstance(value, str):
        if value[:1] not in ("[", " ", "\n") or not value.lstrip().startswith(("[{", '["', "['", "[ ", "[\n")):
            return value
        value = parsed(value)
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if isinstance(each, list)}
        if any(name in lists for name in ROLE_NAMES) and len({len(each) for each in lists.values()}) == 1:
            return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
        if isinstance(value.get("messages"), list):
            return value["messages"]
        return [value] if role_of(value) else value
    return value


def said_by(value: Any) -> Any:
    """As turns_in where `value` is turns; a text that is some other list, such as an answer in JSON, stays a text."""
    if not isinstance(value, str | dict):
        return value
    turns = turns_in(value)
    return turns if isinstance(turns, list) and all(role_of(turn) for turn in turns) else value


def role_of(turn: Any) -> str | None:
    """The role of a turn in our words; None: unknown. "call" is the assistant's call of a tool, a turn of its own."""
    if not isinstance(turn, dict):
        return None
    given = next((turn[name] for name in ROLE_NAMES if turn.get(name) is not None), None)
    return ROLES.get(str(given).strip().lower().replace("-", "_"))


def messages_of(where: str, turns: Sequence[Any], notes: Notes) -> list[Message]:
    """The turns as messages. Raises: DataError naming the turn that is none, or that holds what cannot be trained."""
    if turns and all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
        notes.remark(ALTERNATING)
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        if type(turn) is dict and len(turn) == 2 and (role := _plain_role(turn)):
            text = turn.get("content", turn.get("value"))
            if type(text) is str and (text or role == "user"):
                messages.append({"role": role, "content": text})
                continue
        messages += _messages(where, number, turn, messages, notes)
    return messages


def checked(where: str, messages: list[Message], notes: Notes) -> list[Message]:
    """The conversation up to the last answer to be trained. Raises: DataError where it has no answer to learn."""
    if not messages:
        raise DataError(f"{where}: its conversation has no turns", fix=f"write {TURN_HELP}")
    if messages[0]["role"] == "assistant":
        raise DataError(
            f"{where}: the conversation begins with the assistant, so there is nothing to answer",
            fix="begin it with a user turn, or remove the row",
        )
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the conversation ends with the {messages[-1]['role']}, so there is no answer to learn",
            fix="end it with an assistant turn, or remove the row",
        )
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message:
            raise DataError(f"{where}: turn {number}, an answer, is empty", fix="fill it in, or remove the row")
    if any("train" in message for message in messages):
        return _up_to_last_trained(messages, notes)
    return messages


def _up_to_last_trained(messages: list[Message], notes: Notes) -> list[Message]:
    notes.remark(CONTEXT)
    trained = [at for at, m in enumerate(messages, start=1) if m["role"] == "assistant" and m.get("train", True)]
    if not trained:
        notes.left_out = UNTRAINED
        return messages
    if trained[-1] != len(messages):
        notes.remark(AFTER)
    return messages[: trained[-1]]


def _plain_role(turn: dict[str, Any]) -> str | None:
    given = turn.get("role") or turn.get("from")
    role = ROLES.get(given) if type(given) is str else None
    return role if role != "call" and role != "tool" else None


def _messages(where: str, number: int, turn: Any, before: list[Message], notes: Notes) -> list[Message]:
    """The messages of one turn: most often one; none where it is joined to the one before it."""
    if not isinstance(turn, dict):
        raise DataError(
            f"{where}: turn {number} is a {_kind(turn)}, not an object", fix='write {"role": "user", "content": ...}'
        )
    turn = {name: value for name, value in turn.items() if value is not None}
    role = _role(where, number, turn)
    text_name = next((name for name in TEXT_NAMES if name in turn), None)
    content = turn.get(text_name) if text_name else None
    used = {next(name for name in ROLE_NAMES if name in turn), text_name}
    results: list[Message] = []
    message: Message = {"role": "assistant" if role == "call" else role, "content": ""}
    if role == "call":
        message["tool_calls"] = calls_of(content, where, number, notes) or calls_of({}, where, number, notes)
    elif role == "tool":
        used |= _take_result(turn, content, message)
    elif isinstance(content, list):
        message["content"] = _parts(where, number, content, message, results, notes)
    elif isinstance(content, str):
        message["content"] = content
    if role in ("assistant", "call"):
        _take_answer(where, number, turn, message, used, notes)
    elif any(to_train({name: turn[name]})[0] is False for name in turn.keys() & FLAGS):
        used |= turn.keys() & FLAGS  # nothing but answers is trained anyway
    if role != "tool" and not isinstance(content, str | list) and "tool_calls" not in message:
        raise _no_text(where, number, content)
    for name in turn.keys() - used:
        if turn[name] not in ("", [], {}):
            notes.unused_of_turns(name)
    if role == "call" and before and _joins(before[-1], message):
        before[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        return []
    alone = results and not message["content"].strip() and len(message) == 2
    return results if alone else [*results, message]


def _role(where: str, number: int, turn: dict[str, Any]) -> str:
    role = role_of(turn)
    if role is None:
        given = turn.get("role", turn.get("from", turn.get("speaker")))
        raise DataError(f"{where}: turn {number} has role {given!r}", fix=f"use one of: {', '.join(ROLES)}")
    return role


def _take_result(turn: dict[str, Any], content: Any, message: Message) -> set[str]:
    """Put a tool's result into its message. Returns the names of the turn that were used."""
    message["content"] = _result(content)
    names = {name for name in ("name", "tool_call_id") if isinstance(turn.get(name), str)}
    message.update({name: turn[name] for name in sorted(names)})
    return names


def _joins(before: Message, call: Message) -> bool:
    return bool(before["role"] == "assistant" and before.get("train", True) == call.get("train", True))


def _take_answer(
    where: str, number: int, turn: dict[str, Any], message: Message, used: set[str | None], notes: Notes
) -> None:
    """The thoughts, calls and flags of an assistant's turn."""
    for name in CALLS:
        if name in turn and turn[name] not in ([], {}, ""):
            calls = calls_of(turn[name], where, number, notes)
            if calls:
                message.setdefault("tool_calls", []).extend(calls)
            used.add(name)
    for name in THOUGHTS:
        if isinstance(turn.get(name), str):
            if "reasoning_content" not in message and turn[name].strip():
                message["reasoning_content"] = turn[name]
            used.add(name)
    trained, unclear = to_train(turn)
    if unclear is not None:
        raise DataError(
            f"{where}: turn {number} has {unclear} {json.dumps(turn[unclear], default=str)}, which does not say "
            "whether it is trained",
            fix='write "train": true or false; an answer is trained wholly or not at all',
        )
    if trained is not None:
        used |= turn.keys() & FLAGS
    for name in ("label", "kto_tag"):
        if is_good(name, turn.get(name)) is not None:
            used.add(name)
            trained = trained is not False and is_good(name, turn[name])
    if trained is False:
        message["train"] = False


def _parts(where: str, number: int, parts: list[Any], message: Message, results: list[Message], notes: Notes) -> str:
    """The text of content in parts; what they hold of thoughts, calls and results goes into `message` and `results`."""
    texts: list[str] = []
    for each in parts:
        part = {name: value for name, value in each.items() if value is not None} if isinstance(each, dict) else each
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, str):
            texts.append(part)
            continue
        used = {"type"}
        if kind in TEXT_PARTS and isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            used.add("text")
        elif kind in THOUGHT_PARTS and isinstance(part.get(kind, part.get("text")), str):
            message["reasoning_content"] = message.get("reasoning_content", "") + part.get(kind, part.get("text"))
            used |= {kind, "text"}
        elif kind in CALL_PARTS:
            calls = calls_of(part.get(kind) or part, where, number, notes)
            message.setdefault("tool_calls", []).extend(calls)
            used |= part.keys()
        elif kind in RESULT_PARTS:
            identity = part.get("tool_use_id", part.get("tool_call_id", part.get("call_id")))
            result: Message = {"role": "tool", "content": _result(part.get("content", part.get("output")))}
            results.append(result if identity is None else {**result, "tool_call_id": identity})
            used |= {"tool_use_id", "tool_call_id", "call_id", "content", "output"}
        else:
            if kind in TEXT_PARTS:
                raise DataError(f"{where}: turn {number} has a part without text", fix="give every part a text")
            given = f"an {kind}" if str(kind)[:1] in ("a", "e", "i", "o", "u") else f"a {kind}"
            raise DataError(
                f"{where}: turn {number} holds {given}, and autoft trains on text alone",
                fix="leave rows with images and the like out of the data",
            )
        for name in part.keys() - used:
            notes.unused_of_turns(name)
    return "".join(texts)


def text_of(value: Any) -> Any:
    """The text of a list of parts, or of an object that holds one, as Gemini and Bedrock have them; else `value`."""
    parts = value.get("parts", value.get("content")) if isinstance(value, dict) else value
    if isinstance(parts, list) and parts and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        return "".join(part["text"] for part in parts)
    return value


def _result(content: Any) -> str:
    """What a tool gave back, as text."""
    content = text_of(content)
    if content is None or isinstance(content, str):
        return content or ""
    return json.dumps(content, ensure_ascii=False, default=str)


def _no_text(where: str, number: int, content: Any) -> DataError:
    given = "" if content is None else f": it is a {_kind(content)}"
    return DataError(f"{where}: turn {number} has no text content{given}", fix="give every turn a content string")


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
