"""Rows that do not fit in memory lie in a nameless file in `.data/`, which is mapped and goes with the process."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import DataError

# Rows that take more as float32 are mapped from a file and not held in memory.
LARGE_BYTES = 1 << 30
CHUNK_ELEMENTS = 1 << 20
FOLDER = Path(".data")

Array = npt.NDArray[Any]


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether float32 of that shape is too large for memory."""
    return 4 * math.prod(shape) > LARGE_BYTES


def chunks(rows: Array) -> Iterator[Array]:
    """Slices of rows [B, D...] of about a million elements."""
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(rows.shape[1:])))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def gather(parts: Iterable[Array], row_shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Parts [b, D...], however many come, as one array [B, D...]: in memory, or mapped where it is large.

    Raises DataError where the disk is full.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    row_count = 0
    with tempfile.TemporaryFile(dir=FOLDER) as file:
        try:
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype=dtype).data)
                row_count += len(part)
            file.flush()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise DataError(f"{FOLDER}: rows cannot be kept there while training: {reason}") from error
        shape = (row_count, *row_shape)
        if is_large(shape):
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
        file.seek(0)
        return np.fromfile(file, dtype=dtype).reshape(shape)
