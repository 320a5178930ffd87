"""SIGTERM and SIGINT as something that can be waited for; other signals as something to do meanwhile.

A Python handler runs only between bytecodes of the main thread. A signal that comes just before that thread blocks
waits with it, and a handler that sets a threading.Event deadlocks where it interrupts that event's own lock. So the
interpreter's C handler writes a byte into a socket, from whatever thread the signal found, and waiting is reading it.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

STOPS = (signal.SIGTERM, signal.SIGINT)
TOGGLE = signal.SIGUSR1
SIGNALS = (*STOPS, TOGGLE)


class Signals:
    """Catches SIGTERM, SIGINT and SIGUSR1 while the block lasts. Of the main thread only.

    `on_toggle` is what SIGUSR1 does, called by whoever waits or asks whether a signal is pending.
    """

    def __init__(self) -> None:
        self.on_toggle: Callable[[], None] = lambda: None
        self._stops: deque[int] = deque()
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
        """Whether SIGTERM or SIGINT has come that `wait` has not returned."""
        self._receive(0.0)
        return bool(self._stops)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The number of the next SIGTERM or SIGINT; None where none came in `timeout_s` seconds. Without a time-out,
        for ever."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stops:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            if not self._receive(left_s) and left_s == 0.0:
                return None
        return self._stops.popleft()

    def _receive(self, timeout_s: float | None) -> bool:
        """Read what has come. False where nothing did."""
        if not select.select([self._read], [], [], timeout_s)[0]:
            return False
        for number in self._read.recv(4096):
            if number == TOGGLE:
                self.on_toggle()
            else:
                self._stops.append(number)
        return True
