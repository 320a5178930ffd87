"""Signals are neither lost nor a deadlock, whenever they come."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from service.signals import Signals

ROUNDS = 3000


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Threads that take the interpreter away from the main thread at every bytecode."""
    ended = threading.Event()

    def burn() -> None:
        while not ended.is_set():
            pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=burn) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_interpreter")
def test_a_signal_that_comes_just_as_the_main_thread_waits_is_not_lost() -> None:
    with Signals() as signals:
        for _ in range(ROUNDS):
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
            sender.start()
            assert signals.wait(30.0) == signal.SIGTERM
            sender.join()
        assert not signals.pending()


def test_every_signal_is_waited_for_once_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert not signals.pending()
        assert signals.wait(0.0) is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.pending()
        assert [signals.wait(0.0), signals.wait(0.0), signals.wait(0.0)] == [signal.SIGTERM, signal.SIGINT, None]
    assert signal.getsignal(signal.SIGINT) is before


def test_sigusr1_is_acted_upon_and_stops_nothing() -> None:
    toggles: list[None] = []
    with Signals() as signals:
        signals.on_toggle = lambda: toggles.append(None)
        signal.raise_signal(signal.SIGUSR1)
        assert not signals.pending()
        assert len(toggles) == 1
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert signals.wait(30.0) == signal.SIGTERM
        assert signals.wait(0.0) is None
        assert len(toggles) == 3


def test_a_wait_goes_on_after_sigusr1_until_its_time_is_up() -> None:
    with Signals() as signals:
        sender = threading.Timer(0.01, os.kill, args=(os.getpid(), signal.SIGUSR1))
        signals.on_toggle = lambda: signal.raise_signal(signal.SIGTERM)
        sender.start()
        assert signals.wait(30.0) == signal.SIGTERM
        sender.join()
