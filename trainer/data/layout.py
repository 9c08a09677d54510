"""Which of a row's columns is what, by the names that data sets give them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from autoft.trainer.data import choices, rendered
from autoft.trainer.data.conversation import THOUGHTS
from autoft.trainer.data.marks import CLEAR, MARKS, OPPOSITE, ROW_FLAGS

CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "contents")
# Of several the first counts: Alpaca's input goes with its instruction, MATH's answer is what its solution ends with.
PROMPTS = ("prompt", "question", "instruction", "query", "problem", "input", "inputs", "user")
ANSWERS = ("completion", "response", "output", "solution", "answer", "target", "targets", "reply", "assistant")
CONTEXTS = ("input", "context", "passage", "article")  # what a prompt is about
INPUT_OF_PROMPT = ("input", "prompt")
SYSTEMS = ("system", "system_prompt", "systeminstruction", "system_instruction")
LABELS = ("label_text", "label")
# (the better answer, the worse one)
PREFERENCES = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred", "dispreferred"),
    ("preferred", "rejected"), ("preferred_output", "non_preferred_output"), ("accepted", "rejected"),
)  # fmt: skip
TOOLS = ("tools", "functions")
# A column of thoughts beside a prompt and its answer
THOUGHT_COLUMNS = (*THOUGHTS, "complex_cot", "cot", "rationale", "think", "reasoning_trace", "thinking_trajectory",
                   "reasoning_steps")  # fmt: skip

CLASSIFIED = "text is taken as the prompt and label as the answer (--map text=text trains on the text alone)"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of a row's columns is what. unused: those that nothing is made of; a row without such is not told of it."""

    name: str
    talk: str | None = None
    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    context: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    calls: str | None = None
    thought: str | None = None
    options: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    preferred: bool = False
    remark: str | None = None
    unused: tuple[str, ...] = ()


def layout_of(columns: tuple[str, ...]) -> Layout | None:
    """The first that fits: a conversation, preference pairs, a prompt and its answer, a text and its label, a text."""
    named = {name.lower(): name for name in columns}

    def first(names: Iterable[str]) -> str | None:
        return next((named[name] for name in names if name in named), None)

    def made(name: str, **roles: Any) -> Layout:
        media = tuple(name for name in rendered.media_columns(columns) if name not in roles.values())
        known = (*CLEAR, *OPPOSITE) if roles.get("remark") else MARKS  # beside a text and its class a label is no mark
        marks = tuple(named[m] for m in known if m in named and named[m] not in roles.values())
        flags = tuple(named[flag] for flag in ROW_FLAGS if flag in named)
        system = first(SYSTEMS) if "text" not in roles else None
        layout = Layout(name, system=system, marks=marks, flags=flags, media=media, **roles)
        return replace(layout, unused=tuple(name for name in columns if name not in _used(layout)))

    talk, prompt, answer = first(CONVERSATIONS), first(PROMPTS), first(ANSWERS)
    better, worse = next(((b, w) for b, w in PREFERENCES if b in named and w in named), (None, None))
    tools, thought = first(TOOLS), first(THOUGHT_COLUMNS)
    options = choices.option_columns(columns)
    if options:
        prompt, answer = prompt or first(choices.STEMS), answer or first(choices.KEYS)
    calls = first(("answers",)) if tools and answer is None else None
    if better is not None and worse is not None:
        layout = made(better if talk is None else f"{talk.lower()}/{better}", talk=talk, prompt=prompt,
                      answer=named[better], tools=tools, preferred=True)  # fmt: skip
        return replace(layout, unused=tuple(name for name in layout.unused if name != named[worse]))
    if talk:
        return made(talk.lower(), talk=talk, tools=tools)
    if prompt and answer:
        # beside a prompt an instruction and its input are often what it was made of
        context = first(
            name for name in CONTEXTS if name != prompt.lower() and (name, prompt.lower()) != INPUT_OF_PROMPT
        )
        return made(f"{prompt.lower()}/{answer.lower()}", prompt=prompt, answer=answer, context=context,
                    history=named.get("history"), tools=tools, thought=thought, options=options)  # fmt: skip
    if prompt and calls:
        return made(f"{prompt.lower()}/{calls.lower()}", prompt=prompt, calls=calls, tools=tools, thought=thought)
    label = first(LABELS)
    if "text" in named and label:
        return made(f"text/{label.lower()}", prompt=named["text"], answer=label, remark=CLASSIFIED)
    if "text" in named and not first((*ANSWERS, "summary")):
        return made("text", text=named["text"])
    return None


def _used(layout: Layout) -> set[str | None]:
    """The columns that something is made of; marks are looked at by their values."""
    return {layout.talk, layout.prompt, layout.answer, layout.text, layout.context, layout.system, layout.history,
            layout.tools, layout.calls, layout.thought, *layout.options, *layout.marks, *layout.flags,
            *layout.media}  # fmt: skip
