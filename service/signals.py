"""SIGTERM and SIGINT as something that can be waited for.

A Python handler runs only between bytecodes of the main thread. A signal that comes just before that thread blocks
waits with it, and a handler that sets a threading.Event deadlocks where it interrupts that event's own lock. So the
interpreter's C handler writes a byte into a socket, from whatever thread the signal found, and waiting is reading it.
"""

from __future__ import annotations

import select
import signal
import socket
from types import TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Catches SIGTERM and SIGINT while the block lasts. Of the main thread only."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def __enter__(self) -> Self:
        self._wakeup_fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd_before)
        self._read.close()
        self._write.close()

    def fileno(self) -> int:
        """Readable where a signal is pending: for a selector."""
        return self._read.fileno()

    def pending(self) -> bool:
        """Whether a signal has come that `wait` has not returned."""
        return bool(select.select([self._read], [], [], 0.0)[0])

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The number of the next signal; None where none came in `timeout_s` seconds. Without a time-out, for ever."""
        if not select.select([self._read], [], [], timeout_s)[0]:
            return None
        return self._read.recv(1)[0]
