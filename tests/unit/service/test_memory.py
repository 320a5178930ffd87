"""What a serving process does to its memory before it serves."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from service import memory, single, threads
from service.settings import Settings
from service.signals import Signals


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


class Server:
    """One that is stopped as soon as it serves."""

    def __init__(self, settings: Settings, *, probes_socket: object) -> None:
        self.observer = self

    def look(self) -> None: ...

    def start(self, plans: object, *, stop_loading: object) -> dict[object, object]:
        self.models = [[number] for number in range(1000)]
        return {}

    def stop(self, *, wait: object) -> None:
        assert gc.get_freeze_count() > len(self.models)


def test_what_was_loaded_is_passed_over_by_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "Server", Server)
    monkeypatch.setattr(threads, "end_with_any", lambda: None)
    gc.unfreeze()

    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert single.serve(Settings(), signals, lambda server: ([], lambda refused: None)) == 0


def test_cycles_that_come_later_are_collected() -> None:
    memory.settle()
    cycle: list[object] = []
    cycle.append(cycle)
    frozen = gc.get_freeze_count()
    del cycle
    assert gc.collect() >= 1
    assert gc.get_freeze_count() == frozen
