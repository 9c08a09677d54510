"""Texts and names speak the field's language (tests/prose.py); what is left of older ones may only shrink."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.error_texts import LIST, error_texts, lines_of


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    path = Path(__file__).with_name("prose.py")
    spec = importlib.util.spec_from_file_location("prose", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_has_more_hits_than_its_baseline_and_the_baseline_is_up_to_date(prose: ModuleType) -> None:
    counts = {name: len(lines) for name, lines in prose.hits().items()}
    assert counts == prose.baseline(), f"more: rewrite them; fewer: {Path(sys.executable).name} tests/prose.py --write"


def test_banned_words_are_seen_in_texts_and_names_and_not_in_docstrings(prose: ModuleType) -> None:
    module = """def f():
    '''It tells.'''
    found = f"{1} is no plan"
    for asked in ("is no longer", "of which"):
        pass
"""
    assert sorted(prose.in_module(module)) == [(3, "found = "), (3, "is no"), (4, "asked = "), (4, "of which")]


def test_code_in_a_page_is_not_prose(prose: ModuleType) -> None:
    page = "```text\nplan anew\n```\nIt is `so many`.\nNobody tells.\n"
    assert list(prose.in_page(page)) == [(5, "Nobody"), (5, "tells")]


def test_the_list_of_errors_is_up_to_date() -> None:
    assert LIST.read_text(encoding="utf-8") == error_texts(), "read what changed: python tests/error_texts.py --write"


def test_the_list_of_errors_has_values_in_braces_and_the_fix_behind_an_arrow() -> None:
    module = "raise DataError(f'{path}: row {1}', fix='remove it' if one else 'add ' + other)"
    assert list(lines_of(module)) == ["  DataError: {path}: row {1}", "    -> {remove it | add {other}}"]
