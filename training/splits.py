"""Which rows of one's own data are held out: at random, or, of a series, the last ones.

Shape legend: B rows, T steps, W steps of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import recipes, storage
from training.errors import DataError
from training.found import Found, Labelled

LEAST_ROWS = 10
# Of a large set no more rows are held out to choose by, and no more to judge by; of a series no more windows.
HELD_OUT_ROWS = 10_000

_TEST_SEED = 0  # test rows do not move with the recipe's seed

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    train: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True, kw_only=True)
class Starts:
    """The first steps of the windows of each part; `train_steps` steps at the beginning hold all that train."""

    train: Indices
    validation: Indices
    test: Indices
    train_steps: int


def at_random(found: Found, settings: recipes.Data, seed: int) -> Split:
    """Test rows are those of the file, or else drawn; validation rows are drawn by the seed. Raises DataError.

    Rows in memory are shuffled. Of large ones the held-out rows change places with the last ones, and the others stay
    in the file's order.
    """
    require_rows(found)
    part = _part_large if storage.is_large(found.rows.shape) else _part
    rest: Labelled = found
    test = found.test
    if test is None:
        rest, test = part(rest, settings.test_share, _TEST_SEED)
    train, validation = part(rest, settings.validation_share, seed)
    return Split(train=train, validation=validation, test=test)


def require_rows(found: Found) -> None:
    """Raises DataError where there are too few rows for three parts."""
    if len(found.rows) < LEAST_ROWS:
        raise DataError(f"{found.path}: must have at least {LEAST_ROWS} rows to train on; got {len(found.rows)}")


def by_time(path: Path, steps: Array, settings: recipes.Data, window: int) -> Starts:
    """Windows of steps [T, C]: the last steps' are to judge by, those before to choose by, the others to train on.

    No window reaches over the end of its part or holds a missing value. Raises DataError where a part has none.
    """
    test_steps = round(len(steps) * settings.test_share)
    validation_steps = round((len(steps) - test_steps) * settings.validation_share)
    train_steps = len(steps) - test_steps - validation_steps
    bad = np.concatenate([np.isnan(chunk).any(axis=1) for chunk in storage.chunks(steps)])
    bad_before = np.concatenate([[0], np.cumsum(bad, dtype=np.int32)])
    parts = []
    first = 0
    for name, length in (("train on", train_steps), ("choose by", validation_steps), ("judge by", test_steps)):
        starts = np.arange(first, first + length - window + 1, settings.stride, dtype=np.int64)
        starts = starts[bad_before[starts + window] == bad_before[starts]]
        least = LEAST_ROWS if first == 0 else 1
        if len(starts) < least:
            raise DataError(
                f"{path}: of its {len(steps)} steps, the {length} to {name} have {len(starts)} windows of {window} "
                f"steps without a missing value; they must have at least {least}"
            )
        parts.append(starts if first == 0 else starts[:: -(-len(starts) // HELD_OUT_ROWS)])
        first += length
    return Starts(train=parts[0], validation=parts[1], test=parts[2], train_steps=train_steps)


def _part(whole: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    order = np.random.default_rng(seed).permutation(len(whole.rows))
    held_out = max(1, round(len(order) * share))
    return _take(whole, order[held_out:]), _take(whole, order[:held_out])


def _part_large(whole: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    count = len(whole.rows)
    held_out = min(HELD_OUT_ROWS, max(1, round(count * share)))
    kept = count - held_out
    chosen = np.sort(np.random.default_rng(seed).choice(count, held_out, replace=False))
    early = chosen[chosen < kept]
    late = np.setdiff1d(np.arange(kept, count), chosen)
    for array in (whole.rows, whole.labels):
        if array is not None:
            array[early], array[late] = array[late], array[early]
    return _take(whole, slice(kept)), _take(whole, slice(kept, None))


def _take(whole: Labelled, index: Any) -> Labelled:
    return Labelled(rows=whole.rows[index], labels=None if whole.labels is None else whole.labels[index])
