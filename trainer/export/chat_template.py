"""A chat template in Ollama's language, told from what the Jinja template renders, and rendered again to compare.

Templates put fixed texts around what is said. These texts are read off conversations of words that occur nowhere else;
what a template makes of the words themselves (trimming, thoughts, tools) has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoft.errors import ModelError

Chat = Sequence[dict[str, str]]
SAYS = ("Qzuserone", "Qzreplyone", "Qzusertwo", "Qzreplytwo", "Qzuserthree")
SYSTEM = "Qzsystem"
FIX = "write a Modelfile by hand around --to gguf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Texts of a template. begin: before the first turn, without a system prompt; system: around one, None where the
    template takes none; user: before what the user says; reply: before an answer of the past; ended: after it;
    opening: before the answer that is asked for."""

    begin: str
    system: tuple[str, str] | None
    user: str
    reply: str
    ended: str
    opening: str


def turns_of(tokenizer: Any) -> Turns:
    """The texts of a tokenizer's chat template, without the token that begins a text: Ollama adds it.

    Raises: ModelError where the template does more than put texts around what is said.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template, and a Modelfile needs one", fix="--to gguf")
    roles = ("user", "assistant")
    rendered = _rendered(tokenizer, [{"role": roles[at % 2], "content": text} for at, text in enumerate(SAYS)])
    first, reply, between, reply_again, between_again, opening = _between(rendered, SAYS)
    if reply != reply_again or between != between_again:
        raise ModelError("the chat template depends on more than the roles of a conversation", fix=FIX)
    system = _system(tokenizer)
    texts = [first, between, *([system[1]] if system is not None else [])]
    user = _common_ending(texts)
    around = (system[0], system[1].removesuffix(user)) if system is not None else None
    return Turns(
        begin=first.removesuffix(user),
        system=around,
        user=user,
        reply=reply,
        ended=between.removesuffix(user),
        opening=opening,
    )


def go_template(turns: Turns) -> str:
    """The template in Go's language, as Ollama reads it."""
    begin = _literal(turns.begin)
    if turns.system is not None:
        before, after = map(_literal, turns.system)
        begin = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{begin}{{{{ end }}}}"
    return (
        f'{begin}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{_literal(turns.user)}{{{{ .Content }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(turns.reply)}{{{{ .Content }}}}{_literal(turns.ended)}'
        f"{{{{ end }}}}{{{{ end }}}}{_literal(turns.opening)}"
    )


ACTION = re.compile(r"{{ (.*?) }}", re.DOTALL)


def render_go(template: str, chat: Chat) -> str:
    """What Ollama makes of a conversation with a template of `go_template`. Raises: ValueError for other actions."""
    system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
    parts = ACTION.split(template)
    nodes = [(at % 2 == 1, part) for at, part in enumerate(parts)]
    text, rest = _render(nodes, {"System": system}, chat)
    if rest:
        raise ValueError("an end too many")
    return text


def _render(nodes: list[tuple[bool, str]], values: dict[str, str], chat: Chat) -> tuple[str, list[tuple[bool, str]]]:
    """(text up to the `end` or `else` of this block, what follows from there on)."""
    text = ""
    while nodes:
        (is_action, part), rest = nodes[0], nodes[1:]
        if not is_action:
            text, nodes = text + part, rest
        elif part == "end" or part.startswith("else"):
            return text, nodes
        elif part == "range .Messages":
            pieces = [
                _render(rest, {**values, "Role": each["role"], "Content": each["content"]}, chat) for each in chat
            ]
            text += "".join(piece for piece, _ in pieces)
            nodes = pieces[0][1][1:] if pieces else []
        elif part.startswith("if "):
            chosen, nodes = _branches(rest, part.removeprefix("if "), values, chat)
            text += chosen
        elif part.startswith('"') and part.endswith('"'):
            text, nodes = text + part[1:-1], rest
        elif part.startswith(".") and part[1:] in values:
            text, nodes = text + values[part[1:]], rest
        else:
            raise ValueError(f"{part}: not known")
    return text, nodes


def _branches(
    nodes: list[tuple[bool, str]], condition: str, values: dict[str, str], chat: Chat
) -> tuple[str, list[tuple[bool, str]]]:
    """(text of the first branch whose condition holds, what follows the end)."""
    chosen: str | None = None
    while True:
        text, nodes = _render(nodes, values, chat)
        if chosen is None and _holds(condition, values):
            chosen = text
        _, part = nodes[0]
        nodes = nodes[1:]
        if part == "end":
            return chosen or "", nodes
        condition = part.removeprefix("else").strip().removeprefix("if ") or "true"


def _holds(condition: str, values: dict[str, str]) -> bool:
    if match := re.fullmatch(r'eq \.(\w+) "(\w+)"', condition):
        return values.get(match[1]) == match[2]
    return condition == "true" or bool(values.get(condition.removeprefix(".")))


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _rendered(tokenizer: Any, chat: Chat) -> str:
    try:
        text = str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates raise what they like
        raise ModelError(f"the chat template takes no plain conversation: {error}", fix=FIX) from error
    return text.removeprefix(tokenizer.bos_token or "") if _adds_bos(tokenizer) else text


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer, and so llama.cpp, begins a text with that token by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def without_bos(tokenizer: Any, chat: Chat) -> str:
    """What Jinja renders, without the token that Ollama adds. Raises: ModelError."""
    return _rendered(tokenizer, chat)


def _system(tokenizer: Any) -> tuple[str, str] | None:
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": SAYS[0]}]
    try:
        rendered = _rendered(tokenizer, chat)
    except ModelError:
        return None
    if SYSTEM not in rendered:
        return None
    before, after, _ = _between(rendered, (SYSTEM, SAYS[0]))
    return before, after


def _between(text: str, says: Sequence[str]) -> list[str]:
    """The texts before, between and after what is said. Raises: ModelError where something is not said once."""
    pieces = []
    for said_once in says:
        before, found_it, text = text.partition(said_once)
        if not found_it:
            raise ModelError("the chat template leaves out, or changes, what is said", fix=FIX)
        pieces.append(before)
    return [*pieces, text]


def _common_ending(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    for first in range(len(shortest) + 1):
        if all(text.endswith(shortest[first:]) for text in texts):
            return shortest[first:]
    return ""
