"""Rows as text, as the model's chat template writes them, with proof of where each answer begins and ends.

A template is a program. So that nothing is trained but what a row says, each of its texts is replaced by a mark and the
conversation is written again: where the marks come to stand is where the texts stand, and the rest is the template's
own. A row is right when its own text is that with the marks filled in, character for character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.marked import MARK, Marked, Parts
from autoft.trainer.data.plain import SPLIT, encoded, split_control
from autoft.trainer.data.shape import Message, Row
from autoft.trainer.data.template import Template, same_start
from autoft.trainer.data.thinking import THOUGHT

KNOWN = 256  # structures of conversations whose marked text is kept

# What is said with a count: {n} answers or rows
DROPPED = "the chat template drops the reasoning of {n} earlier answers, which is not trained"
UNWRITTEN = "the chat template has no place for reasoning: that of {n} answers is left out"
CLOSED = "thinking is off: the reasoning of {n} answers is left out (--set thinking=on trains it)"
EMPTY = "the chat template adds an empty thought to {n} answers, which is trained too"
SPLICED = "the chat template asks for {n} answers in another way than it writes them: they are trained as asked for"
TRIMMED = "the chat template trims spaces and line breaks around {n} answers"
TEXT_OF_CALL = "the chat template drops the text beside {n} calls of tools"
TOOLS = "the chat template has no place for descriptions of tools: those of {n} rows are left out"
SYSTEM = "the chat template drops the system turn of {n} rows"
CONTROL = "{n} rows hold the model's own control tokens in their text: they are encoded as plain text"
STOPPED = "{n} answers end with a stop token as text, which is trained once"
NO_END = "the chat template writes no stop token after {n} answers: END is trained there"
TURN_END = (
    "the model's own settings do not stop at END, which ends {n} answers: autoft stops there, others must be told"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """start, end: the characters that are trained. stop: the token that ends it.

    stop_at: where that token begins in the text; `end` is then behind it. None: it is trained in the place of the token
    that follows `end`, as what the template writes there stops nothing.
    """

    start: int
    end: int
    stop: int
    stop_at: int | None


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation as text. prompt: how many of its characters ask for the last answer. facts: what to count."""

    text: str
    answers: tuple[Answer, ...]
    prompt: int
    facts: tuple[str, ...]


def is_other_end(fact: str) -> bool:
    """Whether a fact says that answers end with a token which the template does not write."""
    before, after = NO_END.split("END")
    return fact.startswith(before) and fact.endswith(after)


