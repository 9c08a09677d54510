"""Calls of tools and descriptions of tools, however data writes them, in the one form that chat templates take."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.notes import Notes

PYTHON_LIST = re.compile(r"\s*[\[{]+\s*['\"]")
CALL_HELP = 'write a call as {"name": ..., "arguments": {...}}'
ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs")
CALL_FIELDS = frozenset(("id", "type", "index", "function", "name", "tool_name", *ARGUMENTS))


def calls_of(value: Any, where: str, number: int, notes: Notes) -> list[dict[str, Any]]:
    """The calls of one turn as {"type": "function", "function": {"name": str, "arguments": dict}}, with "id" if given.

    value: one call or a list, as an object or as JSON text: OpenAI's, its older function_call, or flat.
    Raises: DataError naming the turn where a call lacks a name, or its arguments are no JSON object.
    """
    value = parsed(value)
    return [_call(parsed(each), where, number, notes) for each in (value if isinstance(value, list) else [value])]


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | None:
    """Descriptions of tools in OpenAI's form, from a list, an object or JSON text; None where `value` is none of it."""
    value = parsed(value)
    tools = [_tool(parsed(each)) for each in (value if isinstance(value, list) else [value])]
    return None if any(tool is None for tool in tools) else tuple(tool for tool in tools if tool is not None)


def parsed(value: Any) -> Any:
    """JSON text as what it says, a list as Python writes it too, as pandas does into CSV; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if not PYTHON_LIST.match(value):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _call(call: Any, where: str, number: int, notes: Notes) -> dict[str, Any]:
    call = call if isinstance(call, dict) else {}
    given = call.get("function")
    function = given if isinstance(given, dict) else call
    name = given if isinstance(given, str) else function.get("name") or function.get("tool_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: turn {number} calls a tool without a name", fix=CALL_HELP)
    arguments: Any = next((function[each] for each in ARGUMENTS if function.get(each) is not None), {})
    if isinstance(arguments, str):
        arguments = parsed(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: turn {number} calls {name} with arguments that are not a JSON object", fix=CALL_HELP)
    for field in (call.keys() | function.keys()) - CALL_FIELDS:
        if call.get(field, function.get(field)) is not None:
            notes.unused_of_turns(field)
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(tool: Any) -> dict[str, Any] | None:
    """Tables pad objects with nulls: they are left out, but for a default that is null."""
    if not isinstance(tool, dict):
        return None
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    if not isinstance(function.get("name"), str):
        return None
    described = {key: value for key, value in function.items() if key != "type"}
    if "parameters" not in described and "input_schema" in described:
        described["parameters"] = described.pop("input_schema")
    return {"type": "function", "function": _without_nulls(described)}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k == "default"}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
