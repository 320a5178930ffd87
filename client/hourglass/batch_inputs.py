"""What a batch job reads: rows of a .npy file, a column of a Parquet file, or a folder of pictures, piece by piece.

No source holds more than a piece in memory, and each gives its rows in the same order every time.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hourglass import files, pictures
from hourglass.files import CommandError
from hourglass.results import Spec
from hourglass.tensors import Array

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# What is read of a Parquet file at a time, rather than a whole column of a row group.
_READ_BYTES = 1 << 20


class Source(Protocol):
    @property
    def row_count(self) -> int: ...

    @property
    def row_bytes(self) -> int:
        """About how much memory one row takes."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another; JSON."""

    def pieces(self, piece_rows: int, wanted: list[bool]) -> Iterator[tuple[int, Array]]:
        """Number and rows [up to piece_rows, ...row shape] of the pieces that are wanted, in order. Nothing is read of
        those after the last of `wanted`."""

    def names(self, start: int, stop: int) -> list[str] | None:
        """The files that the rows come from, where each comes from one."""

    def where(self, row: int) -> str:
        """Where a row is, for people."""


def open_source(path: Path, spec: Spec, *, column: str | None, resize: bool) -> Source:
    """The rows at `path` for a model that takes `spec`. Raises CommandError and OSError."""
    if path.is_dir():
        return _Folder(path, spec, resize=resize)
    if path.suffix.lower() == ".npy":
        return _Npy(path, spec)
    if path.suffix.lower() == ".parquet":
        return _Parquet(path, spec, column)
    raise CommandError(f"{path}: must be a .npy file, a .parquet file or a folder of pictures")


def require_pyarrow() -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise CommandError("pyarrow is not installed; Parquet needs: pip install 'hourglass-client[batch]'") from error
    return pyarrow


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


class _Npy:
    def __init__(self, path: Path, spec: Spec) -> None:
        rows: Any = files.read_rows(path)
        if rows.shape[1:] != spec.shape:
            raise CommandError(f"{path}: rows must have the shape {spec.shape}; got {rows.shape[1:]}")
        if rows.dtype.kind not in "fiub" or not rows.flags.c_contiguous:
            raise CommandError(f"{path}: must hold real numbers in C order; got {rows.dtype}")
        self.row_count = len(rows)
        self.row_bytes = max(1, rows.dtype.itemsize * math.prod(spec.shape))
        self.fingerprint = _stamp(path)
        self._path, self._dtype, self._shape, self._offset = path, rows.dtype, rows.shape[1:], rows.offset

    def pieces(self, piece_rows: int, wanted: list[bool]) -> Iterator[tuple[int, Array]]:
        # Read, not mapped: pages of a map count as memory of the process.
        with self._path.open("rb") as file:
            for number, want in enumerate(wanted):
                if want:
                    start = number * piece_rows
                    count = min(piece_rows, self.row_count - start)
                    file.seek(self._offset + start * self.row_bytes)
                    elements = np.fromfile(file, self._dtype, count * math.prod(self._shape))
                    yield number, elements.reshape(count, *self._shape)

    def names(self, start: int, stop: int) -> None:
        return None

    def where(self, row: int) -> str:
        return f"row {row} of {self._path}"