class Chat(Template):
    """A chat template, and the rows that are written with it."""

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()) -> None:
        super().__init__(tokenizer, stops)
        self._known: dict[Any, tuple[Marked, Marked]] = {}
        words = sorted(self.stops, key=len, reverse=True)
        self._stop = re.compile("|".join(map(re.escape, words)))
        self._empty = re.compile(
            "|".join(re.escape(b.rstrip("\n")) + r"\s*" + re.escape(e) for b, e in self.reads.tags) or r"(?!)"
        )
        self._closing = re.compile(r"\A\s*(" + ("|".join(re.escape(e) for _, e in self.reads.tags) or r"(?!)") + ")")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`. Raises: DataError."""
        return self.render(self._normal(messages, []), tools, asks=True)

    def expected(self, row: Row) -> str:
        """The last answer of a row as the model is to write it: no thoughts, and calls as the template has them."""
        message = row.messages[-1]
        if not message.get("tool_calls"):
            return self.spoken(message["content"])
        written = self.write(row)
        last = written.answers[-1]
        ids = encoded(written.text[last.start : last.stop_at], self.tokenizer)
        return self.spoken(str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip())

    def spoken(self, answer: str) -> str:
        """An answer without the thought before it, in this template's tags or in <think>."""
        ends = {end for _, end in self.reads.tags} | {"</think>"}
        after = max((answer.rfind(end) + len(end) for end in ends if end in answer), default=0)
        return answer[after:].strip() if after else answer

    def asked(self, row: Row) -> str:
        """The text that asks for the last trained answer of a row. Raises: DataError."""
        messages = self._normal(_trained(row), [])
        return self.render(messages[:-1], row.tools, asks=True, where=row.where)

    def write(self, row: Row) -> Written:
        """The row as text. Raises: DataError, with the row's place, where what would be trained is not what it says."""
        facts: list[str] = []
        tools = row.tools
        turns = _trained(row)
        messages = self._normal(turns, facts)
        whole = self.render(messages, tools, where=row.where)
        prompt = self.render(messages[:-1], tools, asks=True, where=row.where)
        parts, first, second = self._marks(messages, tools)
        self._check_context(row, messages, parts, first, facts)
        if tools and not self.writes_tools:
            facts.append(TOOLS)
        earlier = [at for at, turn in enumerate(turns[:-1]) if _is_trained(turn)]
        answers = []
        if earlier:
            _, places = self._matched(prompt, messages[:-1], tools, parts, first, row.where)
            answers = [self._earlier(row, messages, at, prompt, (parts, places), facts) for at in earlier]
        text, last = self._last(row, messages, prompt, whole, (parts, second), facts)
        answers.append(last)
        if SPLIT in text:
            facts.append(CONTROL)
        if self.turn_end is not None:
            end = TURN_END.replace("END", self.token_text(self.turn_end))
            facts += [end for answer in answers if answer.stop == self.turn_end]
        return Written(text, tuple(answers), len(prompt), tuple(facts))

    def _last(
        self, row: Row, messages: list[Any], prompt: str, whole: str, marked: tuple[Parts, Marked], facts: list[str]
    ) -> tuple[str, Answer]:
        """(the whole text: the prompt, then the last answer as it is asked for; the place of that)."""
        parts, second = marked
        _, places = self._matched(whole, messages, row.tools, parts, second, row.where)
        own = self._own_parts(row, len(messages) - 1, parts, places, whole, facts, last=True)
        first, end = parts.span(own[0], places[own[0]], whole)[0], parts.span(own[-1], places[own[-1]], whole)[1]
        tail, has_calls = whole[end:], bool(parts.calls.intersection(own))
        dropped = [mark for mark in parts.of[-1] if mark in parts.thoughts and mark not in places]
        if whole.startswith(prompt) and (has_calls or not dropped):
            lead = whole[len(prompt) : max(first, len(prompt))]
            answer = whole[max(first, len(prompt)) : end]
            if self.thought == "open" and self._closing.match(lead):
                facts.append(EMPTY)
                # where the prompt ends with a line break, another one would be one token with it
                lead = lead.lstrip() if prompt[-1:].isspace() else lead
            elif self._empty.search(lead):
                facts.append(EMPTY)
            elif self.thought == "open" and not parts.thoughts.intersection(own):
                facts.append(EMPTY)
                lead = f"{self.reads.tags[0][1]}\n\n{lead}"
            if self.generation and self.generation in lead:  # it begins the turn once more
                facts.append(SPLICED)
                lead = lead.rpartition(self.generation)[2]
        else:
            answer = whole[first:end]
            lead = self._other_lead(parts, own, dropped, whole[min(same_start(prompt, whole), first) : first], facts)
            if dropped and answer[:1].isspace():
                lead = lead.rstrip("\n")
        text = f"{prompt}{lead}{answer}"
        stop = self._stop.search(tail)
        if stop is None:
            if has_calls:  # what they are called with comes after their names
                text += tail.rstrip()
            ending = self.call_ending if has_calls else self.ending
            facts.append(NO_END.replace("END", self.token_text(ending.token)))
            tail, stop_end = ending.text, len(ending.text)
            token, stop_text = ending.token, self.token_text(ending.token)
        else:
            token, stop_text, stop_end = self.stops[stop.group()], stop.group(), stop.end()
        self._check_calls(row, messages[-1], text[len(prompt) :] + tail)
        end = len(text) + stop_end
        return text + tail, Answer(len(prompt), end, token, end - len(stop_text))

    def _other_lead(self, parts: Parts, own: list[int], dropped: list[int], written: str, facts: list[str]) -> str:
        """What comes between the prompt and the last answer where the template asks for it otherwise than it writes it.

        written: what it writes there itself.
        """
        begin, end = next(iter(self.reads.tags), ("<think>", "</think>"))
        lead = self._empty.sub("", written).strip() if parts.calls.intersection(own) else ""
        if dropped:
            opening = "" if self.thought == "open" else begin.rstrip("\n") + "\n"
            return f"{opening}{parts.texts[dropped[0]]}\n{end}\n\n{lead}"
        if parts.thoughts.intersection(own):
            facts.append(SPLICED)
            return "" if self.thought == "open" else begin.rstrip("\n") + "\n"
        if self.thought == "open":
            facts.append(EMPTY)
            return f"{end}\n\n{lead}"
        if self.thought == "none":
            facts.append(SPLICED)
        return lead

    def _earlier(
        self,
        row: Row,
        messages: list[Any],
        at: int,
        prompt: str,
        marked: tuple[Parts, dict[int, tuple[int, int]]],
        facts: list[str],
    ) -> Answer:
        """The place of an answer in the text that asks for the last one."""
        parts, places = marked
        own = self._own_parts(row, at, parts, places, prompt, facts, last=False)
        first, end = parts.span(own[0], places[own[0]], prompt)[0], parts.span(own[-1], places[own[-1]], prompt)[1]
        question = self.render(messages[:at], row.tools, asks=True, where=row.where)
        start = len(question) if prompt.startswith(question) else first
        if self._empty.search(prompt[start:first]):
            facts.append(EMPTY)
        following = min((s for s, _ in places.values() if s >= end), default=len(prompt))
        stop = self._stop.search(prompt, end, following)
        calls = messages[at].get("tool_calls")
        self._check_calls(row, messages[at], prompt[start : stop.end() if stop else following])
        if stop is not None:
            return Answer(start, stop.end(), self.stops[stop.group()], stop.start())
        if calls:
            raise DataError(
                f"{row.where}: the model's chat template does not end a call of a tool with a stop token",
                fix="choose a model with a chat template for tools, or remove the rows with calls",
            )
        facts.append(NO_END.replace("END", self.token_text(self.ending.token)))
        return Answer(start, end + self.before_special(prompt[end:following]), self.ending.token, None)

    def _own_parts(
        self,
        row: Row,
        at: int,
        parts: Parts,
        places: dict[int, tuple[int, int]],
        text: str,
        facts: list[str],
        *,
        last: bool,
    ) -> list[int]:
        """Marks of an answer that the template writes, in their order. Raises: DataError where it leaves text out."""
        lost = [mark for mark in parts.of[at] if mark not in places]
        calls = len([mark for mark in parts.of[at] if mark in parts.calls])
        for mark in lost:
            if mark in parts.thoughts:
                if not last:
                    facts.append(DROPPED)
                elif calls:
                    facts.append(UNWRITTEN)
            elif mark in parts.calls:
                several = "writes one call of a tool an answer" if calls > 1 else "has no place for calls of tools"
                raise DataError(
                    f"{row.where}: the model's chat template {several}, so this row cannot be trained",
                    fix="choose a model with a chat template for tools, or remove the rows with calls",
                )
            elif calls:
                facts.append(TEXT_OF_CALL)
            else:
                raise DataError(
                    f"{row.where}: the model's chat template leaves out the text of turn {at + 1}, an answer",
                    fix="change chat_template.jinja beside the model",
                )
        kept = sorted((mark for mark in parts.of[at] if mark in places), key=lambda mark: places[mark])
        if not kept:
            raise DataError(
                f"{row.where}: the model's chat template writes nothing of turn {at + 1}, an answer",
                fix="fill it in, or remove the row",
            )
        for mark in kept:
            start, end = parts.span(mark, places[mark], text)
            plain = mark in parts.bodies and not parts.thoughts.intersection(parts.of[at])
            if plain and end - start != sum(map(len, (parts.texts[mark], *parts.around[mark]))):
                facts.append(TRIMMED)
        return kept

    def _check_context(self, row: Row, messages: list[Any], parts: Parts, first: Marked, facts: list[str]) -> None:
        """What comes before an answer is in its prompt. Raises: DataError."""
        written = first.marks
        if written is None:
            return
        for at, message in enumerate(messages[:-1]):
            if message["role"] == "assistant" or not parts.of[at] or parts.of[at][0] in written:
                continue
            if message["role"] == "system":
                facts.append(SYSTEM)
                continue
            what = "the results of tools" if message["role"] == "tool" else f"turn {at + 1}, the {message['role']}'s"
            raise DataError(
                f"{row.where}: the model's chat template has no place for {what}, so this row cannot be trained",
                fix="choose a model with a chat template for them, or remove the rows",
            )

    def _check_calls(self, row: Row, message: Any, text: str) -> None:
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments")
            for value in _leaves(json.loads(arguments) if isinstance(arguments, str) else arguments):
                if not any(form in text for form in value):
                    raise DataError(
                        f"{row.where}: the model's chat template leaves out an argument of a call: {value[0][:60]}",
                        fix="choose a model with a chat template for tools, or remove the rows with calls",
                    )

    def _normal(self, messages: Sequence[Message], facts: list[str]) -> list[dict[str, Any]]:
        """The turns with their reasoning where the template looks for it, each stop token once."""
        return [
            self._answer(m, facts) if m["role"] == "assistant" else split_control(dict(m), self.control)
            for m in messages
        ]

    def _answer(self, message: Message, facts: list[str]) -> dict[str, Any]:
        turn: dict[str, Any] = {name: value for name, value in message.items() if name != "train"}
        content = turn.get("content") or ""
        reasoning = turn.pop("reasoning_content", None)
        for stop in self.stops:
            if content.rstrip().endswith(stop) and content.rstrip() != stop:
                content = content.rstrip().removesuffix(stop)
                facts.append(STOPPED)
                break
        content, reasoning = split_control([content, reasoning], self.control)
        if not reasoning and (self.reasoning_key or self.thought == "closed") and (thought := THOUGHT.match(content)):
            reasoning, content = thought[2].strip(), thought[3].lstrip()
        if reasoning and self.thought == "closed":
            facts.append(CLOSED)
        elif reasoning and self.reasoning_key:
            turn[self.reasoning_key] = reasoning
        elif reasoning and self.inline:
            content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
        elif reasoning:
            facts.append(UNWRITTEN)
        if self.doubles:
            content = content.lstrip().removeprefix("<think>").lstrip("\n")
        turn["content"] = content
        if not turn.get("tool_calls"):
            return turn
        return self.call_turn({**turn, "tool_calls": split_control(turn["tool_calls"], self.control)})

    # --- marks ------------------------------------------------------------------------------------------------------

    def _marks(self, messages: list[Any], tools: Sequence[Any]) -> tuple[Parts, Marked, Marked]:
        """The parts of a conversation; its prompt and its whole text with marks, from a conversation like it."""
        parts, marked = self._mark(messages)
        kept = not tools and not parts.calls
        key = repr(parts.key)
        if kept and key in self._known:
            return parts, *self._known[key]
        try:
            prompt = Marked(MARK.split(self.render(marked[:-1], tools, asks=True)))
            both = prompt, Marked(MARK.split(self.render(marked, tools)))
        except DataError:
            both = Marked(None), Marked(None)
        if kept and len(self._known) < KNOWN:
            self._known[key] = both
        return parts, *both

    def _mark(self, messages: list[Any], *, answers_only: bool = False) -> tuple[Parts, list[Any]]:
        parts = Parts()
        marked = []
        for message in messages:
            parts.of.append([])
            parts.key.append((message["role"], *message))
            turn = dict(message)
            if message["role"] != "assistant":
                text = parts.mark(message.get("content") or "")
                turn["content"] = message["content"] if answers_only else text
                marked.append(turn)
                continue
            if self.reasoning_key in turn:
                turn[self.reasoning_key] = parts.mark(turn[self.reasoning_key], parts.thoughts)
            content = turn["content"] or ""
            thought = THOUGHT.match(content) if self.inline else None
            if thought is not None:
                parts.key.append(thought[1])
                inner = parts.mark(thought[2], parts.thoughts)
                turn["content"] = f"{thought[1] or ''}{inner}</think>{parts.mark(thought[3], parts.bodies)}"
            elif content:
                turn["content"] = parts.mark(content, parts.bodies)
            if turn.get("tool_calls"):
                turn["tool_calls"] = [
                    {
                        **call,
                        "function": {**call["function"], "name": parts.mark(call["function"]["name"], parts.calls)},
                    }
                    for call in turn["tool_calls"]
                ]
            marked.append(turn)
        return parts, marked

    def _matched(
        self, text: str, messages: list[Any], tools: Sequence[Any], parts: Parts, marked: Marked, where: str
    ) -> tuple[str, dict[int, tuple[int, int]]]:
        """`text` and its parts' places. Raises: DataError when it is not what the marks and their texts give."""
        filled = marked.filled(parts.texts)
        if filled[0] == text:
            return filled
        # what others say may be written by rules of its own: results of tools as JSON, for instance
        _, again = self._mark(messages, answers_only=True)
        try:
            rendered = self.render(again, tools, asks=len(messages) < len(parts.of))
            filled = Marked(MARK.split(rendered)).filled(parts.texts)
        except DataError:
            filled = ("", {})
        if filled[0] == text:
            return filled
        raise DataError(
            f"{where}: the model's chat template rewrites the text of an answer: something else would be trained",
            fix="change chat_template.jinja beside the model, or remove the row",
        )


def chat_of(tokenizer: Any, stops: Iterable[int] = ()) -> Chat:
    """The tokenizer's chat template, looked at once."""
    return _chat(tokenizer, repr(tokenizer.chat_template), tokenizer.eos_token_id, frozenset(stops))


@lru_cache(4)
def _chat(tokenizer: Any, _template: str, _eos_token_id: int, stops: frozenset[int]) -> Chat:
    return Chat(tokenizer, stops)


def _trained(row: Row) -> Sequence[Message]:
    """The turns up to the last answer that is trained. Raises: DataError where none is."""
    turns = row.messages
    last = next((at for at in range(len(turns) - 1, -1, -1) if _is_trained(turns[at])), None)
    if last is None:
        raise DataError(f"{row.where}: none of its answers is to be trained", fix="remove the row")
    return turns[: last + 1]


def _is_trained(turn: Any) -> bool:
    return turn["role"] == "assistant" and turn.get("train") is not False


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """Each value of a call's arguments in the forms that templates write: as text, as JSON, as JSON within JSON."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        text = json.dumps(value, ensure_ascii=False)
        inner = text[1:-1] if isinstance(value, str) else text
        yield str(value), text, inner, json.dumps(inner, ensure_ascii=False)[1:-1], json.dumps(value)
