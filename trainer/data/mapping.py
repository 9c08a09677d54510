"""`--map`: which column is which part of an example, as the user words it, and what could be worded for a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping as Fields
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any

from autoft.errors import DataError, OptionError, near
from autoft.trainer.data.lines import RawRow

ROLES = ("prompt", "completion", "system", "text", "messages", "chosen")
FORM = "role=column, such as --map prompt=question,completion=answer"
# One of these makes an example; each goes with the roles behind it.
TOGETHER = {"completion": ("prompt", "system"), "chosen": ("prompt", "system"), "messages": ("system",), "text": ()}

# Words in the names of columns, for the proposal only.
QUESTIONS = ("prompt", "question", "instruction", "query", "input", "request")
ASKS = (*QUESTIONS, "article", "document", "dialog", "conversation", "transcript", "passage", "source", "text", "title")
SAME = ("answer", "reference", "target", "text")  # lists of these hold ways to say the same
ABOUT = ("context", "passage", "paragraph", "article", "document")
TELLS = ("completion", "response", "answer", "output", "target", "reply", "summary", "solution", "highlights", "label",
         "category", "class", "result", "translation")  # fmt: skip
BESIDE = re.compile(r"(^|_)(id|idx|index|uuid|guid|url|link|date|time|timestamp|split|source|author|lang|language)$")


TURN = frozenset(("role", "from", "speaker"))
MOST_JOINED = 3  # columns of text that make one prompt
SEVERAL = re.compile(r"(?:[ _-](?:[abcjkwl]|good|bad|better|worse|best|worst|win|lose)|[ _-]?\d)$", re.IGNORECASE)
WORSE = re.compile(r"reject|dispreferred|non_preferred|undesirable|worse", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mapping:
    """roles: (role, column, dotted path into one, or template of columns in braces). words: as the user wrote it."""

    roles: tuple[tuple[str, str], ...]
    words: str

    def apply(self, raw: RawRow) -> RawRow:
        """The row with the mapping's roles as its columns. Raises: DataError for a column that is not there."""
        return RawRow({role: _value(raw, role, wanted) for role, wanted in self.roles}, raw.where, raw.goes_on)

    def columns(self, raw: RawRow) -> frozenset[str]:
        """The columns of the row that the mapping makes something of."""
        return _columns_of(self.roles, tuple(raw.fields))


@lru_cache(1024)
def _columns_of(roles: tuple[tuple[str, str], ...], columns: tuple[str, ...]) -> frozenset[str]:
    """Which of `columns` the mapping's values name, themselves, in other case or as the first part of a path."""
    wanted: list[str] = []
    for _, value in roles:
        wanted += [name for _, name, _, _ in Formatter().parse(value) if name] if "{" in value else [value]
    names = {part.lower() for name in wanted for part in (name, name.split(".")[0])}
    return frozenset(column for column in columns if column.lower() in names)


def parse_mapping(words: str) -> Mapping:
    r"""The Mapping of `role=column,role=column`. In a template \n and \t are a new line and a tab, {{ and }} braces.

    Raises: OptionError for a word that is none, an unknown role, or roles that do not go together.
    """
    roles: dict[str, str] = {}
    for word in re.split(rf",(?=\s*(?:{'|'.join(ROLES)})\s*=)", words):
        role, equals, wanted = (part.strip() for part in word.partition("="))
        if not equals or not wanted:
            raise OptionError(f"--map {word.strip()}: not of the form role=column", fix=FORM)
        if role not in ROLES:
            raise OptionError(f"--map {word}: no role {role!r}.{near(role, ROLES)}", fix=f"one of: {', '.join(ROLES)}")
        if role in roles:
            raise OptionError(f"--map names {role} twice", fix=r'join columns in a template: "{first}\n{second}"')
        if "{" in wanted:
            _check_template(role, wanted)
        elif "=" in wanted:
            unknown = wanted.split(",")[-1].partition("=")[0].strip()
            raise OptionError(
                f"--map {role}={wanted}: no role {unknown!r}.{near(unknown, ROLES)}", fix=f"one of: {', '.join(ROLES)}"
            )
        roles[role] = wanted
    _check_roles(roles)
    return Mapping(tuple(roles.items()), words)


def propose(fields: Fields[str, Any]) -> str | None:
    """A --map that is likely meant for a row of unknown shape, by the names of its columns; None where none is."""
    columns = [name for name in fields if name.isprintable() and name and not set(name) & set(",={}")]
    for name in columns:
        value = fields[name]
        if isinstance(value, list) and value and isinstance(value[0], dict) and TURN & value[0].keys():
            return f"messages={name}"
    if any(WORSE.search(name) for name in columns):
        return None  # nobody is to train on the worse answer
    columns = [n for n in columns if not BESIDE.search(n.lower()) or (n.lower() == "source" and "target" in fields)]
    texts = [n for n in columns if isinstance(fields[n], str) and fields[n].strip()]
    answers = [path for name in columns if (path := _answer_in(name, fields[name]))]
    answer = next((path for path in answers if _has(path, TELLS) and not _has(path, QUESTIONS)), None)
    prompts = [name for name in texts if name != answer]
    prompt = next((name for word in ASKS for name in prompts if word in name.lower()), None)
    if answer is not None and prompts:
        return None if alternatives(fields) else _with_answer(prompt, prompts, answer, fields)
    pairs = [(name, value) for name, value in fields.items() if isinstance(value, dict) and len(value) == 2]
    if len(pairs) == 1 and not texts and all(isinstance(text, str) for text in pairs[0][1].values()):
        first, second = (f"{pairs[0][0]}.{part}" for part in pairs[0][1])
        return f"prompt={first},completion={second}"
    if any(_has(name, TELLS) for name in columns if name not in texts) or len(prompts) > 2:
        return None  # an answer that is no text, or no telling which it is
    if len(prompts) == 2 and not any(_has(name, ABOUT) for name in prompts):
        first, second = prompts if prompt in (None, prompts[0]) else reversed(prompts)
        return f"prompt={first},completion={second}"
    if len(texts) == 1:
        complete = all(isinstance(fields[name], str | int | float | None) for name in columns)
        return f"text={texts[0]}" if complete and not _has(texts[0], (*QUESTIONS, *TELLS)) else None
    return None


