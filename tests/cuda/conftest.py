"""Cards that the stand-in of tests/standin plays. `make test-cuda` builds it; elsewhere these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cuda.card import STANDIN, Card, close_warm

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them at once where there is no stand-in."""
    if (STANDIN / "libstandin.so").exists():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no stand-in for CUDA here: make test-cuda builds it"))


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """End what `Card.warm` has started."""
    yield
    close_warm()


@pytest.fixture
def on_card(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Card]:
    """`on_card("t4", memory=8e9)("plan", ...)` runs a command on a described card; options as `Card` has them."""

    def describe(names: str, **options: Any) -> Card:
        return Card(names, tmp_path_factory.mktemp("card"), **options)

    return describe
