"""A real loaded model and real handlers, asked without a network in between.

Shape legend: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from service.calls import Method, perform
from service.devices import choose_device
from service.errors import Internal, ServiceError
from service.inference_protocol import InferenceProtocol
from service.metrics import Metrics
from service.plans import Plan
from service.repository import Repository
from service.servicer import Servicer
from service.statuses import of
from service.stores import Directory
from tests import tiny

MAX_POINTS, MAX_QUEUE_ROWS = 64, 512


class Work:
    """The transport's thread: what is scheduled is run by `drain`."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], bool]] = []

    def schedule(self, step: Callable[[], bool]) -> None:
        self._steps.append(step)

    def schedule_idle(self, step: Callable[[], object]) -> None:
        raise AssertionError("nothing here is for idle times")

    def drain(self) -> None:
        while self._steps:
            step = self._steps.pop()
            while step():
                pass


class Asked:
    """A call whose outcome is what the caller would get: a message as bytes, or an error."""

    caller = "fuzz"
    grant = None
    observation = None
    deadline = float("inf")

    def __init__(self) -> None:
        self.answered: bytes | None = None
        self.failed: ServiceError | None = None

    @property
    def over(self) -> bool:
        return self.answered is not None or self.failed is not None

    def on_cancel(self, callback: Callable[[], None]) -> None: ...

    def answer(self, build: Callable[[], Message]) -> None:
        assert not self.over, "answered twice"
        self.answered = build().SerializeToString()

    def fail(self, error: ServiceError) -> None:
        assert not self.over, "answered twice"
        assert not isinstance(error, Internal), error.text
        of(error)  # every error has a status
        # HTTP/2 headers of more than a few KB are refused by clients.
        assert len(error.text) < 1024, f"{len(error.text)} characters of text"
        self.failed = error


class Served:
    """The package `tiny` with the label `stable`, and both APIs on it."""

    def __init__(self, folder: Path) -> None:
        tiny.write(folder)
        self.work = Work()
        metrics = Metrics(CollectorRegistry())
        self.repository = Repository(
            store=Directory(folder),
            device=choose_device("cpu"),
            threads=1,
            max_batch_rows=64,
            max_queue_rows=MAX_QUEUE_ROWS,
            metrics=metrics,
            work=self.work,
        )
        plan = Plan(name="tiny", versions=(1,), labels={"stable": 1})
        refused = self.repository.load_all([plan], stop=lambda: False)
        assert not refused, refused
        points: dict[str, Any] = {"max_interpolation_points": MAX_POINTS, "metrics": metrics}
        self.native = Servicer(self.repository, **points).methods()
        self.inference = InferenceProtocol(self.repository, ready=lambda: True, **points).methods()

    def ask(self, method: Method[Any], *messages: bytes) -> list[Asked]:
        """What becomes of messages that come together; each must have been answered, once."""
        calls = [Asked() for _ in messages]
        for message, call in zip(messages, calls, strict=True):
            perform(method, message, call)
        self.work.drain()
        for call in calls:
            assert call.over, "not answered"
        return calls


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    subject = Served(folder)
    try:
        yield subject
        (card,) = subject.repository.all()
        assert card.name == "tiny", "the model is gone"
    finally:
        subject.repository.close()


def close(got: Any, expected: Any) -> None:
    """Whether an answer is right: as float32 it is, whatever overflows overflows in both."""
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(expected, np.float64), rtol=1e-3, atol=1e-4)
