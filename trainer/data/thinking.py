"""Does a chat template think? Its own switch is told by the template, and set where the data needs it.

What is chosen is written into the tokenizer's chat template as a default of its own variables, so that training,
evaluation, `autoft chat` and whoever loads the saved tokenizer ask for an answer in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from autoft.errors import ModelError
from autoft.trainer.data.shape import Row
from autoft.trainer.job import Thinking

State = Literal["open", "closed", "none"]

# How templates write a thought: what begins and what ends it. Of the families' published chat templates: Qwen, R1, GLM,
# Nemotron; Magistral; Command A; Seed-OSS; Gemma 4
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought\n", "<channel|>"),
)
# Variables by which templates are told to think, with their values for on and off
SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "enable_reasoning": (True, False),
    "think": (True, False),
    "thinking_mode": ("on", "off"),
    "reasoning_effort": ("medium", "none"),
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")  # of a turn, as templates read them
THOUGHT = re.compile(r"\A(\s*<think>)?(.*?)</think>(.*)\Z", re.DOTALL)
CLOSING = "\n{}\n\n"  # an opened thought closed at once, as the templates of Qwen 3 write an empty one
# What _default and _closing write
_DEFAULT = re.compile(
    r"\{%- if (\w+) is not defined %\}\{%- set \1 = (true|false|'[^']*') %\}\{%- endif %\}\{\{ '' \}\}"
)
_CLOSED = re.compile(r"\{\{ '\\n([^']+)\\n\\n' if add_generation_prompt else '' \}\}\Z")
PROBE = ({"role": "user", "content": "a"},)


@dataclass(frozen=True, slots=True)
class Reads:
    """What a template's text shows. variables: it is given and reads; words: constants and attributes in it."""

    variables: frozenset[str]
    words: frozenset[str]
    source: str

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        return tuple(pair for pair in TAGS if pair[0].strip() in self.source or pair[1] in self.source)


def reads_of(tokenizer: Any) -> Reads:
    """Of the template that conversations without tools are written with."""
    return _reads(str(tokenizer.get_chat_template()))


@lru_cache(64)
def _reads(source: str) -> Reads:
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = environment_of_templates().parse(source)
    except TemplateError:  # whoever renders it says why
        return Reads(frozenset(), frozenset(), source)
    words = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    words |= {node.attr for node in tree.find_all(nodes.Getattr)}
    return Reads(frozenset(meta.find_undeclared_variables(tree)), frozenset(words), source)


def environment_of_templates() -> Any:
    """As transformers' own, whose {% generation %} marks answers and changes nothing of the text."""
    from jinja2 import ext, sandbox

    class Generation(ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )


def has_thought(row: Row) -> bool:
    """Whether an answer of the row has a thought of its own."""
    return any(
        message["role"] == "assistant"
        and (message.get("reasoning_content") or "</think>" in (message["content"] or ""))
        for message in row.messages
    )


def state_of(prompt: str, asks: str, tags: Sequence[tuple[str, str]]) -> State:
    """Whether `prompt` ends within a thought or behind one. asks: its end, by which the template asks for an answer."""
    generation = prompt[len(prompt) - len(asks) :]
    for begin, end in tags:
        opened, closed = generation.rfind(begin.rstrip("\n")), generation.rfind(end)
        if max(opened, closed) >= 0:
            return "open" if opened > closed else "closed"
    return "none"


def state(tokenizer: Any, **values: Any) -> State:
    """Of the prompt that the template writes for a first turn. values: of its variables."""
    try:
        turns = str(tokenizer.apply_chat_template(list(PROBE), tokenize=False, **values))
        prompt = str(tokenizer.apply_chat_template(list(PROBE), tokenize=False, add_generation_prompt=True, **values))
    except Exception:  # noqa: BLE001 - jinja raises what the template's author wrote; told where rows are rendered
        return "none"
    same = next(
        (at for at, (a, b) in enumerate(zip(turns, prompt, strict=False)) if a != b), min(len(turns), len(prompt))
    )
    return state_of(prompt, prompt[same:], reads_of(tokenizer).tags)


@dataclass(frozen=True, slots=True)
class Switched:
    """What data made of a chat template's thinking.

    value: the variable that it is given, as NAME=VALUE with jinja's constant. end: of the thought that it would open
    and that is closed at once. None for what was not done.
    """

    value: str | None = None
    end: str | None = None

    @property
    def variables(self) -> dict[str, bool | str]:
        """The variable and its value, as apply_chat_template takes them."""
        if self.value is None:
            return {}
        name, _, constant = self.value.partition("=")
        return {name: constant == "true" if constant in ("true", "false") else constant.strip("'")}

    @property
    def before(self) -> str:
        """What comes before the template's own text."""
        return "".join(_default(name, value) for name, value in self.variables.items())

    @property
    def behind(self) -> str:
        """What comes behind the template's own text, which then ends without a line break."""
        return _closing(self.end) if self.end is not None else ""