class _Parquet:
    """A column of lists of numbers, each the elements of one row."""

    def __init__(self, path: Path, spec: Spec, column: str | None) -> None:
        pyarrow = require_pyarrow()
        try:
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
        except pyarrow.ArrowInvalid as error:
            raise CommandError(f"{path}: is not a Parquet file; {error}") from error
        self._lengths, self._arrow_error = pyarrow.compute.list_value_length, pyarrow.ArrowException
        schema = self._file.schema_arrow
        lists = [field.name for field in schema if _is_list_of_numbers(pyarrow, field.type)]
        if column is None and len(lists) != 1:
            raise CommandError(f"--column: which column of {path} holds the rows? Lists of numbers: {lists or 'none'}")
        if column is not None and column not in lists:
            raise CommandError(f"--column: {path} has no column {column!r} of lists of numbers; it has {lists}")
        self._column = column or lists[0]
        self._path = path
        self._shape = spec.shape
        self.row_count = self._file.metadata.num_rows
        if self.row_count == 0:
            raise CommandError(f"{path}: must have at least one row")
        self.row_bytes = 8 * math.prod(spec.shape)
        self.fingerprint = _stamp(path) | {"column": self._column}

    def pieces(self, piece_rows: int, wanted: list[bool]) -> Iterator[tuple[int, Array]]:
        first = next((number for number, want in enumerate(wanted) if want), len(wanted))
        group, position = self._group_of(first * piece_rows)
        groups = range(group, self._file.metadata.num_row_groups if first < len(wanted) else group)
        batches = self._file.iter_batches(
            piece_rows, row_groups=list(groups), columns=[self._column], use_threads=False
        )
        waiting: list[Array] = []
        for batch in self._read(batches):
            rows = self._rows(batch.column(0), position)
            while len(rows):
                number = position // piece_rows
                if number == len(wanted):
                    return
                stop = min((number + 1) * piece_rows, self.row_count)
                taken, rows = rows[: stop - position], rows[stop - position :]
                position += len(taken)
                if wanted[number]:
                    waiting.append(taken)
                if position == stop and waiting:
                    yield number, waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                    waiting = []

    def names(self, start: int, stop: int) -> None:
        return None

    def where(self, row: int) -> str:
        return f"row {row} of {self._path}"

    def _read(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; of what breaks on the way, the file is told too."""
        try:
            yield from batches
        except (self._arrow_error, OSError) as error:
            raise CommandError(f"{self._path}: cannot be read to its end; {error}") from error

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds `row`, and its first row."""
        position = 0
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if position + rows > row:
                return group, position
            position += rows
        return metadata.num_row_groups, position

    def _rows(self, column: Any, position: int) -> Array:
        """Lists to rows [B, ...row shape]; `position` is that of the first."""
        elements = math.prod(self._shape)
        lengths = self._lengths(column).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~(lengths == elements))  # a list that is missing has the length NaN
        if len(wrong) or column.flatten().null_count:
            where = position + (int(wrong[0]) if len(wrong) else 0)
            raise CommandError(
                f"{self._path}: column {self._column!r} must have {elements} numbers in every row; "
                f"near row {where} it has not"
            )
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, *self._shape)  # type: ignore[no-any-return]


def _is_list_of_numbers(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))


class _Folder:
    """The pictures under a folder, by name."""

    def __init__(self, path: Path, spec: Spec, *, resize: bool) -> None:
        pictures.require()
        if not pictures.is_picture(spec):
            raise CommandError(f"{path}: the model does not take pictures, so that a folder of them is of no use")
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in _PICTURES and each.is_file())
        if not found:
            raise CommandError(f"{path}: holds no pictures ({', '.join(sorted(_PICTURES))})")
        self._folder, self._shape, self._resize = path, spec.shape, resize
        self._names = [str(each.relative_to(path)) for each in found]
        self.row_count = len(found)
        self.row_bytes = math.prod(spec.shape)
        digest = hashlib.sha256()
        for name, each in zip(self._names, found, strict=True):
            status = each.stat()
            digest.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        self.fingerprint = {"path": str(path.resolve()), "sha256": digest.hexdigest(), "resize": resize}

    def pieces(self, piece_rows: int, wanted: list[bool]) -> Iterator[tuple[int, Array]]:
        for number, want in enumerate(wanted):
            if want:
                names = self._names[number * piece_rows : (number + 1) * piece_rows]
                yield (
                    number,
                    np.stack([pictures.read(self._folder / n, self._shape, resize=self._resize) for n in names]),
                )

    def names(self, start: int, stop: int) -> list[str]:
        return self._names[start:stop]

    def where(self, row: int) -> str:
        return str(self._folder / self._names[row])
