"""A served model with a session and calls that the test holds by the hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from service import packages, paths
from service.dispatcher import Result
from service.errors import Cancelled, Internal, ServiceError, TooLarge, Unsupported
from service.metrics import Metrics
from service.model import ServedModel
from service.tensors import Rows
from tests import tiny

WAIT_S = 20.0


class FakeSession:
    """The tiny package's arithmetic; records encodes and holds them until `may_go`, which is set for the warm-up."""

    on_gpu = False

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.encoded: list[Rows] = []

    def padded_rows(self, row_count: int) -> int:
        return row_count

    def encode(self, rows: Rows) -> Rows:
        if rows.any():  # no warm-up
            self.encoded.append(rows.copy())
            self.entered.release()
        assert self.may_go.wait(WAIT_S)
        return tiny.encode(rows)

    def decode(self, latents: Rows) -> Rows:
        return tiny.decode(latents)

    def reconstruct(self, rows: Rows) -> Rows:
        return tiny.decode(tiny.encode(rows))

    def close(self) -> None:
        pass


class FakeCall:
    caller = "test"
    deadline = float("inf")

    def __init__(self) -> None:
        self.cancel: Callable[[], None] = lambda: None
        self.outcome: Result | ServiceError | None = None
        self._answered = threading.Event()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.cancel = callback

    def answer(self, build: Callable[[], Message]) -> None: ...

    def fail(self, error: ServiceError) -> None: ...

    def done(self, outcome: Result | ServiceError) -> None:
        assert self.outcome is None, "answered twice"
        self.outcome = outcome
        self._answered.set()

    def result(self) -> Result | ServiceError | None:
        assert self._answered.wait(WAIT_S)
        return self.outcome


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def model(session: FakeSession, tmp_path: Path) -> Iterator[ServedModel]:
    package = packages.read(tiny.write(tmp_path, denoises=False))
    session.may_go.set()
    subject = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=Metrics(CollectorRegistry()))
    session.may_go.clear()
    yield subject
    session.may_go.set()
    subject.close()


def walk(steps: int) -> paths.Path:
    return paths.Path(method=paths.linear, weights=np.linspace(0, 1, steps, dtype=np.float32))


def test_a_cancelled_call_is_answered_and_never_run(model: ServedModel, session: FakeSession) -> None:
    running, gone, stays = FakeCall(), FakeCall(), FakeCall()
    model.encode(tiny.rows(1, seed=1), running, running.done)
    assert session.entered.acquire(timeout=WAIT_S)
    secret = tiny.rows(1, seed=2)
    model.encode(secret, gone, gone.done)
    model.encode(tiny.rows(1, seed=3), stays, stays.done)
    gone.cancel()
    assert isinstance(gone.result(), Cancelled)
    session.may_go.set()
    assert isinstance(stays.result(), Result)
    assert not any((batch == secret).all(axis=(1, 2)).any() for batch in session.encoded)


def test_an_interpolation_can_be_cancelled_in_either_half(model: ServedModel, session: FakeSession) -> None:
    call = FakeCall()
    model.interpolate_rows(tiny.rows(1), tiny.rows(1), walk(3), call, call.done)
    assert session.entered.acquire(timeout=WAIT_S)
    call.cancel()
    assert isinstance(call.result(), Cancelled)
    session.may_go.set()
    after = FakeCall()
    model.interpolate_rows(tiny.rows(1), tiny.rows(1), walk(3), after, after.done)
    assert isinstance(after.result(), Result)
    after.cancel()


def test_a_path_that_fails_is_answered(model: ServedModel, session: FakeSession) -> None:
    def broken(start: Rows, end: Rows, weights: Rows) -> Rows:
        raise MemoryError("on purpose")

    session.may_go.set()
    call = FakeCall()
    path = paths.Path(method=broken, weights=np.zeros(2, np.float32))
    model.interpolate_rows(tiny.rows(1), tiny.rows(1), path, call, call.done)
    assert isinstance(call.result(), Internal)


def test_the_cost_of_an_interpolation_is_that_of_both_halves(model: ServedModel, session: FakeSession) -> None:
    session.may_go.set()
    call = FakeCall()
    model.interpolate_rows(tiny.rows(2), tiny.rows(2), walk(3), call, call.done)
    outcome = call.result()
    assert isinstance(outcome, Result)
    assert outcome.batch_rows == 6
    assert [output.shape for output in outcome.outputs] == [(2, 3, 4, 4), (2, 3, 3)]


def test_too_many_points_are_refused_before_anything_is_run(model: ServedModel, session: FakeSession) -> None:
    call = FakeCall()
    with pytest.raises(TooLarge, match="3 pairs with 11 points"):
        model.interpolate_rows(tiny.rows(3), tiny.rows(3), walk(11), call, call.done)
    assert not session.encoded
    assert call.outcome is None


def test_what_a_model_has_not_is_refused(model: ServedModel) -> None:
    call = FakeCall()
    with pytest.raises(Unsupported, match="tiny version 1 has no denoise"):
        model.denoise(tiny.rows(1), call, call.done)
