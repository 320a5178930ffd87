"""The answers of one turn of the loop to one connection leave it together.

grpc writes each answer by a call of its own into the kernel, which sends it on at once and wakes who waits for it: of a
small answer that is a good part of the cost. A corked connection (Linux, tcp(7), TCP_CORK) keeps what is written until
it is uncorked. One that waits for a single answer is not corked, and pays nothing.
"""

from __future__ import annotations

import ctypes
import socket
import sys
import time

from service import connections

# How often the connections are looked for, where one is not known.
_LOOK_S = 1.0
# With more of them few have several answers in one turn, and a look would take as long as thousands of answers.
_MOST_FILES = 1024
# Larger answers are not kept for those that come after: the call into the kernel is little of what they cost.
_SMALL_BYTES = 16384
_ON, _OFF = ctypes.byref(ctypes.c_int(1)), ctypes.byref(ctypes.c_int(0))
_SIZE = ctypes.sizeof(ctypes.c_int)


class Corks:
    """For one thread. `port`: whose connections these are; 0 for none. `corked`: connections that keep what is written,
    for the `release` that is to come soon after."""

    def __init__(self) -> None:
        self.port = 0
        # By the caller, as grpc names him: the number of grpc's own file, where it is known.
        self.corked: dict[str, int | None] = {}
        # It may close one at any time, after which another file may have its number: what is corked by mistake is
        # uncorked soon. None is held open here.
        self._files: dict[str, int] = {}
        self._look_at = 0.0
        self._owed: dict[str, int] = {}

    def owes(self, caller: str) -> None:
        """There is one more answer that the caller is to get."""
        self._owed[caller] = self._owed.get(caller, 0) + 1

    def sends(self, caller: str, size_bytes: int) -> None:
        """One of them is about to be written."""
        left = self._owed.pop(caller, 1) - 1
        if left:
            self._owed[caller] = left
        if size_bytes > _SMALL_BYTES:
            if (file := self.corked.pop(caller, None)) is not None:
                _cork(file, _OFF)
        elif left and caller not in self.corked:
            file = self.corked[caller] = self._file(caller)
            if file is not None and not _cork(file, _ON):
                self._files.pop(caller, None)

    def release(self) -> None:
        """Have what was written sent."""
        for file in self.corked.values():
            if file is not None:
                _cork(file, _OFF)
        self.corked.clear()

    def _file(self, caller: str) -> int | None:
        file = self._files.get(caller)
        if file is None and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_S
            try:
                self._files = connections.files(self.port, most_files=_MOST_FILES)
            except (OSError, MemoryError):  # an answer goes out without it too
                self._files = {}
            file = self._files.get(caller)
        return file


def _cork(file: int, value: object) -> bool:
    """False where it is no connection any more. Not by a `socket.socket`, which would close grpc's file with itself."""
    return bool(_setsockopt(file, socket.IPPROTO_TCP, _TCP_CORK, value, _SIZE) == 0)


if sys.platform == "linux":
    _setsockopt, _TCP_CORK = ctypes.CDLL(None).setsockopt, socket.TCP_CORK
else:
    _setsockopt, _TCP_CORK = (lambda *arguments: -1), 0
