"""Do tests leave the next one what it would find alone?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run in this process leaves: no GPU to be seen, another working folder. Gives the folder it came from."""
    before = Path.cwd()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    return before


@pytest.fixture(scope="module")
def keeps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFT_TESTED", "1")
        yield


def test_a_fixture_of_several_tests_leaves_nothing_behind(leaves: Path) -> None:
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "-1"
    assert Path.cwd() == leaves


@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("_", ["first", "second"])
def test_one_that_yields_says_itself_how_long(_: str) -> None:
    assert os.environ["AUTOFT_TESTED"] == "1"
