"""Names that autoft relies on and that no library promises to keep: one `Hook` each, and their check.

Tables of them, one a library, are in trainer/compat. Nothing of the libraries is imported before a hook is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """A name that may change with any release of its library.

    library: its distribution, such as "torch". path: "module:name", the name dotted where it is inside a class.
    signature: parameters with their defaults, as `signature_of` writes them; "" where Python knows none. Those after
    the last that matters are "...": "(model=None, ...)".
    attributes: of instances, which the code of `path` (a class or a function) must mention.
    source: digest by `source_of`, where a rule of ours repeats what the code does; such a module is not imported.
    why: what it is needed for. used_in: files, from the root of the repository.
    cuda_only: builds without CUDA do not have it.
    """

    library: str
    path: str
    signature: str
    why: str
    used_in: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    source: str = ""
    cuda_only: bool = False

    @property
    def name(self) -> str:
        """Last part of the path: "_cdata" of "torch:UntypedStorage._cdata"."""
        return self.path.rpartition(":")[2].rpartition(".")[2]

    @property
    def place(self) -> str:
        """The path without its library, for people: "autograd.graph._engine_run_backward"."""
        return self.path.replace(":", ".").removeprefix(f"{self.library}.")

    def owner(self) -> Any:
        """The module or class that has the name. Raises: ImportError or AttributeError where there is none."""
        importlib.import_module(self.library)  # whose operations torch.ops has
        module, _, name = self.path.partition(":")
        owner: Any = importlib.import_module(module)
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner

    def fetch(self) -> Any:
        """What the name stands for. Raises: ImportError or AttributeError where it is gone."""
        return getattr(self.owner(), self.name)

    @contextmanager
    def replaced_by(self, value: Any) -> Iterator[Any]:
        """Inside the block the name stands for `value`. Yields what it stands for outside."""
        owner = self.owner()
        original = getattr(owner, self.name)
        setattr(owner, self.name, value)
        try:
            yield original
        finally:
            setattr(owner, self.name, original)


class Table:
    """The hooks of one library, in the order in which they were added."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.hooks: list[Hook] = []

    def hook(self, path: str, signature: str, why: str, *used_in: str, **more: Any) -> Hook:
        """Add a row; more: what else a Hook has."""
        row = Hook(library=self.library, path=path, signature=signature, why=why, used_in=used_in, **more)
        self.hooks.append(row)
        return row


def check(hooks: Iterable[Hook], *, cuda: bool) -> list[str]:
    """One line for each hook that is not as tested: its place, and what is different. cuda: torch is built for CUDA.

    Imports the libraries.
    """
    lines = (_difference(hook) for hook in hooks if cuda or not hook.cuda_only)
    return [line for line in lines if line is not None]


def _difference(hook: Hook) -> str | None:
    if hook.source:
        return _difference_of_source(hook)
    try:
        value = hook.fetch()
    except (ImportError, AttributeError):
        return f"{hook.place} is gone"
    signature = signature_of(value)
    if not _is_as_listed(signature, hook.signature):
        return f"{hook.place} has changed: {signature or 'no Python function'}"
    missing = sorted(set(hook.attributes) - names_in(value))
    return f"{hook.place} has no {missing[0]} any more" if missing else None


def _is_as_listed(signature: str, listed: str) -> bool:
    beginning = listed.removesuffix(" ...)")
    return signature == listed or (beginning != listed and signature.startswith(beginning))


def _difference_of_source(hook: Hook) -> str | None:
    try:
        return None if source_of(hook.path) == hook.source else f"{hook.place} has changed"
    except (ImportError, LookupError, OSError, SyntaxError):
        return f"{hook.place} is gone"


def signature_of(value: Any) -> str:
    """Parameters of a function, class or operation of torch, such as "(p, dtype=...)"; "" where there are none to know.

    Annotations are left out, and so are defaults that are no plain values, whose text changes from run to run.
    """
    import inspect

    schema = getattr(value, "_schema", None) or getattr(getattr(value, "default", None), "_schema", None)
    if schema is not None:
        return f"({', '.join(argument.name for argument in schema.arguments)})"
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    plain = [_plain(parameter) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


class _Left:
    def __repr__(self) -> str:
        return "..."


def _plain(parameter: Any) -> Any:
    plain = parameter.replace(annotation=parameter.empty)
    default = parameter.default
    if default is parameter.empty or isinstance(default, bool | int | float | str | tuple | None):
        return plain
    return plain.replace(default=_Left())


def names_in(value: Any) -> set[str]:
    """Names that the code of a function, or of a class and its bases, mentions, and those that a class has."""
    import inspect

    if not isinstance(value, type):
        return set(dir(value)) | _names_of_function(value)
    names = set(dir(value))
    for base in value.__mro__:
        names |= set(inspect.get_annotations(base))
        for member in vars(base).values():
            names |= _names_of_function(getattr(member, "fget", None) or getattr(member, "__func__", None) or member)
    return names


def _names_of_function(function: Any) -> set[str]:
    """Of what it wraps, too."""
    names: set[str] = set()
    while isinstance(function, FunctionType):
        names |= set(_names_of_code(function.__code__))
        function = getattr(function, "__wrapped__", None)
    return names


def _names_of_code(code: Any) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (part for part in constant if isinstance(part, str))
        elif hasattr(constant, "co_names"):
            yield from _names_of_code(constant)


def source_of(path: str) -> str:
    """First 16 hex digits of the SHA-256 of a function's tokens without comments, read from a module that stays unread.

    Raises: ImportError, LookupError, OSError or SyntaxError where there is no such function.
    """
    import hashlib

    text = "\x00".join(function_tokens(path))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def function_tokens(path: str) -> list[str]:
    """Tokens of the function "module:name" in the module's file, without comments and line breaks.

    Raises: as source_of.
    """
    import ast
    import importlib.util
    import io
    import tokenize
    from pathlib import Path

    module, _, name = path.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    text = Path(spec.origin).read_text(encoding="utf-8")
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    function = next(functions, None)
    segment = None if function is None else ast.get_source_segment(text, function)
    if segment is None:
        raise LookupError(path)
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(segment).readline)
    return [token.string for token in tokens if token.type not in left_out]
