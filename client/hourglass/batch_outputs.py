"""What a batch job writes: a .npy or a Parquet file, by pieces in any order, of which none is lost to a kill.

Beside OUTPUT lies the folder OUTPUT.work until the job is done: `job.json`, which says what is being made, and the
pieces that are there. A piece counts once it is on the disk; the output appears whole, at the end.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hourglass.batch_inputs import Source, require_pyarrow
from hourglass.files import CommandError
from hourglass.tensors import Array

_JOB = "job.json"
_PUBLISHED = "published"
# Numbers, from 1 on, that others ask a job for.
_FACTS = ("version", "rows", "piece_rows")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One result of a row: its name, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Workspace:
    """The folder OUTPUT.work, for one process at a time. `job` says what is made there; a folder that says otherwise
    is refused: CommandError."""

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".work")
        if not output.parent.is_dir():
            raise CommandError(f"{output}: there is no such directory")
        # A kill at the very end may have left both.
        self.published = self._is_ours(output)
        if output.exists() and not self.published:
            raise CommandError(f"{output}: is there already; remove it or write elsewhere")
        self.folder.mkdir(exist_ok=True)
        try:
            import fcntl
        except ImportError as error:
            raise CommandError("hourglass batch needs a POSIX system, for its locks") from error
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise CommandError(f"{self.folder}: another process works there") from error
        try:
            self._claim(job)
        except BaseException:
            self.close()
            raise

    def _claim(self, job: dict[str, Any]) -> None:
        path = self.folder / _JOB
        if not path.exists():
            write_whole(path, json.dumps(job, indent=2).encode())
            return
        require_same(self.folder, read_job(path) or {}, job)

    @staticmethod
    def begun(output: Path) -> dict[str, Any] | None:
        """The job that was begun for `output`; None where there is none. Raises CommandError."""
        return read_job(output.with_name(output.name + ".work") / _JOB)

    def _is_ours(self, output: Path) -> bool:
        marker = self.folder / _PUBLISHED
        return output.exists() and marker.exists() and marker.read_text() == _identity(output)

    def publish(self, whole: Path) -> None:
        """Give a file of this folder the name of the output, and remove the folder. Raises CommandError where somebody
        else has made a file of that name meanwhile."""
        if self.output.exists():
            raise CommandError(
                f"{self.output}: somebody made this file meanwhile; move it away, and the same command ends the job"
            )
        write_whole(self.folder / _PUBLISHED, _identity(whole).encode())
        whole.replace(self.output)
        self.remove()

    def remove(self) -> None:
        """At once: half a workspace would not be one."""
        trash = self.folder.with_name(f".{self.folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        self.folder.rename(trash)
        shutil.rmtree(trash)

    def close(self) -> None:
        os.close(self._lock)


def _identity(path: Path) -> str:
    """What a file keeps when it is given another name in its file system, and no other has."""
    status = path.stat()
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def read_job(path: Path, *more_facts: str) -> dict[str, Any] | None:
    """What a job was begun as; None where there is none. Raises CommandError where it is damaged."""
    if not path.exists():
        return None
    try:
        job = json.loads(path.read_bytes())
        for name in (*_FACTS, *more_facts):
            if not (type(job[name]) is int and job[name] >= 1):
                raise ValueError(f"{name} is {job[name]!r}")
        if not isinstance(job["model"], str):
            raise ValueError(f"model is {job['model']!r}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CommandError(
            f"{path}: does not say what was begun there ({error!r}); remove {path.parent} and begin again"
        ) from error
    return job  # type: ignore[no-any-return]


def require_same(folder: Path, before: dict[str, Any], job: dict[str, Any]) -> None:
    """Raises CommandError where `folder` was begun as another job."""
    changed = [name for name in job if before.get(name) != job[name]]
    if changed:
        what = "; ".join(f"{name} was {before.get(name)}, now {job[name]}" for name in changed)
        raise CommandError(f"{folder}: was begun as another job ({what}); remove it or write elsewhere")


def write_whole(path: Path, content: bytes) -> None:
    """A file that is on the disk, and whole, once it has its name."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Sink(Protocol):
    @property
    def done(self) -> set[int]:
        """The pieces that are there."""

    def write(self, number: int, start: int, results: Sequence[Array], names: list[str] | None) -> None:
        """Keep a piece, whose first row is `start`: an array for each column. From any thread."""

    def finish(self) -> None:
        """All pieces are there: give the output its name, and remove the workspace."""


