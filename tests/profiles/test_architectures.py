"""Every compute capability that a card of the catalogue has is a table of architectures.toml."""

from __future__ import annotations

import pytest

from autoft.profiles.architectures import architecture, architectures
from autoft.profiles.gpu_catalogue import gpu_profiles


def test_every_card_of_the_catalogue_has_its_row() -> None:
    capabilities = {profile.compute_capability for profile in gpu_profiles().values()} - {None}
    assert capabilities <= architectures().keys()


def test_rows_come_by_age_and_share_kernels_with_a_row_that_shares_with_none() -> None:
    known = architectures()
    assert list(known) == sorted(known)
    for each in known.values():
        assert each.same_kernels is None or known[each.same_kernels].same_kernels is None


@pytest.mark.parametrize(
    ("capability", "taken"),
    [((8, 6), (8, 6)), ((8, 8), (8, 7)), ((12, 9), (12, 1)), ((99, 0), (12, 1)), ((3, 5), (5, 0))],
)
def test_a_capability_without_a_row_is_taken_for_the_newest_before_it(capability, taken) -> None:
    assert architecture(capability).capability == taken
