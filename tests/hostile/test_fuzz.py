"""Bytes by chance, and whole files with parts of them changed, as each kind of file that autoft reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.fuzz import TARGETS, seeds

EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=9), st.integers(0, 9)), max_size=4)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(content=st.binary(max_size=300))
def test_bytes_by_chance_are_refused(name: str, content: bytes) -> None:
    TARGETS[name](content)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(edits=EDITS)
def test_a_file_with_parts_changed_is_read_or_refused(name: str, edits: list[tuple[int, bytes, int]]) -> None:
    for content in seeds(name):
        for at, more, dropped in edits:
            place = at % (len(content) + 1)
            content = content[:place] + more + content[place + dropped :]
        TARGETS[name](content)