def open_sink(
    workspace: Workspace, columns: Sequence[Column], source: Source, *, first_row: int, about: dict[str, str]
) -> Sink:
    """For the results of `source`, whose first row is `first_row` of a larger one. `about` goes into the metadata of a
    Parquet file. Raises CommandError."""
    if workspace.output.suffix.lower() == ".npy":
        return _Npy(workspace, columns, source.row_count)
    return _Parquet(workspace, columns, first_row, about, named=source.names(0, 0) is not None)


def require_format(output: Path) -> None:
    suffix = output.suffix.lower()
    if suffix not in (".npy", ".parquet"):
        raise CommandError(f"{output}: the name must end in .npy or .parquet, which is what is written")
    if suffix == ".parquet":
        require_pyarrow()


class _Npy:
    """One array: the first column, or, where all are single numbers, all side by side. `done` has a byte for each
    piece."""

    def __init__(self, workspace: Workspace, columns: Sequence[Column], row_count: int) -> None:
        self._workspace = workspace
        self._numbers = not any(column.shape for column in columns)
        shape = (len(columns),) if self._numbers else columns[0].shape
        self._dtype = columns[0].dtype
        self._row_bytes = self._dtype.itemsize * math.prod(shape)
        self._rows, marks = workspace.folder / "rows.npy", workspace.folder / "done"
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self._dtype.str, "fortran_order": False, "shape": (row_count, *shape)}
        )
        self._offset = header.tell()
        self._marks = os.open(marks, os.O_RDWR | os.O_CREAT, 0o666)
        self.done = {number for number, mark in enumerate(marks.read_bytes()) if mark}
        if not workspace.published:
            self._file = os.open(self._rows, os.O_WRONLY | os.O_CREAT, 0o666)
            os.pwrite(self._file, header.getvalue(), 0)
            os.ftruncate(self._file, self._offset + row_count * self._row_bytes)

    def write(self, number: int, start: int, results: Sequence[Array], names: list[str] | None) -> None:
        rows = np.stack(results, axis=1) if self._numbers else results[0]
        content = np.ascontiguousarray(rows, self._dtype).data.cast("B")
        offset = self._offset + start * self._row_bytes
        while content:
            written = os.pwrite(self._file, content, offset)
            content, offset = content[written:], offset + written
        os.fdatasync(self._file)
        os.pwrite(self._marks, b"\1", number)
        self.done.add(number)

    def finish(self) -> None:
        os.close(self._marks)
        if self._workspace.published:
            self._workspace.remove()
        else:
            os.close(self._file)
            self._workspace.publish(self._rows)


class _Parquet:
    """A file for each piece, put together at the end, a row group a piece."""

    def __init__(
        self, workspace: Workspace, columns: Sequence[Column], first_row: int, about: dict[str, str], *, named: bool
    ) -> None:
        self._arrow = require_pyarrow()
        self._workspace = workspace
        self._columns = columns
        self._first_row = first_row
        self._about = about
        self._named = named
        self.done = {int(path.stem) for path in workspace.folder.glob("*.parquet") if path.stem.isdecimal()}

    def write(self, number: int, start: int, results: Sequence[Array], names: list[str] | None) -> None:
        buffer = self._arrow.BufferOutputStream()
        self._arrow.parquet.write_table(self._table(start, results, names), buffer)
        write_whole(self._workspace.folder / f"{number:09}.parquet", buffer.getvalue())
        self.done.add(number)

    def _table(self, start: int, results: Sequence[Array], names: list[str] | None) -> Any:
        arrow = self._arrow
        first, count = self._first_row + start, len(results[0])
        fields = {"row": arrow.array(np.arange(first, first + count))}
        if names is not None:
            # Names are bytes to Linux; Parquet has UTF-8.
            texts = [os.fsencode(name).decode(errors="backslashreplace") for name in names]
            fields["file"] = arrow.array(texts, arrow.string())
        for column, values in zip(self._columns, results, strict=True):
            flat = arrow.array(np.ascontiguousarray(values, column.dtype).ravel())
            size = math.prod(column.shape)
            fields[column.name] = arrow.FixedSizeListArray.from_arrays(flat, size) if column.shape else flat
        return arrow.table(fields).replace_schema_metadata(self._about)

    def finish(self) -> None:
        if self._workspace.published:
            self._workspace.remove()
            return
        parts = [self._workspace.folder / f"{number:09}.parquet" for number in sorted(self.done)]
        parquet = self._arrow.parquet
        whole = self._workspace.folder / "whole"
        nothing = self._table(0, [np.empty((0, *each.shape)) for each in self._columns], [] if self._named else None)
        with parquet.ParquetWriter(whole, nothing.schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part))
        self._workspace.publish(whole)
