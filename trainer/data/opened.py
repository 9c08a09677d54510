"""What data is once it is opened: its splits, each of which starts being read when it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from autoft.errors import DataError
from autoft.trainer.data.files import Roles
from autoft.trainer.data.lines import RawRow

OnFault = Callable[[DataError], None]


class Start(Protocol):
    """Starts reading. Without on_fault, a line that is no row raises."""

    def __call__(self, *, on_fault: OnFault | None = None) -> Iterator[RawRow]: ...


@dataclass(frozen=True, slots=True)
class Data:
    """What a path stands for. train, heldout: start reading anew each time; heldout is None where no split is for that.

    roles: the splits that were found, by their names.
    """

    train: Start
    heldout: Start | None
    roles: Roles
