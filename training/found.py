"""What a reader found in a file or a folder, before it is split, standardised or cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import DataError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Raw rows [B, D...], with the class number [B] of each where there are labels."""

    rows: npt.NDArray[Any]
    labels: Labels | None


@dataclass(frozen=True, kw_only=True)
class Found(Labelled):
    """Rows are numbers without NaN or infinity, uint8 of images; only in a table read to be cut into windows does NaN
    stand for a missing value."""

    path: Path
    test: Labelled | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    # Rows of the table that were left out because a value is missing.
    incomplete_rows: int = 0


class Classes:
    """Class numbers for names that come piece by piece: numbers count up by value, other names by the alphabet."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._parts: list[npt.NDArray[np.int32]] = []

    def add(self, names: Sequence[str | None]) -> None:
        """Names of further rows; None, of a row that is not used, becomes any class."""
        seen = self._seen
        self._parts.append(
            np.array([0 if name is None else seen.setdefault(name, len(seen)) for name in names], dtype=np.int32)
        )

    def numbered(self) -> tuple[Labels, tuple[str, ...]]:
        """The class number of every row, and the names by number."""
        names = sorted(self._seen, key=_order)
        number = np.zeros(max(1, len(names)), dtype=np.int64)
        for position, name in enumerate(names):
            number[self._seen[name]] = position
        return number[np.concatenate(self._parts)], tuple(names)


def number_classes(names: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    classes = Classes()
    classes.add(names)
    return classes.numbered()


def _order(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name


def require_finite(path: Path, rows: npt.NDArray[Any], *, what: str = "row", first: int = 0) -> None:
    """Raises DataError that names the file and the first row [B, D...] with NaN, infinity or what float32 cannot hold.

    Rows are counted from `first`.
    """
    if rows.dtype.kind != "f":
        return
    fits = np.abs(rows) <= np.finfo(np.float32).max
    if bool(fits.all()):
        return
    row = int(np.flatnonzero(~fits.reshape(len(rows), -1).all(axis=1))[0])
    value = rows[row][~fits[row]].flat[0]
    raise DataError(
        f"{path}: {what} {first + row} holds {value}; every value must be a finite number of single precision"
    )
