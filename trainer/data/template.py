"""What a chat template is: where it has thoughts and calls, how it asks for an answer, and what ends one.

A template is a program: each fact is found by writing a small conversation with it and looking where its marks stand.

How an answer's end is chosen, the first that there is (`Ending`): a token after it at which the model stops; the token
with which the template ends every turn; the stop token that comes before the next turn, or with which the template
ends the last answer; the eos token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.marked import MARK
from autoft.trainer.data.plain import control_pattern, special_texts, split_control
from autoft.trainer.data.thinking import REASONING_KEYS, Reads, reads_of, state_of

CALL_ID = "call00001"  # as long as Mistral's templates want it


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer after which the template writes no stop token: its text, the stop last, and that token."""

    text: str
    token: int


class Template:
    """The chat template of a tokenizer.

    stops: the tokens at which the model stops, beside the tokenizer's eos token.
    """

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.reads: Reads = reads_of(tokenizer)
        self.in_parts = False
        self.in_parts = self._wants_parts()
        self.reasoning_key = self._reasoning_key()
        self.generation = self._generation()
        self.thought = state_of(self.generation, self.generation, self.reads.tags)
        known = {
            int(token) for token in (*stops, tokenizer.eos_token_id) if token is not None and token < len(tokenizer)
        }
        self.stops = {text: token for token in known if (text := self.token_text(token))}
        self.turn_end: int | None = None
        self.ending = self._find_ending()
        tags = {tag for pair in self.reads.tags for tag in pair}
        self.control = control_pattern((special_texts(tokenizer) | self.stops.keys()) - tags)

    def token_text(self, token: int) -> str:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return str(added) if added is not None else str(self.tokenizer.convert_ids_to_tokens(token) or "")

    def _wants_parts(self) -> bool:
        """Whether the template loses a turn that is a text, and writes one that is a list of parts."""
        turns = [{"role": "user", "content": "\ue0000\ue001"}]
        if "type" not in self.reads.words:
            return False
        try:
            if MARK.search(self.render(turns)):
                return False
        except DataError:
            pass
        self.in_parts = True
        try:
            return bool(MARK.search(self.render(turns)))
        except DataError:
            return False
        finally:
            self.in_parts = False

    def _reasoning_key(self) -> str | None:
        for key in REASONING_KEYS:
            if key in self.reads.words:
                turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "\ue0000\ue001"}]
                try:
                    if MARK.search(self.render(turns)):
                        return key
                except DataError:
                    continue
        return None

    def _generation(self) -> str:
        """What the template adds to a first turn to ask for an answer."""
        turns = [{"role": "user", "content": "a"}]
        try:
            written, prompt = self.render(turns), self.render(turns, asks=True)
        except DataError:
            return ""
        return prompt[same_start(written, prompt) :]

    def _find_ending(self) -> Ending:
        user, mark = {"role": "user", "content": "a"}, "\ue0000\ue001"
        eos = Ending(self.token_text(self.tokenizer.eos_token_id), self.tokenizer.eos_token_id)
        try:
            last = MARK.split(self.render([user, {"role": "assistant", "content": mark}]))
            talk = [user, {"role": "assistant", "content": mark}, {"role": "user", "content": "\ue0001\ue001"}]
            between = MARK.split(self.render(talk))
        except DataError:
            return eos
        if len(last) != 3 or len(between) != 5:
            return eos
        own, next_ = self._first_stop(last[2]), self._first_stop(between[2])
        if own is not None and next_ is not None and own.token == next_.token:
            return own
        special = self._special_at_start(last[2])
        if special is not None and special == self._special_at_start(between[2]):
            self.turn_end = special
            text = self.token_text(special)
            self.stops[text] = special
            return Ending(text, special)
        before = between[2][: self.before_special(between[2])]
        return own or next_ or Ending(before + eos.text, eos.token)

    def before_special(self, literal: str) -> int:
        """How much white space comes before a special token; 0 where none comes next."""
        rest = literal.lstrip()
        return len(literal) - len(rest) if self._special_at_start(rest) is not None else 0

    @cached_property
    def call_ending(self) -> Ending:
        """What ends a call of a tool after which the template writes no stop token: what comes before its result."""
        turns = [{"role": "user", "content": "a"}, self._called(0), {"role": "tool", "name": "b", "content": "b"}]
        turns[-1]["tool_call_id"] = CALL_ID
        try:
            pieces = MARK.split(self.render(turns))
            return self._first_stop(pieces[-1]) or self.ending
        except DataError:
            return self.ending

    @cached_property
    def writes_tools(self) -> bool:
        """Whether descriptions of tools come into a prompt."""
        parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": ["a"]}
        function = {"name": "\ue0000\ue001", "description": "a", "parameters": parameters}
        try:
            turns = [{"role": "user", "content": "a"}]
            return MARK.search(self.render(turns, [{"type": "function", "function": function}], asks=True)) is not None
        except DataError:  # told where rows are rendered
            return True

    def _called(self, mark: int) -> dict[str, Any]:
        call = {"type": "function", "id": CALL_ID, "function": {"name": f"\ue000{mark}\ue001", "arguments": {}}}
        return self.call_turn({"role": "assistant", "content": "", "tool_calls": [call]})

    def call_turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn with calls, their arguments as the template takes them."""
        if not self.calls_as_text:
            return turn
        calls = []
        for call in turn["tool_calls"]:
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        return {**turn, "tool_calls": calls}

    @cached_property
    def calls_as_text(self) -> bool:
        """Whether the template takes the arguments of a call as JSON text and not as an object."""
        function = {"name": "\ue0000\ue001", "arguments": {"a": "\ue0001\ue001"}}
        call = {"type": "function", "id": CALL_ID, "function": function}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        for as_text in (False, True):
            self.calls_as_text = as_text
            with suppress(DataError):
                text = self.render([{"role": "user", "content": "a"}, self.call_turn(turn)])
                if {"0", "1"} <= set(MARK.findall(text)):
                    return as_text
        return False

    def _first_stop(self, literal: str) -> Ending | None:
        places = [(literal.find(text), -len(text), text) for text in self.stops if text in literal]
        if not places:
            return None
        at, _, text = min(places)
        return Ending(literal[: at + len(text)], self.stops[text])

    def _special_at_start(self, literal: str) -> int | None:
        rest = literal.lstrip()
        tags = {tag for pair in self.reads.tags for tag in pair}
        fits = [
            (len(str(token)), number)
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if str(token).strip() and rest.startswith(str(token)) and str(token) not in tags
        ]
        return max(fits)[1] if fits else None

    @property
    def inline(self) -> bool:
        """Whether it knows thoughts in <think> within the text of an answer."""
        return "</think>" in self.reads.source or (self.thought == "open" and "<think>" in self.generation)

    @cached_property
    def doubles(self) -> bool:
        """Whether it opens a thought before every answer, so that one which opens its own would open two."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}]
        try:
            return self.thought == "open" and self.inline and self.render(turns).count("<think>") > 1
        except DataError:
            return False

    @property
    def writes_thoughts(self) -> bool:
        """Whether it has a place for the thought of an answer."""
        return self.reasoning_key is not None or self.inline

    def render(
        self, messages: Sequence[Any], tools: Sequence[Any] = (), *, asks: bool = False, where: str | None = None
    ) -> str:
        turns = [_in_parts(message) for message in messages] if self.in_parts else list(messages)
        given: dict[str, Any] = {"tools": split_control(list(tools), self.control)} if tools else {}
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks, **given))
        except Exception as error:  # jinja raises what the template's author wrote
            roles = ", ".join(message["role"] for message in messages)
            reason = " ".join(str(error).split())[:160]
            what = "calls of tools" if any(m.get("tool_calls") for m in messages) else f"the roles {roles}"
            raise DataError(
                f"{where + ': ' if where else ''}the model's chat template refuses {what}: {reason}",
                fix="change the turns' roles or order",
            ) from error


def _in_parts(message: Any) -> Any:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def same_start(left: str, right: str) -> int:
    """How many characters both begin with."""
    if right.startswith(left):
        return len(left)
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
