"""Which rows are held out where no others are given: the same ones every time, and never a copy of a trained one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from autoft.trainer.data.shape import Row, said_in


def row_key(row: Row) -> bytes:
    """16 bytes that rows share which say the same in the same turns, spaces and upper case aside."""
    turns = [("", row.text)] if row.text is not None else [(m["role"], said_in(m)) for m in row.messages]
    spoken = "\0".join(f"{role}\0{' '.join(text.split()).casefold()}" for role, text in turns)
    return hashlib.blake2b(spoken.encode(errors="surrogatepass"), digest_size=16).digest()


def heldout_keys(keys: Sequence[bytes], wanted: int) -> frozenset[bytes]:
    """The keys of the rows to hold out: together at most `wanted` rows and a tenth of all, the smallest keys first."""
    wanted = min(wanted, len(keys) // 10)
    chosen: list[bytes] = []
    if wanted:
        copies = Counter(keys)
        for key in sorted(copies):
            if copies[key] <= wanted:
                chosen.append(key)
                wanted -= copies[key]
    return frozenset(chosen)
