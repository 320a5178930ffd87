"""Stopping on Ctrl-C and SIGTERM: first with grace, after the step that runs; the second time at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether somebody asked to stop, and by which signal."""

    signal_number: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal_number is not None


@contextmanager
def on_signals() -> Iterator[Stop]:
    """A Stop that the first Ctrl-C or SIGTERM sets. Signals reach the main thread only; elsewhere nothing is set."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        restore()  # the second signal does what it would have done without us

    for number in SIGNALS:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
