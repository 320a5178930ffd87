"""One job over many processes that know nothing of each other: each makes a share of the pieces, a file of its own.

With `--shard INDEX/COUNT` OUTPUT is a folder: `_job.json`, which says what is being made and which whoever comes first
writes, and `part-INDEX-of-COUNT` of each share. By name the parts are in the order of the rows; those of Parquet read
as one table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hourglass import files
from hourglass.batch_inputs import Source, require_pyarrow
from hourglass.batch_outputs import read_job, require_format, require_same
from hourglass.files import CommandError
from hourglass.tensors import Array

_JOB = "_job.json"
_COPY_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Share `index` (from 0) of `count`: consecutive pieces, as many as the other shares have, or one less or more."""

    index: int
    count: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """For argparse."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise argparse.ArgumentTypeError(f"must be INDEX/COUNT with INDEX from 0 to COUNT - 1; got {text}")
        return cls(index=int(index), count=int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def pieces(self, piece_count: int) -> range:
        return range(self.index * piece_count // self.count, (self.index + 1) * piece_count // self.count)

    def rows(self, row_count: int, piece_rows: int) -> range:
        pieces = self.pieces(-(-row_count // piece_rows))
        return range(min(pieces.start * piece_rows, row_count), min(pieces.stop * piece_rows, row_count))

    def output(self, folder: Path) -> Path:
        return folder / f"part-{self.index:05}-of-{self.count:05}{folder.suffix.lower()}"


class Share:
    """The rows of a source that are a shard's. Their pieces and rows are counted from 0."""

    def __init__(self, source: Source, shard: Shard, piece_rows: int) -> None:
        self._source = source
        rows = shard.rows(source.row_count, piece_rows)
        self._skipped_pieces, self.first_row = rows.start // piece_rows, rows.start
        self.row_count, self.row_bytes, self.fingerprint = len(rows), source.row_bytes, source.fingerprint

    def pieces(self, piece_rows: int, wanted: list[bool]) -> Iterator[tuple[int, Array]]:
        skipped = self._skipped_pieces
        for number, rows in self._source.pieces(piece_rows, [False] * skipped + wanted):
            yield number - skipped, rows

    def names(self, start: int, stop: int) -> list[str] | None:
        return self._source.names(self.first_row + start, self.first_row + stop)

    def where(self, row: int) -> str:
        return self._source.where(self.first_row + row)


def begun(folder: Path) -> dict[str, Any] | None:
    """The job that the shares in `folder` belong to; None where there is none yet. Raises CommandError."""
    return read_job(folder / _JOB, "shards")


def claim(folder: Path, job: dict[str, Any], shard: Shard) -> None:
    """Say what is made in `folder`. Raises CommandError where a share of another job was there first."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder}: is a file; with --shard it is a folder of parts")
    if not folder.parent.is_dir():
        raise CommandError(f"{folder}: there is no such directory")
    folder.mkdir(exist_ok=True)
    job = {**job, "shards": shard.count}
    temporary = folder / f"_{secrets.token_hex(8)}.new"
    temporary.write_text(json.dumps(job, indent=2))
    try:
        # Whole, and only where nobody was faster.
        os.link(temporary, folder / _JOB)
    except FileExistsError:
        require_same(folder, begun(folder) or {}, job)
    finally:
        temporary.unlink()


def join(arguments: argparse.Namespace) -> None:
    """`hourglass batch join`: the parts in INPUT, all of them and whole, to one file. Raises CommandError, OSError."""
    folder, output = arguments.source, arguments.target
    job = begun(folder)
    if job is None:
        raise CommandError(f"{folder}: is no folder that hourglass batch --shard has written, as it has no {_JOB}")
    require_format(output)
    if output.suffix.lower() != folder.suffix.lower():
        raise CommandError(f"{output}: the parts are {folder.suffix} files; parts and output are of one format")
    if output.exists():
        raise CommandError(f"{output}: is there already; remove it or write elsewhere")
    shards = [Shard(index=index, count=job["shards"]) for index in range(job["shards"])]
    missing = [str(each) for each in shards if not each.output(folder).exists()]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise CommandError(f"{folder}: {len(missing)} of {len(shards)} parts are missing; --shard makes them: {shown}")
    parts = [(each.output(folder), each.rows(job["rows"], job["piece_rows"])) for each in shards]
    (_join_npy if output.suffix.lower() == ".npy" else _join_parquet)(parts, output)
    print(f"{output}: {job['rows']} rows of {len(parts)} parts by {job['model']}/{job['version']}")


def _join_npy(parts: list[tuple[Path, range]], output: Path) -> None:
    arrays: list[Any] = [np.lib.format.open_memmap(path, mode="r") for path, _ in parts]
    first = arrays[0]
    for (path, rows), array in zip(parts, arrays, strict=True):
        _require(path, len(array), rows)
        if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
            raise CommandError(f"{path}: has rows of another kind than {parts[0][0].name}")
    shape = (sum(len(array) for array in arrays), *first.shape[1:])
    row_bytes = max(1, first.dtype.itemsize * math.prod(first.shape[1:]))
    step = max(1, _COPY_BYTES // row_bytes)
    with files.writing_rows(output, shape, first.dtype) as out:
        for (_, rows), array in zip(parts, arrays, strict=True):
            for start in range(0, len(array), step):
                piece = array[start : start + step]
                out[rows.start + start : rows.start + start + len(piece)] = piece


def _join_parquet(parts: list[tuple[Path, range]], output: Path) -> None:
    parquet = require_pyarrow().parquet
    schema = parquet.read_schema(parts[0][0])
    with files.replacing(output) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for path, rows in parts:
            with parquet.ParquetFile(path) as part:
                _require(path, part.metadata.num_rows, rows)
                if part.schema_arrow != schema:
                    raise CommandError(f"{path}: has other columns than {parts[0][0].name}")
                position = rows.start
                for group in range(part.num_row_groups):
                    table = part.read_row_group(group)
                    numbers = table["row"].to_numpy()
                    if not np.array_equal(numbers, np.arange(position, position + len(numbers))):
                        raise CommandError(f"{path}: column `row` is not {rows.start} to {rows.stop - 1} in order")
                    position += len(numbers)
                    writer.write_table(table)


def _require(path: Path, row_count: int, rows: range) -> None:
    if row_count != len(rows):
        raise CommandError(f"{path}: must have the {len(rows)} rows from {rows.start} on; it has {row_count}")