def switched(tokenizer: Any) -> Switched:
    """Read back from a tokenizer's chat template what `settle` made of it."""
    template = str(tokenizer.chat_template and tokenizer.get_chat_template())
    value, end = _DEFAULT.match(template), _CLOSED.search(template)
    return Switched(f"{value[1]}={value[2]}" if value else None, end[1] if end else None)


def settle(
    tokenizer: Any, rows: Iterable[Row], thinking: Thinking, model: str, *, keeps: Callable[[], bool]
) -> list[str]:
    """Set the template's switch as `thinking` has it, in tokenizer.chat_template; what the user should know of it.

    auto: on where a row has a thought, off where none has and the template would open one.
    keeps: whether the template, as it then is, writes thoughts; auto is not on without that.
    Raises: ModelError where the template cannot be switched on.
    """
    talks = [row for row in rows if row.messages]
    if not talks:
        return []
    now, reads = state(tokenizer), reads_of(tokenizer)
    wish = thinking
    if thinking == "auto":
        if not reads.tags and not reads.variables & SWITCHES.keys():
            return []
        thoughtful = any(map(has_thought, talks))
        if not thoughtful and now != "open":
            return []
        wish = "on" if thoughtful else "off"
    if wish == "on":
        before, notes = (
            tokenizer.chat_template,
            _switch_on(tokenizer, reads, now, demanded=thinking == "on", model=model),
        )
        if thinking == "auto" and notes and not keeps():
            tokenizer.chat_template, notes = before, []
        return notes
    return _switch_off(tokenizer, reads, now, demanded=thinking == "off")


def _switch_on(tokenizer: Any, reads: Reads, now: State, *, demanded: bool, model: str) -> list[str]:
    value = None if now == "open" else _value(tokenizer, reads, 0, ("open", "none"))
    if value is not None:
        _set_default(tokenizer, *value)
        return [
            f"thinking is on: the chat template is given {value[0]}={_jinja(value[1])}, and the run's copy keeps it"
        ]
    if demanded and (now == "closed" or not (reads.tags or reads.variables & SWITCHES.keys())):
        raise ModelError(
            f"{model}: thinking=on, but its chat template cannot be switched to it", fix="--set thinking=auto"
        )
    return []


def _switch_off(tokenizer: Any, reads: Reads, now: State, *, demanded: bool) -> list[str]:
    value = _value(tokenizer, reads, 1, ("closed", "none") if now == "open" else ("closed",))
    if value is not None:
        _set_default(tokenizer, *value)
        return [
            f"thinking is off: the chat template is given {value[0]}={_jinja(value[1])}, and the run's copy keeps it"
        ]
    if now == "open":
        end = next(end for begin, end in reads.tags if begin.rstrip("\n") in reads.source)
        _change(tokenizer, lambda text: text.removesuffix("\n") + _closing(end))
        return [
            f"thinking is off: the chat template opens a thought and has no switch, so the run's copy closes it ({end})"
        ]
    return ["thinking=off changes nothing: the chat template opens no thought"] if demanded and now == "none" else []


def _value(tokenizer: Any, reads: Reads, which: int, wanted: Sequence[State]) -> tuple[str, Any] | None:
    """(variable, value) by which the prompt changes and is then as wanted. which: 0 for on, 1 for off."""
    for name, values in SWITCHES.items():
        given = {name: values[which]}
        if name in reads.variables and _changes(tokenizer, given) and state(tokenizer, **given) in wanted:
            return name, values[which]
    return None


def _changes(tokenizer: Any, values: dict[str, Any]) -> bool:
    def prompt(**given: Any) -> str:
        return str(tokenizer.apply_chat_template(list(PROBE), tokenize=False, add_generation_prompt=True, **given))

    try:
        return prompt(**values) != prompt()
    except Exception:  # noqa: BLE001 - a value that the template refuses
        return False


def _set_default(tokenizer: Any, name: str, value: Any) -> None:
    start = _default(name, value)
    _change(tokenizer, lambda text: start + text)


def _default(name: str, value: Any) -> str:
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {_jinja(value)} %}}{{%- endif %}}{{{{ '' }}}}"


def _closing(end: str) -> str:
    return f"{{{{ {_jinja(CLOSING.format(end))} if add_generation_prompt else '' }}}}"


def _change(tokenizer: Any, edit: Any) -> None:
    known = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: edit(text) for name, text in known.items()} if isinstance(known, dict) else edit(known)
    )


def _jinja(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "'" + str(value).replace("\n", "\\n") + "'"
