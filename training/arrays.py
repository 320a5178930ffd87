"""Rows from .npy, which is mapped and not read, and from .npz. Nothing is ever unpickled.

Shape legend: B rows, D... the dimensions of a row.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.errors import DataError
from training.found import Found, Labelled, number_classes, require_finite

# A .npz cannot be mapped: it is held in memory whole.
MAX_NPZ_BYTES = 4 << 30

_ROWS = ("rows", "train_rows", "x_train", "images", "data", "x")
_LABELS = ("labels", "train_labels", "y_train", "label", "y")
_TEST_ROWS = ("test_rows", "x_test")
_TEST_LABELS = ("test_labels", "y_test")

Array = npt.NDArray[Any]


def read_npy(path: Path) -> Found:
    """A .npy of rows [B, D...]. Raises DataError that names the file, and the row where one holds NaN or infinity."""
    try:
        # Copy on write: rows may be moved within the mapping, and the file stays as it is.
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # what numpy and its header's tokenizer raise has no common base
        raise DataError(f"{path}: is not a .npy file of numbers: {error}") from error
    if not isinstance(rows, np.ndarray):
        raise DataError(f"{path}: is a .npz by its content; name it so")
    return Found(path=path, rows=_checked(path, rows), labels=None)


def read_npz(path: Path) -> Found:
    """A .npz that holds one array of rows, or several by the names in `docs/training.md`. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
        if unpacked_bytes > MAX_NPZ_BYTES:
            raise DataError(
                f"{path}: unpacks to {unpacked_bytes} bytes, more than {MAX_NPZ_BYTES}; save large arrays as .npy, "
                "which need not be unpacked"
            )
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files}
    except DataError:
        raise
    except Exception as error:  # what zipfile, zlib, numpy and its header's tokenizer raise has no common base
        raise DataError(f"{path}: is not a .npz of arrays of numbers: {error}") from error
    name = next((name for name in _ROWS if name in arrays), next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None:
        raise DataError(
            f"{path}: one of its arrays must be called {' or '.join(_ROWS)}; got {', '.join(sorted(arrays)) or 'none'}"
        )
    rows = _checked(path, arrays[name], name)
    names = _label_names(path, arrays, _LABELS, len(rows))
    labels, classes = (None, ()) if names is None else number_classes(names)
    test = None
    test_name = next((name for name in _TEST_ROWS if name in arrays), None)
    if test_name is not None:
        test_rows = _checked(path, arrays[test_name], test_name)
        if test_rows.shape[1:] != rows.shape[1:] or test_rows.dtype != rows.dtype:
            raise DataError(
                f"{path}: {test_name} must have the rows' shape and type, {list(rows.shape[1:])} {rows.dtype}; got "
                f"{list(test_rows.shape[1:])} {test_rows.dtype}"
            )
        test_names = _label_names(path, arrays, _TEST_LABELS, len(test_rows))
        others = sorted(set(test_names or ()) - set(classes))
        if (test_names is None) != (names is None) or others:
            raise DataError(
                f"{path}: the test labels must be of the training labels' classes, {', '.join(classes) or 'none'}; got "
                f"{', '.join(others) or 'none'}"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        test_labels = None if test_names is None else np.array([numbers[name] for name in test_names], dtype=np.int64)
        test = Labelled(rows=test_rows, labels=test_labels)
    return Found(path=path, rows=rows, labels=labels, classes=classes, test=test)


def _checked(path: Path, rows: Array, name: str = "") -> Array:
    what = name or "the array"
    if rows.dtype.kind not in "buif" or rows.dtype.itemsize > 8:
        raise DataError(f"{path}: {what} must hold numbers; got {rows.dtype}")
    if rows.ndim < 1 or 0 in rows.shape:
        raise DataError(f"{path}: {what} must be [rows, ...] with at least one element; got {list(rows.shape)}")
    done = 0
    for chunk in storage.chunks(rows):
        require_finite(path, chunk, what=f"{name}: row" if name else "row", first=done)
        done += len(chunk)
    return rows


def _label_names(path: Path, arrays: dict[str, Array], names: tuple[str, ...], count: int) -> list[str] | None:
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    labels = arrays[name]
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "buiU":
        raise DataError(
            f"{path}: {name} must be {count} whole numbers or names, one a row; got {list(labels.shape)} {labels.dtype}"
        )
    return [str(label) for label in labels.reshape(-1).tolist()]
