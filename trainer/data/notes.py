"""What is to be said of how a row was read."""

from __future__ import annotations

OF_TURNS = "turns' "  # before the name of a field of turns that nothing is made of


class Notes:
    """What is to be said of how a row was read.

    remarks: sentences. unused: columns, and fields of turns as "turns' weight", that nothing is made of. left_out: why
    the row is not trained.
    """

    __slots__ = ("left_out", "remarks", "unused")

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.unused: list[str] = []
        self.left_out: str | None = None

    def remark(self, words: str) -> None:
        if words not in self.remarks:
            self.remarks.append(words)

    def unused_of_turns(self, name: str) -> None:
        name = f"{OF_TURNS}{name}"
        if name not in self.unused:
            self.unused.append(name)
