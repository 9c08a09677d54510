"""Tests that are for a real card, run on a described one: with small results computed, they hold there too."""

from __future__ import annotations

import pytest

from tests.cuda.card import FUSED_HEAD, ROOT, TRITON


@pytest.mark.parametrize("card", ["t4", "a100"])
def test_the_tests_of_a_gpu_pass(on_card, card):
    done = pytest_on(on_card(card, truth=True, ignore=(TRITON, FUSED_HEAD)), "tests/gpu")
    assert done.code == 0, done.out[-4000:]
    assert " skipped" not in done.out.splitlines()[-1]


def test_the_faults_on_a_gpu_end_as_they_should(on_card):
    card = on_card("rtx3090", truth=True, ignore=(TRITON, FUSED_HEAD))
    done = pytest_on(card, "tests/faults/test_on_gpu.py")
    assert done.code == 0, done.out[-4000:]


def pytest_on(card, path):
    return card.python(
        "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", "--rootdir", ROOT, "-c",
        ROOT / "pyproject.toml", ROOT / path,
    )  # fmt: skip
