"""Rows from CSV and Parquet: one row a line, of the numeric columns, read piece by piece.

A missing value is an empty cell, NA, NaN or null. Shape legend: B rows, C columns.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.errors import DataError
from training.found import Classes, Found

LABEL = "label"  # the column that holds classes where none is named

_BATCH_ROWS = 65_536
_BLOCK_BYTES = 1 << 20
# A cell that is a number with a fraction, between semicolons, tabs, quotes or ends of a line.
_FRACTION = re.compile(rb"""(?<![^;\t\r\n" ])[-+]?\d+([.,])\d+(?:[eE][-+]?\d+)?(?![^;\t\r\n" ])""")

Values = npt.NDArray[np.float64]


class Table:
    """A CSV or Parquet file: its columns, which of them are numeric, and its rows in batches.

    Raises DataError that names the file, and the line or the column, where it is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        _require_pyarrow(path)
        self.path = path
        self.is_csv = path.suffix.lower() != ".parquet"
        self.delimiter, self.decimal_point = _marks(path) if self.is_csv else (",", ".")
        self.columns: tuple[str, ...] = ()
        schema = self._schema()
        self.columns = self._names(schema)
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise DataError(f"{path}: two columns are called {twice[0]!r}")
        if self.is_csv and all(_is_number(name) for name in self.columns):
            raise DataError(f"{path}: the first line must name the columns; got {', '.join(self.columns[:5])}")
        self.numeric = {name for name, kind in zip(self.columns, schema.types, strict=True) if _is_numeric(kind)}
        self.types = {name: str(kind) for name, kind in zip(self.columns, schema.types, strict=True)}

    def batches(self, columns: tuple[str, ...], label: str | None) -> Iterator[tuple[Values, list[str | None]]]:
        """Values [b, C], NaN where one is missing, and the labels' text [b]; all None without `label`."""
        done = 0
        wanted = [*columns, *([label] if label is not None and label not in columns else [])]
        for batch in self._record_batches(wanted, columns, label):
            values = np.stack([_floats(batch.column(name)) for name in columns], axis=1)
            self._require_in_range(values, columns, done)
            labels = batch.column(label).to_pylist() if label is not None else [None] * len(values)
            yield values, [None if name is None or name != name else str(name) for name in labels]
            done += len(values)

    def label(self, wanted: str | None, columns: tuple[str, ...] | None) -> str | None:
        """The column of classes: the wanted one, or the one of the usual name where it is not a value."""
        if wanted is None and LABEL in self.columns and LABEL not in (columns or ()):
            return LABEL
        return wanted

    def first_text(self, column: str) -> str:
        """What the first line holds there, for a message."""
        for batch in self._record_batches([column], ()):
            for value in batch.column(column).to_pylist():
                if value is not None:
                    return str(value)
        return ""

    def _schema(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            if self.is_csv:
                with self._open_csv(None, (), None) as reader:
                    return reader.schema
            return parquet.read_schema(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._failure(error, []) from error

    def _names(self, schema: Any) -> tuple[str, ...]:
        try:
            return tuple(schema.names)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: the names of its columns are not UTF-8") from error

    def _record_batches(self, wanted: list[str], numbers: tuple[str, ...], label: str | None = None) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            if self.is_csv:
                with self._open_csv(wanted, numbers, label) as reader:
                    yield from reader
            else:
                with parquet.ParquetFile(self.path) as file:
                    yield from file.iter_batches(_BATCH_ROWS, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise self._failure(error, wanted) from error

    def _open_csv(self, wanted: list[str] | None, numbers: tuple[str, ...], label: str | None) -> Any:
        import pyarrow as pa
        import pyarrow.csv as csv

        # What follows the first block may have other numbers than that, but must be numbers; labels are any text.
        kinds = {name: pa.float64() for name in numbers if self.types[name] != "bool"}
        if label is not None:
            kinds[label] = pa.string()
        return csv.open_csv(
            self.path,
            # One thread: only then do errors name the line.
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            # Of one column, an empty line is an empty cell.
            parse_options=csv.ParseOptions(delimiter=self.delimiter, ignore_empty_lines=len(self.columns) != 1),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                column_types=kinds,
                strings_can_be_null=True,
                decimal_point=self.decimal_point,
            ),
        )

    def _failure(self, error: Exception, wanted: list[str]) -> DataError:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        value = re.search(r"In CSV column #(\d+): (?:Row #(\d+): )?.*invalid value '(.*)'", text)
        if value and int(value[1]) < len(wanted):
            line = f"line {value[2]}: " if value[2] else ""
            name = wanted[int(value[1])]
            return DataError(f"{self.path}: {line}column {name!r} holds {value[3]!r}, which is not a number")
        return DataError(f"{self.path}: cannot be read: {text.replace('Row #', 'line ')}")

    def _require_in_range(self, values: npt.NDArray[np.float64], columns: tuple[str, ...], done: int) -> None:
        beyond = np.abs(values) > np.finfo(np.float32).max
        if beyond.any():
            row, column = (int(index) for index in np.argwhere(beyond)[0])
            raise DataError(
                f"{self.path}: row {done + row + 1} under the header: column {columns[column]!r} holds "
                f"{values[row, column]}, which is not a finite number of single precision"
            )


def read_table(path: Path, columns: tuple[str, ...] | None, label: str | None, *, keep_incomplete: bool) -> Found:
    """Rows [B, C] of the columns, all but the label where none are given.

    A row with a missing value is left out, and counted; it is kept, with NaN, where `keep_incomplete`.
    """
    table = Table(path)
    label = table.label(label, columns)
    chosen = columns if columns is not None else tuple(name for name in table.columns if name != label)
    _require_columns(table, chosen, label)
    classes = Classes()
    row_count = incomplete = 0
    holes = np.zeros(len(chosen), dtype=np.int64)

    def complete() -> Iterator[Values]:
        nonlocal row_count, incomplete
        for values, labels in table.batches(chosen, label):
            if label is not None:
                values[[name is None for name in labels]] = np.nan
            missing = np.isnan(values)
            holes[:] += missing.sum(axis=0)
            whole = ~missing.any(axis=1)
            row_count += len(values)
            incomplete += int((~whole).sum())
            kept = np.ones_like(whole) if keep_incomplete else whole
            if label is not None:
                classes.add([labels[index] for index in np.flatnonzero(kept)])
            yield values[kept]

    rows = storage.gather(complete(), (len(chosen),), np.float32)
    if incomplete == row_count:
        worst = f"; column {chosen[int(holes.argmax())]!r} lacks the most values" if incomplete else ""
        raise DataError(f"{path}: has no row in which every column has a value{worst}")
    labels, names = classes.numbered() if label is not None else (None, ())
    if len(names) > max(100, len(rows) // 10):
        raise DataError(
            f"{path}: column {label!r} has {len(names)} different values in {len(rows)} rows, too many for classes; "
            "name another column as data.label"
        )
    return Found(path=path, rows=rows, labels=labels, columns=chosen, classes=names, incomplete_rows=incomplete)


def _require_columns(table: Table, chosen: tuple[str, ...], label: str | None) -> None:
    for name in (*chosen, *([label] if label is not None else [])):
        if name not in table.columns:
            raise DataError(f"{table.path}: has no column {name!r}; it has {', '.join(table.columns)}")
    for name in chosen:
        if chosen.count(name) > 1:
            raise DataError(f"{table.path}: data.columns names {name!r} twice")
        if name not in table.numeric:
            raise DataError(
                f"{table.path}: column {name!r} holds {table.types[name]}, such as {table.first_text(name)!r}, and not "
                "numbers; name the columns to take as data.columns (`inspect --write` writes them)"
            )
    if not chosen:
        raise DataError(f"{table.path}: has no column beside the label {label!r}")
    if label is not None and label in chosen:
        raise DataError(f"{table.path}: column {label!r} is the label and cannot be one of data.columns too")


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: tables need pyarrow: pip install 'hourglass[data]'") from error


def _marks(path: Path) -> tuple[str, str]:
    """What separates cells: comma, semicolon or tab, whichever the first line has most of; and the decimal point: a
    comma where it does not separate and the first rows have numbers with one, and none with a point.

    Raises DataError for UTF-16, by its mark.
    """
    try:
        with open(path, "rb") as file:
            head = file.readline(_BLOCK_BYTES)
            rows = file.read(_BLOCK_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16, and must be UTF-8; `iconv -f UTF-16 -t UTF-8` makes it so")
    delimiter = max(",;\t", key=lambda mark: head.count(mark.encode()))
    points = {match[1] for match in _FRACTION.finditer(rows)} if delimiter != "," else set()
    return delimiter, "," if points == {b","} else "."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_numeric(kind: Any) -> bool:
    import pyarrow.types as types

    # A column of missing values only has no type of its own.
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def _floats(column: Any) -> npt.NDArray[np.float64]:
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    # Whole numbers beyond 2**53 are rounded.
    values: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values
