"""Rows as text, as the model's chat template writes them, with proof of where each answer begins and ends.

A template is a program. So that nothing is trained but what a row says, each of its texts is replaced by a mark and the
conversation is written again: where the marks come to stand is where the texts stand, and the rest is the template's
own. A row is right when its own text is that with the marks filled in, character for character.

How an answer's end is chosen, the first that there is (`Ending`): a token after it at which the model stops; the token
with which the template ends every turn; the stop token that comes before the next turn, or with which the template
ends the last answer; the eos token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.plain import SPLIT, control_pattern, encoded, special_texts, split_control
from autoft.trainer.data.shape import Message, Row
from autoft.trainer.data.thinking import REASONING_KEYS, THOUGHT, Reads, reads_of, state_of

MARK = re.compile("\ue000(\\d+)\ue001")
CALL_ID = "call00001"  # as long as Mistral's templates want it
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


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer after which the template writes no stop token: its text, the stop last, and that token."""

    text: str
    token: int


@dataclass(frozen=True, slots=True)
class _Marked:
    """Text between marks, and the marks: literal, mark, literal, ..., literal. None where there is no such text."""

    pieces: list[str] | None

    def filled(self, texts: dict[int, str]) -> tuple[str, dict[int, tuple[int, int]]]:
        """(the text, where each mark's own text first stands)."""
        places: dict[int, tuple[int, int]] = {}
        if self.pieces is None:
            return "", places
        out, at = [self.pieces[0]], len(self.pieces[0])
        for number, literal in zip(self.pieces[1::2], self.pieces[2::2], strict=True):
            text = texts[int(number)]
            places.setdefault(int(number), (at, at + len(text)))
            out += text, literal
            at += len(text) + len(literal)
        return "".join(out), places

    @property
    def marks(self) -> frozenset[int] | None:
        return None if self.pieces is None else frozenset(map(int, self.pieces[1::2]))


@dataclass(slots=True)
class _Parts:
    """The texts of a conversation by their marks. of: the marks of each turn; calls, thoughts, bodies: which are that.

    key: what is the same in conversations of one structure. around: the white space before and behind each.
    """

    texts: dict[int, str] = field(default_factory=dict)
    of: list[list[int]] = field(default_factory=list)
    calls: set[int] = field(default_factory=set)
    thoughts: set[int] = field(default_factory=set)
    bodies: set[int] = field(default_factory=set)
    key: list[Any] = field(default_factory=list)
    around: dict[int, tuple[str, str]] = field(default_factory=dict)

    def span(self, mark: int, place: tuple[int, int], text: str) -> tuple[int, int]:
        """The place of a part with the white space around it that the text has kept."""
        before, behind = self.around[mark]
        start = place[0] - len(before) if text[: place[0]].endswith(before) else place[0]
        return start, place[1] + len(behind) if text.startswith(behind, place[1]) else place[1]

    def mark(self, text: str, kind: set[int] | None = None) -> str:
        """`text` with a mark for all but the white space around it; as it is where there is nothing else."""
        core = text.strip()
        if not core:
            self.key.append(text)
            return text
        number = len(self.texts)
        self.texts[number] = core
        self.of[-1].append(number)
        if kind is not None:
            kind.add(number)
        begin = text.index(core)
        before, behind = text[:begin], text[begin + len(core) :]
        self.key.append((before, behind))
        self.around[number] = (before, behind)
        return f"{before}\ue000{number}\ue001{behind}"


def is_other_end(fact: str) -> bool:
    """Whether a fact says that answers end with a token which the template does not write."""
    before, after = NO_END.split("END")
    return fact.startswith(before) and fact.endswith(after)


