"""The .npy files of the command line: mapped, not loaded, and never left half written."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from hourglass.tensors import Array


class CommandError(Exception):
    """What the user of a command has to change."""


def said(error: Exception) -> str:
    """What a command says of an error: one line, with the file of an OSError."""
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def needs_extra(name: str) -> str:
    return f"{name} is not installed; the command line needs: pip install 'hourglass-client[cli]'"


def read_rows(path: Path) -> Array:
    """The rows of a .npy file, which are read as they are used."""
    with path.open("rb"):
        pass  # An OSError that names the file, before numpy's own.
    try:
        rows: Array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises what its reader of headers raises, a tokenizer's errors among them
        raise CommandError(f"{path}: must be a .npy file of numbers with at least one row; {error}") from error
    if rows.ndim < 2:
        raise CommandError(f"{path}: the first dimension counts rows, the others are the row; got {rows.shape}")
    if rows.size == 0:
        raise CommandError(f"{path}: must have at least one row and no empty dimension; got {rows.shape}")
    return rows


def require_suffix(path: Path, suffix: str) -> None:
    """Raises CommandError for a name that would promise another format than the one that is written."""
    if path.suffix.lower() != suffix:
        raise CommandError(f"{path}: the name must end in {suffix}, which is what is written")


def require_other(source: Path, target: Path) -> None:
    """Raises CommandError where what is read would be replaced by what comes of it."""
    if target.exists() and target.samefile(source):
        raise CommandError(f"{target}: is what is read; write elsewhere, and nothing is lost")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, and goes away where there is an error."""
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no such directory")
    if path.is_dir():
        raise CommandError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: is a device or a pipe; only a file can be replaced")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # Made here and now, so that a link of the same name, which somebody left in a shared directory, is not followed.
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def writing_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Array]:
    """An array that is the content of a new .npy file."""
    with replacing(path) as temporary:
        out: Any = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        yield out
        out.flush()