def alternatives(fields: Fields[str, Any]) -> list[str]:
    """Columns that hold several answers to one prompt, such as response_a and response_b; empty without such."""
    stems: dict[str, list[str]] = {}
    for name, value in fields.items():
        if isinstance(value, str) and _has(name, TELLS) and not _has(name, QUESTIONS) and SEVERAL.search(name):
            stems.setdefault(SEVERAL.sub("", name).lower(), []).append(name)
    return next((names for names in stems.values() if len(names) > 1), [])


def _with_answer(prompt: str | None, prompts: list[str], answer: str, fields: Fields[str, Any]) -> str | None:
    """The prompt's column, or a template of it, what it is about and its options, and the answer."""
    from autoft.trainer.data.choices import label_of, option_columns

    options = [name for name in option_columns(list(fields)) if fields[name] not in (None, "", [])]
    prompts = [name for name in prompts if name not in options]
    if not prompts or prompt in options:
        return None
    value = fields.get(answer)
    if options and (isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())):
        return None  # a number that stands for one of the options
    if prompt is None and 1 < len(prompts) <= MOST_JOINED and not options:
        joined = "\\n".join(f"{{{name}}}" for name in prompts)
        return f"prompt={joined},completion={answer}"
    about = next((n for word in ABOUT for n in prompts if n != prompt and word in n.lower()), None)
    before = f"{{{about}}}\\n\\n" if about and prompt and _has(prompt, QUESTIONS) else ""
    after = "".join(f"\\n{label_of(n)}. {{{n}}}" if len(options) > 1 else f"\\n{{{n}}}" for n in options)
    prompt = prompt or prompts[0]
    whole = f"{before}{{{prompt}}}{after}" if before or after else prompt
    return f"prompt={whole},completion={answer}"


def _answer_in(name: str, value: Any) -> str | None:
    """The column, or the path into it, of what could be an answer: a text, a number, the first of a list."""
    if isinstance(value, str) and value.strip():
        return name
    if isinstance(value, int) and not isinstance(value, bool):
        return name
    if isinstance(value, list) and value and isinstance(value[0], str) and _has(name, SAME):
        return f"{name}.0"
    if isinstance(value, dict):
        return next((f"{name}.{path}" for key in ("text", "value", "content")
                     if (path := _answer_in(key, value.get(key)))), None)  # fmt: skip
    return None


def _has(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)


def _check_template(role: str, template: str) -> None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise OptionError(f"--map {role}={template}: {error}", fix='a column in braces: "{title}"') from None
    if any(column == "" for _, column, _, _ in parts):
        raise OptionError(f"--map {role}={template}: braces without a column", fix='a column in braces: "{title}"')
    if role == "messages":
        raise OptionError(f"--map messages={template}: turns cannot be made of text", fix="name one column")


def _check_roles(roles: Fields[str, str]) -> None:
    main = [role for role in TOGETHER if role in roles]
    if not main:
        raise OptionError(
            f"--map names {' and '.join(roles)}, and nothing to learn",
            fix="add completion=, chosen=, messages= or text=",
        )
    extra = next((role for role in roles if role != main[0] and role not in TOGETHER[main[0]]), None)
    if extra is not None:
        raise OptionError(f"--map names {main[0]} and {extra}, which do not go together", fix="leave one of them out")
    if main[0] == "completion" and "prompt" not in roles:
        raise OptionError("--map names a completion and no prompt", fix="add prompt=, or use text= for text alone")


def _value(raw: RawRow, role: str, wanted: str) -> Any:
    if "{" in wanted:
        pieces = Formatter().parse(wanted.replace("\\n", "\n").replace("\\t", "\t"))
        return "".join(
            text + ("" if name is None else _as_text(_column(raw, role, name))) for text, name, _, _ in pieces
        )
    if role == "system" and any(space in wanted for space in " \t\n") and wanted not in raw.fields:
        return wanted
    return _column(raw, role, wanted)


def _column(raw: RawRow, role: str, name: str) -> Any:
    if name in raw.fields:
        return raw.fields[name]
    same = [column for column in raw.fields if column.lower() == name.lower()]
    if len(same) == 1:
        return raw.fields[same[0]]
    value: Any = raw.fields
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part, raw) if isinstance(value, dict) else raw
    if value is raw:
        raise DataError(
            f"{raw.where}: --map {role}: no column {name!r}.{near(name, raw.fields)}",
            fix=f"one of: {', '.join(raw.fields) or 'none: the row is empty'}",
        )
    return value


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
