"""Rows that say the same: equal after normalising (a 64-bit hash), or nearly so (MinHash over pairs of words).

Near-duplicates by Broder's resemblance: of the pairs of neighbouring words that two rows have, the share that both
have. HASHES minima of random permutations estimate it with a standard error of sqrt(s (1 - s) / HASHES), 0.06 at 0.7;
rows that agree in one of BANDS bands of ROWS_A_BAND minima are compared, which two rows of resemblance s do with
probability 1 - (1 - s^4)^16: 0.988 at 0.7, 0.12 at 0.3. Source: Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3. A row costs 128 bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoft.trainer.data.check.text import visible

HASHES, BANDS = 64, 16
ROWS_A_BAND = HASHES // BANDS
ALIKE = 0.7  # the estimated resemblance from which rows count as near-duplicates
LEAST_PAIRS = 8  # of neighbouring words: below that a resemblance says nothing
# Pairs that more than this share of the first rows have (an instruction before every row, the form of every answer)
# say nothing about a row, and are left out of it
COMMON_SHARE, COMMON_ROWS = 0.2, 200
MOST_WORDS_KEPT = 200_000  # hashes of words, so that memory stays bounded

# Han, kana and Thai are written without spaces: there a character is a word
SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
WORD = re.compile(f"[{SPACELESS}]|[^\\W{SPACELESS}]+")
SPACES_FOR_SIGNS = str.maketrans({chr(code): " " for code in range(128) if not (chr(code).isalnum() or code == 95)})

Array = np.ndarray


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93))
# Multiplying by an odd number is a permutation of the 64-bit numbers; drawn by a hash, the same with any library
PERMUTATIONS = [np.uint64(_hash64(b"permutation %d" % number) | 1) for number in range(HASHES)]


def normalised(text: str) -> str:
    """Unicode NFKC, no case, no invisible characters, one blank for any white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = " ".join(text.casefold().split())
    return text if text.isprintable() else " ".join(visible(text).split())


def key_of(parts: Sequence[str]) -> int:
    """A 64-bit hash; among a million rows two that differ share one with probability 3e-8."""
    return _hash64("\0".join(parts).encode())


def words_of(text: str) -> list[str]:
    """The words of a normalised text."""
    return text.translate(SPACES_FOR_SIGNS).split() if text.isascii() else WORD.findall(text)


