"""Every error that a user can cause or meet. One class a cause, one exit code a class.

AutoftError                     1  it failed
├── InputError                  2  bad input: what, where, how to fix
│   ├── OptionError                an option or its value
│   ├── ModelError                 the model: missing, cut short, unsafe, cannot be used this way
│   │   └── HubError                   the hub does not give it: no network, no permission, no such name
│   ├── DataError                  the training data
│   ├── FileFormatError            a plan or profile file
│   └── OutputError                the output folder, or the disk it is on
├── DoesNotFit                  3  nothing fits this hardware
├── Interrupted                 130  stopped by the user, nothing to resume
├── Resumable                   4  stopped, and `autoft resume` takes it up again
└── TrainingError               1  training stopped for a reason worth telling
    └── OutOfMemory                for want of the device's memory
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What steers a terminal instead of showing in it: control characters, C1's among them, and changes of direction
_STEERING = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))}
_STEERING |= {number: f"\\u{number:04x}" for number in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_STEERING_LINES = {number: text for number, text in _STEERING.items() if chr(number) not in "\t\n"}


def harmless(text: str, *, one_line: bool = False) -> str:
    """Text for a terminal: what would steer it is shown as an escape. one_line: the ends of lines as well."""
    return text if text.isprintable() else text.translate(_STEERING if one_line else _STEERING_LINES)


def first_line(error: BaseException) -> str:
    """Of what an error says, at most 200 characters; the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class AutoftError(Exception):
    """`what` is one line that says what went wrong and where; `fix` says what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        what = harmless(self.what, one_line=True)
        return what if self.fix is None else f"{what}\nTo fix: {harmless(self.fix, one_line=True)}"


class InputError(AutoftError):
    exit_code = 2


class OptionError(InputError):
    pass


class ModelError(InputError):
    pass


class HubError(ModelError):
    pass


class DataError(InputError):
    pass


class FileFormatError(InputError):
    pass


class OutputError(InputError):
    pass


class DoesNotFit(AutoftError):  # noqa: N818 - reads as the sentence it is
    """details: the same for programs: the closest candidate, what it misses, the ways out."""

    exit_code = 3

    def __init__(self, what: str, *, fix: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(what, fix=fix)
        self.details = dict(details or {})


class Interrupted(AutoftError):  # noqa: N818
    exit_code = 130


class Resumable(AutoftError):  # noqa: N818
    exit_code = 4


class TrainingError(AutoftError):
    pass


class OutOfMemory(TrainingError):  # noqa: N818
    pass


def some(names: Sequence[str], at_most: int = 3) -> str:
    """ "a, b, c and 2 more"."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more:,} more" if more > 0 else "")


def near(name: str, known: Iterable[str]) -> str:
    """ " Did you mean a, b?" for the known names most like `name`, else an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
