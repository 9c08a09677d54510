"""What is odd about a conversation that can still be trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from autoft.trainer.data.shape import Message

# What each kind is, for people, in the order of the report
KINDS = {
    "empty-turn": "an empty turn before the answer",
    "no-user": "no user turn: the answer answers nothing",
    "same-role-twice": "two turns of one role in a row, which some chat templates refuse",
    "late-system": "a system turn after the first turn, which some chat templates refuse",
    "echo": "an answer that repeats the turn before it",
}


def troubles(messages: Sequence[Message]) -> list[str]:
    """Which of KINDS a conversation has."""
    roles = [message["role"] for message in messages]
    kinds = []
    if any(not message["content"].strip() and "tool_calls" not in message for message in messages):
        kinds.append("empty-turn")
    if "user" not in roles and "tool" not in roles:
        kinds.append("no-user")
    pairs = list(itertools.pairwise(messages))
    if any(a["role"] == b["role"] != "tool" for a, b in pairs):
        kinds.append("same-role-twice")
    if "system" in roles[1:]:
        kinds.append("late-system")
    if any(b["role"] == "assistant" and a["content"].strip() == b["content"].strip() != "" for a, b in pairs):
        kinds.append("echo")
    return kinds
