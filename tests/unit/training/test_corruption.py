"""Corruption hits the share of elements that it says, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import corruption, recipes

ROWS = 0.05 + 0.9 * torch.rand(200, 20, 20, generator=torch.Generator().manual_seed(0))
levels = st.floats(0.02, 0.95)
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(levels, seeds)
def test_masking_sets_its_share_to_zero_and_does_not_rescale_the_rest(level: float, seed: int) -> None:
    got = corruption.masking(ROWS, level, generator(seed))
    hit = got == 0
    assert hit.float().mean().item() == pytest.approx(level, abs=0.01)
    assert torch.equal(got[~hit], ROWS[~hit])


@settings(max_examples=20, deadline=None)
@given(levels, seeds)
def test_salt_and_pepper_sets_half_of_its_share_to_each(level: float, seed: int) -> None:
    got = corruption.salt_and_pepper(ROWS, level, generator(seed))
    salt, pepper = got == 1, got == 0
    assert salt.float().mean().item() == pytest.approx(level / 2, abs=0.01)
    assert pepper.float().mean().item() == pytest.approx(level / 2, abs=0.01)
    untouched = ~(salt | pepper)
    assert torch.equal(got[untouched], ROWS[untouched])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 2.0), seeds)
def test_gaussian_noise_stays_in_the_range_of_pictures(level: float, seed: int) -> None:
    got = corruption.gaussian(ROWS, level, generator(seed))
    assert got.min() >= 0
    assert got.max() <= 1


def test_gaussian_noise_has_its_standard_deviation_where_nothing_is_clipped() -> None:
    grey = torch.full((200, 400), 0.5)
    noise = corruption.gaussian(grey, 0.05, generator(0)) - grey
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(
    "table",
    [
        recipes.Masking(kind="masking", level=0.3),
        recipes.Gaussian(kind="gaussian", level=0.5),
        recipes.SaltAndPepper(kind="salt-and-pepper", level=0.3),
    ],
)
def test_every_batch_gets_fresh_noise_and_the_clean_rows_stay_clean(table: recipes.Corruption) -> None:
    before = ROWS.clone()
    noise = generator(0)
    first, second = corruption.corrupt(table, ROWS, noise), corruption.corrupt(table, ROWS, noise)
    assert not torch.equal(first, second)
    assert torch.equal(ROWS, before)
    assert torch.equal(first, corruption.corrupt(table, ROWS, generator(0)))


def test_no_corruption_leaves_rows_as_they_are() -> None:
    assert corruption.corrupt(recipes.NoCorruption(kind="none"), ROWS, generator(0)) is ROWS