class Chat:
    """The chat template of a tokenizer.

    stops: the tokens at which the model stops, beside the tokenizer's eos token.
    """

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template
        self.reads: Reads = reads_of(tokenizer)
        self.in_parts = False
        self.in_parts = self._wants_parts()
        self.reasoning_key = self._reasoning_key()
        self.generation = self._generation()
        self.thought = state_of(self.generation, self.generation, self.reads.tags)
        self._known: dict[Any, tuple[_Marked, _Marked]] = {}
        known = {
            int(token) for token in (*stops, tokenizer.eos_token_id) if token is not None and token < len(tokenizer)
        }
        self.stops = {text: token for token in known if (text := self._token_text(token))}
        self.turn_end: int | None = None
        self.ending = self._find_ending()
        tags = {tag for pair in self.reads.tags for tag in pair}
        self.control = control_pattern((special_texts(tokenizer) | self.stops.keys()) - tags)
        words = sorted(self.stops, key=len, reverse=True)
        self._stop = re.compile("|".join(map(re.escape, words)))
        self._empty = re.compile(
            "|".join(re.escape(b.rstrip("\n")) + r"\s*" + re.escape(e) for b, e in self.reads.tags) or r"(?!)"
        )
        self._closing = re.compile(r"\A\s*(" + ("|".join(re.escape(e) for _, e in self.reads.tags) or r"(?!)") + ")")

    # --- what the template is ---------------------------------------------------------------------------------------

    def _token_text(self, token: int) -> str:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return str(added) if added is not None else str(self.tokenizer.convert_ids_to_tokens(token) or "")

    def _wants_parts(self) -> bool:
        """Whether the template loses a turn that is a text, and writes one that is a list of parts."""
        turns = [{"role": "user", "content": "\ue0000\ue001"}]
        if "type" not in self.reads.words:
            return False
        try:
            if MARK.search(self._render(turns)):
                return False
        except DataError:
            pass
        self.in_parts = True
        try:
            return bool(MARK.search(self._render(turns)))
        except DataError:
            return False
        finally:
            self.in_parts = False

    def _reasoning_key(self) -> str | None:
        for key in REASONING_KEYS:
            if key in self.reads.words:
                turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "\ue0000\ue001"}]
                try:
                    if MARK.search(self._render(turns)):
                        return key
                except DataError:
                    continue
        return None

    def _generation(self) -> str:
        """What the template adds to a first turn to ask for an answer."""
        turns = [{"role": "user", "content": "a"}]
        try:
            written, prompt = self._render(turns), self._render(turns, asks=True)
        except DataError:
            return ""
        return prompt[_same(written, prompt) :]

    def _find_ending(self) -> Ending:
        user, mark = {"role": "user", "content": "a"}, "\ue0000\ue001"
        eos = Ending(self._token_text(self.tokenizer.eos_token_id), self.tokenizer.eos_token_id)
        try:
            last = MARK.split(self._render([user, {"role": "assistant", "content": mark}]))
            talk = [user, {"role": "assistant", "content": mark}, {"role": "user", "content": "\ue0001\ue001"}]
            between = MARK.split(self._render(talk))
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
            text = self._token_text(special)
            self.stops[text] = special
            return Ending(text, special)
        before = between[2][: self._before_special(between[2])]
        return own or next_ or Ending(before + eos.text, eos.token)

    def _before_special(self, literal: str) -> int:
        """How much white space comes before a special token; 0 where none comes next."""
        rest = literal.lstrip()
        return len(literal) - len(rest) if self._special_at_start(rest) is not None else 0

    @cached_property
    def call_ending(self) -> Ending:
        """What ends a call of a tool after which the template writes no stop token: what comes before its result."""
        turns = [{"role": "user", "content": "a"}, self._called(0), {"role": "tool", "name": "b", "content": "b"}]
        turns[-1]["tool_call_id"] = CALL_ID
        try:
            pieces = MARK.split(self._render(turns))
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
            return MARK.search(self._render(turns, [{"type": "function", "function": function}], asks=True)) is not None
        except DataError:  # told where rows are rendered
            return True

    def _called(self, mark: int) -> dict[str, Any]:
        call = {"type": "function", "id": CALL_ID, "function": {"name": f"\ue000{mark}\ue001", "arguments": {}}}
        return self._call_turn({"role": "assistant", "content": "", "tool_calls": [call]})

    def _call_turn(self, turn: dict[str, Any]) -> dict[str, Any]:
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
                text = self._render([{"role": "user", "content": "a"}, self._call_turn(turn)])
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

    # --- writing ----------------------------------------------------------------------------------------------------

    @property
    def inline(self) -> bool:
        """Whether it knows thoughts in <think> within the text of an answer."""
        return "</think>" in self.reads.source or (self.thought == "open" and "<think>" in self.generation)

    @cached_property
    def doubles(self) -> bool:
        """Whether it opens a thought before every answer, so that one which opens its own would open two."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}]
        try:
            return self.thought == "open" and self.inline and self._render(turns).count("<think>") > 1
        except DataError:
            return False

    @property
    def writes_thoughts(self) -> bool:
        """Whether it has a place for the thought of an answer."""
        return self.reasoning_key is not None or self.inline

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`. Raises: DataError."""
        return self._render(self._normal(messages, []), tools, asks=True)

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
        return self._render(messages[:-1], row.tools, asks=True, where=row.where)

    def write(self, row: Row) -> Written:
        """The row as text. Raises: DataError, with the row's place, where what would be trained is not what it says."""
        facts: list[str] = []
        tools = row.tools
        turns = _trained(row)
        messages = self._normal(turns, facts)
        whole = self._render(messages, tools, where=row.where)
        prompt = self._render(messages[:-1], tools, asks=True, where=row.where)
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
            end = TURN_END.replace("END", self._token_text(self.turn_end))
            facts += [end for answer in answers if answer.stop == self.turn_end]
        return Written(text, tuple(answers), len(prompt), tuple(facts))

    def _last(
        self, row: Row, messages: list[Any], prompt: str, whole: str, marked: tuple[_Parts, _Marked], facts: list[str]
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
            lead = self._other_lead(parts, own, dropped, whole[min(_same(prompt, whole), first) : first], facts)
            if dropped and answer[:1].isspace():
                lead = lead.rstrip("\n")
        text = f"{prompt}{lead}{answer}"
        stop = self._stop.search(tail)
        if stop is None:
            if has_calls:  # what they are called with comes after their names
                text += tail.rstrip()
            ending = self.call_ending if has_calls else self.ending
            facts.append(NO_END.replace("END", self._token_text(ending.token)))
            tail, stop_end = ending.text, len(ending.text)
            token, stop_text = ending.token, self._token_text(ending.token)
        else:
            token, stop_text, stop_end = self.stops[stop.group()], stop.group(), stop.end()
        self._check_calls(row, messages[-1], text[len(prompt) :] + tail)
        end = len(text) + stop_end
        return text + tail, Answer(len(prompt), end, token, end - len(stop_text))

    def _other_lead(self, parts: _Parts, own: list[int], dropped: list[int], written: str, facts: list[str]) -> str:
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
        marked: tuple[_Parts, dict[int, tuple[int, int]]],
        facts: list[str],
    ) -> Answer:
        """The place of an answer in the text that asks for the last one."""
        parts, places = marked
        own = self._own_parts(row, at, parts, places, prompt, facts, last=False)
        first, end = parts.span(own[0], places[own[0]], prompt)[0], parts.span(own[-1], places[own[-1]], prompt)[1]
        question = self._render(messages[:at], row.tools, asks=True, where=row.where)
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
        facts.append(NO_END.replace("END", self._token_text(self.ending.token)))
        return Answer(start, end + self._before_special(prompt[end:following]), self.ending.token, None)

    def _own_parts(
        self,
        row: Row,
        at: int,
        parts: _Parts,
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

    def _check_context(self, row: Row, messages: list[Any], parts: _Parts, first: _Marked, facts: list[str]) -> None:
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
        return self._call_turn({**turn, "tool_calls": split_control(turn["tool_calls"], self.control)})

    # --- marks ------------------------------------------------------------------------------------------------------

    def _marks(self, messages: list[Any], tools: Sequence[Any]) -> tuple[_Parts, _Marked, _Marked]:
        """The parts of a conversation; its prompt and its whole text with marks, from a conversation like it."""
        parts, marked = self._mark(messages)
        kept = not tools and not parts.calls
        key = repr(parts.key)
        if kept and key in self._known:
            return parts, *self._known[key]
        try:
            prompt = _Marked(MARK.split(self._render(marked[:-1], tools, asks=True)))
            both = prompt, _Marked(MARK.split(self._render(marked, tools)))
        except DataError:
            both = _Marked(None), _Marked(None)
        if kept and len(self._known) < KNOWN:
            self._known[key] = both
        return parts, *both

    def _mark(self, messages: list[Any], *, answers_only: bool = False) -> tuple[_Parts, list[Any]]:
        parts = _Parts()
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
        self, text: str, messages: list[Any], tools: Sequence[Any], parts: _Parts, marked: _Marked, where: str
    ) -> tuple[str, dict[int, tuple[int, int]]]:
        """`text` and its parts' places. Raises: DataError when it is not what the marks and their texts give."""
        filled = marked.filled(parts.texts)
        if filled[0] == text:
            return filled
        # what others say may be written by rules of its own: results of tools as JSON, for instance
        _, again = self._mark(messages, answers_only=True)
        try:
            rendered = self._render(again, tools, asks=len(messages) < len(parts.of))
            filled = _Marked(MARK.split(rendered)).filled(parts.texts)
        except DataError:
            filled = ("", {})
        if filled[0] == text:
            return filled
        raise DataError(
            f"{where}: the model's chat template rewrites the text of an answer: something else would be trained",
            fix="change chat_template.jinja beside the model, or remove the row",
        )

    def _render(
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


def _in_parts(message: Any) -> Any:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


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


def _same(left: str, right: str) -> int:
    """How many characters both begin with."""
    if right.startswith(left):
        return len(left)
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
