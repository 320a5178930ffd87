"""Reading files of a models directory, which may be anything, and directories that only we may write to."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from service.errors import PackageError


def read(directory: Path, name: str, limit_bytes: int) -> bytes:
    """Raises PackageError where there is no regular file of at most so many bytes."""
    # No symbolic link: a package must not reach outside its directory. No blocking on a pipe or a device.
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageError(name, f"cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PackageError(name, "is not a regular file")
        if status.st_size > limit_bytes:
            raise PackageError(name, f"has {status.st_size} bytes, more than the {limit_bytes} allowed")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(limit_bytes)
    finally:
        os.close(descriptor)


def own_directory(folder: Path) -> Path:
    """The directory, made where it is not there, for what is to be trusted when it is read again.

    Raises OSError, also where another could have put something there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(errno.EPERM, "must be a directory of this user that no other can write to", str(folder))
    return folder