class Sketches:
    """What is kept of rows to find near-duplicates.

    common: pairs of words to leave out; None finds them in the first rows, if these are COMMON_ROWS or more.
    """

    def __init__(self, common: Array | None = None) -> None:
        self.common = common
        self._words = _WordHashes()
        self._minima: list[Array] = []
        self._bands: list[Array] = []
        self._comparable: list[Array] = []

    def add(self, rows: Sequence[list[str]]) -> None:
        """Rows as their words; those of one call are read together, a few thousand for speed."""
        pairs, counts = _pairs(rows, self._words)
        if self.common is None:
            self.common = _common(pairs, counts)
        if len(self.common):
            keep = ~np.isin(pairs, self.common)
            owner = np.repeat(np.arange(len(counts)), counts)[keep]
            pairs, counts = pairs[keep], np.bincount(owner, minlength=len(counts))
        comparable = counts >= LEAST_PAIRS
        minima = _minima(pairs[np.repeat(comparable, counts)], counts[comparable])
        kept = np.zeros((len(rows), HASHES), dtype=np.uint8)
        bands = np.zeros((len(rows), BANDS), dtype=np.uint32)
        kept[comparable] = (minima >> np.uint64(32)).astype(np.uint8)
        bands[comparable] = _bands(minima)
        self._minima.append(kept)
        self._bands.append(bands)
        self._comparable.append(comparable)

    def finish(self) -> Finished:
        """All that was added, in one."""
        return Finished(
            minima=np.concatenate([np.zeros((0, HASHES), np.uint8), *self._minima]),
            bands=np.concatenate([np.zeros((0, BANDS), np.uint32), *self._bands]),
            comparable=np.concatenate([np.zeros(0, bool), *self._comparable]),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """minima: uint8 [rows, HASHES]. bands: uint32 [rows, BANDS]. comparable: bool [rows], has enough words."""

    minima: Array
    bands: Array
    comparable: Array

    def resemblance(self, rows: Array, others: Array, theirs: Finished) -> Array:
        """float32 [pairs]: estimated for each of `rows` with the one of `others` in its place."""
        estimates = np.empty(len(rows), dtype=np.float32)
        for at in range(0, len(rows), 100_000):
            part = slice(at, at + 100_000)
            # beside the minima that agree, 1 of 256 agrees by chance
            agree = (self.minima[rows[part]] == theirs.minima[others[part]]).mean(axis=1, dtype=np.float32)
            estimates[part] = (agree - 1 / 256) / (1 - 1 / 256)
        return estimates


def first_equal(keys: Array) -> Array:
    """int64 [rows]: for each row the first that has the same key, itself if there is none before it."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])


def in_both(keys: Array, others: Array) -> Array:
    """int64 [rows]: for each row one of the others with the same key, -1 if there is none."""
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    at = np.searchsorted(ordered, keys)
    present = at < len(ordered)
    present[present] = ordered[at[present]] == keys[present]
    result = np.full(len(keys), -1)
    result[present] = order[at[present]]
    return result


def near_within(sketches: Finished, eligible: Array) -> tuple[Array, Array]:
    """For each eligible row an earlier eligible one that it resembles, -1 if none, and how much.

    Within a band only the first row with the same minima and the one just before are compared: linear, not quadratic.
    """
    nearest, likeness = _none(len(eligible))
    rows = np.flatnonzero(eligible & sketches.comparable)
    for band in range(BANDS):
        keys = sketches.bands[rows, band]
        order = np.argsort(keys, kind="stable")
        ordered, sorted_rows = keys[order], rows[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        starts = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(order)), 0))
        for other in (starts[again], again - 1):
            _keep_alike(nearest, likeness, sketches, sorted_rows[again], sketches, sorted_rows[other])
    return nearest, likeness


def near_between(sketches: Finished, eligible: Array, others: Finished) -> tuple[Array, Array]:
    """For each eligible row one of the others that it resembles, -1 if none, and how much."""
    nearest, likeness = _none(len(eligible))
    rows, theirs = np.flatnonzero(eligible & sketches.comparable), np.flatnonzero(others.comparable)
    for band in range(BANDS):
        keys, their_keys = sketches.bands[rows, band], others.bands[theirs, band]
        order = np.argsort(their_keys, kind="stable")
        ordered = their_keys[order]
        left, right = np.searchsorted(ordered, keys, "left"), np.searchsorted(ordered, keys, "right")
        met = np.flatnonzero(right > left)
        for other in (left[met], right[met] - 1):
            _keep_alike(nearest, likeness, sketches, rows[met], others, theirs[order[other]])
    return nearest, likeness


def _none(rows: int) -> tuple[Array, Array]:
    return np.full(rows, -1), np.zeros(rows, dtype=np.float32)


def _keep_alike(
    nearest: Array, likeness: Array, sketches: Finished, rows: Array, theirs: Finished, others: Array
) -> None:
    """Note, for the rows that resemble the other in their place by ALIKE and more than any before, which and how."""
    resemblance = sketches.resemblance(rows, others, theirs)
    better = (resemblance >= ALIKE) & (resemblance > likeness[rows])
    nearest[rows[better]], likeness[rows[better]] = others[better], resemblance[better]


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_WORDS_KEPT:
            self.clear()
        value = self[word] = _hash64(word.encode())
        return value


def _pairs(rows: Sequence[list[str]], hashes: _WordHashes) -> tuple[Array, Array]:
    """(hashes of the pairs of neighbouring words: uint64, row after row; how many each row has: int64)."""
    sizes = np.array([len(words) for words in rows], dtype=np.int64)
    hashed = map(hashes.__getitem__, itertools.chain.from_iterable(rows))
    words = np.fromiter(hashed, dtype=np.uint64, count=int(sizes.sum()))
    if not len(words):
        return words, sizes
    ends = np.cumsum(sizes)
    inside = np.ones(len(words), dtype=bool)
    inside[ends[sizes > 0] - 1] = False  # the last word of a row has none after it
    pairs = words[:-1] * MIX[0] + words[1:] * MIX[1]
    pairs ^= pairs >> np.uint64(29)
    pairs *= MIX[2]
    pairs ^= pairs >> np.uint64(32)
    return pairs[inside[:-1]], np.maximum(sizes - 1, 0)


def _common(pairs: Array, counts: Array) -> Array:
    """The pairs that more than COMMON_SHARE of the rows have."""
    if len(counts) < COMMON_ROWS:
        return np.zeros(0, dtype=np.uint64)
    owner = np.repeat(np.arange(len(counts)), counts)
    once = np.unique(np.stack([pairs, owner.astype(np.uint64)]), axis=1)[0]
    values, rows = np.unique(once, return_counts=True)
    return np.asarray(values[rows > COMMON_SHARE * len(counts)])


def _minima(pairs: Array, counts: Array) -> Array:
    """uint64 [rows, HASHES]: the least of each row's pairs under each permutation. counts: all above zero."""
    minima = np.empty((HASHES, len(counts)), dtype=np.uint64)
    if len(counts):
        starts = np.cumsum(counts) - counts
        for number, factor in enumerate(PERMUTATIONS):
            minima[number] = np.minimum.reduceat(pairs * factor, starts)
    return minima.T


def _bands(minima: Array) -> Array:
    """uint32 [rows, BANDS]: one hash for the minima of each band."""
    parts = minima.reshape(len(minima), BANDS, ROWS_A_BAND)
    key = np.zeros(parts.shape[:2], dtype=np.uint64)
    for part in range(ROWS_A_BAND):
        key = (key ^ parts[:, :, part]) * MIX[part % len(MIX)]
        key ^= key >> np.uint64(31)
    return (key >> np.uint64(32)).astype(np.uint32)
