"""A served model with a session and calls that the test holds by the hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from autoencoder.v1 import model_pb2
from service import packages, paths
from service.dispatcher import Result
from service.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    Retired,
    ServiceError,
    TooLarge,
    Unavailable,
    Unsupported,
)
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
        self.warmed: list[int] = []
        self.closed = 0

    def padded_rows(self, row_count: int) -> int:
        return row_count

    def encode(self, rows: Rows) -> Rows:
        if rows.any():  # no warm-up
            self.encoded.append(rows.copy())
            self.entered.release()
        else:
            self.warmed.append(len(rows))
        assert self.may_go.wait(WAIT_S)
        return tiny.encode(rows)

    def decode(self, latents: Rows) -> Rows:
        return tiny.decode(latents)

    def reconstruct(self, rows: Rows) -> Rows:
        return tiny.decode(tiny.encode(rows))

    def close(self) -> None:
        self.closed += 1


class FakeCall:
    grant = None
    observation = None

    def __init__(self, *, caller: str = "test", deadline: float = float("inf")) -> None:
        self.caller = caller
        self.deadline = deadline
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
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def model(session: FakeSession, registry: CollectorRegistry, tmp_path: Path) -> Iterator[ServedModel]:
    package = packages.read(tiny.write(tmp_path, denoises=False))
    session.may_go.set()
    subject = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=Metrics(registry))
    session.may_go.clear()
    yield subject
    session.may_go.set()
    subject.close()


def walk(steps: int) -> paths.Path:
    return paths.Path(method=paths.linear, weights=np.linspace(0, 1, steps, dtype=np.float32))


def test_reconstruction_errors_are_in_units_of_the_scale(
    session: FakeSession, registry: CollectorRegistry, tmp_path: Path
) -> None:
    manifest, scale = tiny.manifest(), np.geomspace(0.1, 100, tiny.ELEMENTS).astype(np.float32)
    manifest.row_scale.extend(scale.tolist())
    package = packages.read(packages.write(tmp_path, manifest, tiny.files()))
    session.may_go.set()
    model = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=Metrics(registry))
    try:
        rows, call = tiny.rows(5), FakeCall()
        model.reconstruct(rows, call, call.done)
        result = call.result()
    finally:
        model.close()
    assert isinstance(result, Result)
    again, errors = result.outputs
    difference = (again - rows).reshape(5, -1)
    np.testing.assert_allclose(errors, np.square(difference / scale).mean(1), rtol=1e-4)
    assert not np.allclose(errors, np.square(difference).mean(1), rtol=0.1)
    np.testing.assert_array_equal(again, session.reconstruct(rows))  # rows come back in their own units


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
        raise RuntimeError("on purpose")

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


def test_the_cost_of_finding_the_ends_is_part_of_it(model: ServedModel) -> None:
    call = FakeCall()
    before = Result(outputs=(), queue_s=100.0, compute_s=50.0, batch_rows=7)
    model.interpolate_latents(
        tiny.encode(tiny.rows(1)), tiny.encode(tiny.rows(1)), walk(2), call, call.done, before=before
    )
    outcome = call.result()
    assert isinstance(outcome, Result)
    assert 100 <= outcome.queue_s < 100 + WAIT_S
    assert 50 < outcome.compute_s < 50 + WAIT_S
    assert outcome.batch_rows == 7


def test_ends_of_different_types_are_scaled_each_by_its_own(model: ServedModel, session: FakeSession) -> None:
    session.may_go.set()
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    for start, end in ((pixels, tiny.rows(1)), (tiny.rows(1), pixels), (pixels, pixels), (tiny.rows(1), tiny.rows(1))):
        call = FakeCall()
        model.interpolate_rows(start, end, walk(2), call, call.done)
        outcome = call.result()
        assert isinstance(outcome, Result)
        expected = [end / np.float32(255) if end.dtype == np.uint8 else end for end in (start, end)]
        latents = np.stack([tiny.encode(end.astype(np.float32)) for end in expected], axis=1)
        np.testing.assert_allclose(outcome.outputs[1], latents, rtol=1e-5, atol=1e-6)


def test_as_many_points_as_the_queue_takes_are_answered(model: ServedModel, session: FakeSession) -> None:
    session.may_go.set()
    call = FakeCall()
    model.interpolate_rows(tiny.rows(4), tiny.rows(4), walk(8), call, call.done)
    assert isinstance(call.result(), Result)


def test_too_many_points_are_refused_before_anything_is_run(model: ServedModel, session: FakeSession) -> None:
    call = FakeCall()
    with pytest.raises(TooLarge, match="3 pairs with 11 points"):
        model.interpolate_rows(tiny.rows(3), tiny.rows(3), walk(11), call, call.done)
    assert not session.encoded
    assert call.outcome is None


@pytest.mark.parametrize("has", ["ENCODE", "DECODE"])
def test_what_a_model_has_not_is_refused(has: str, session: FakeSession, tmp_path: Path) -> None:
    manifest = tiny.manifest(denoises=False)
    del manifest.operations[:]
    manifest.operations.append(getattr(model_pb2, f"OPERATION_{has}"))
    package = packages.read(packages.write(tmp_path, manifest, tiny.files()))
    session.may_go.set()
    model = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=Metrics(CollectorRegistry()))
    rows, latents = tiny.rows(1), tiny.encode(tiny.rows(1))
    calls: dict[str, Callable[[FakeCall], None]] = {
        "encode": lambda call: model.encode(rows, call, call.done),
        "decode": lambda call: model.decode(latents, call, call.done),
        "reconstruct": lambda call: model.reconstruct(rows, call, call.done),
        "denoise": lambda call: model.denoise(rows, call, call.done),
        "interpolate": lambda call: model.interpolate_latents(latents, latents, walk(2), call, call.done),
    }
    for operation, ask in calls.items():
        call = FakeCall()
        if operation == has.lower():
            ask(call)
            assert isinstance(call.result(), Result)
        else:
            with pytest.raises(Unsupported, match=f"tiny version 1 has no {operation}; it has {has.lower()}"):
                ask(call)
            assert call.outcome is None
    model.close()


def test_a_call_whose_deadline_has_passed_is_never_run(model: ServedModel, session: FakeSession) -> None:
    session.may_go.set()
    late = FakeCall(deadline=0.0)
    model.encode(tiny.rows(1), late, late.done)
    assert isinstance(late.result(), DeadlineExceeded)
    assert not session.encoded


class FakeWork:
    """The transport's thread, which is the test's."""

    def __init__(self) -> None:
        self.step: Callable[[], bool] = lambda: False

    def schedule(self, step: Callable[[], bool]) -> None:
        self.step = step

    def schedule_idle(self, step: Callable[[], object]) -> None:
        raise AssertionError("there is no shadow here")


def test_one_row_of_another_caller_does_not_wait_for_all_the_rows_of_the_first(
    session: FakeSession, tmp_path: Path
) -> None:
    session.may_go.set()
    work = FakeWork()
    model = ServedModel(
        packages.read(tiny.write(tmp_path)),
        session,
        max_batch_rows=2,
        max_queue_rows=32,
        metrics=Metrics(CollectorRegistry()),
        work=work,
    )
    many, one = [FakeCall(caller="many") for _ in range(8)], FakeCall(caller="one")
    for call in many:
        model.encode(tiny.rows(2, seed=2), call, call.done)
    row = tiny.rows(1, seed=3)
    model.encode(row, one, one.done)
    work.step()
    assert isinstance(one.outcome, Result)
    assert (session.encoded[0] == row).all(axis=(1, 2)).any()
    while work.step():
        pass
    assert all(isinstance(call.outcome, Result) for call in many)
    model.close()


def test_short_batches_of_a_gpu_are_run_in_the_transports_thread_too(session: FakeSession, tmp_path: Path) -> None:
    session.may_go.set()
    session.on_gpu = True
    work = FakeWork()
    model = ServedModel(
        packages.read(tiny.write(tmp_path)),
        session,
        max_batch_rows=8,
        max_queue_rows=32,
        metrics=Metrics(CollectorRegistry()),
        work=work,
    )
    assert set(session.warmed) == {1, 2, 4, 8}, "every size that batches are padded to"
    assert not work.step(), "the thread was warmed"
    call = FakeCall()
    model.encode(tiny.rows(3), call, call.done)
    assert call.outcome is None
    work.step()
    assert isinstance(call.outcome, Result)
    model.close()


def test_a_model_that_retires_ends_what_is_under_way_in_both_halves_first(
    model: ServedModel, session: FakeSession
) -> None:
    """An interpolation is two jobs, the second of which begins when nothing new should."""
    call, late = FakeCall(), FakeCall()
    model.interpolate_rows(tiny.rows(1), tiny.rows(1, seed=1), walk(3), call, call.done)
    assert session.entered.acquire(timeout=WAIT_S)
    retired = threading.Thread(target=model.retire)
    retired.start()
    model.encode(tiny.rows(1), late, late.done)  # it had got hold of the model before the swap
    assert session.closed == 0
    session.may_go.set()
    assert isinstance(call.result(), Result)
    assert isinstance(late.result(), Result)
    retired.join(WAIT_S)
    assert session.closed == 1
    with pytest.raises(Retired):
        model.encode(tiny.rows(1), FakeCall(), late.done)
    model.retire()
    model.close()
    assert session.closed == 1


def test_an_interpolation_that_a_stop_cuts_in_two_may_be_sent_elsewhere(
    model: ServedModel, session: FakeSession
) -> None:
    call = FakeCall()
    model.interpolate_rows(tiny.rows(1), tiny.rows(1, seed=1), walk(3), call, call.done)
    assert session.entered.acquire(timeout=WAIT_S)
    closer = threading.Thread(target=model.close)
    closer.start()
    while not model._dispatcher._closed:
        threading.Event().wait(0.001)
    session.may_go.set()
    closer.join(WAIT_S)
    assert isinstance(call.result(), Unavailable)


def test_a_stop_does_not_wait_for_a_model_that_is_still_retiring(model: ServedModel, session: FakeSession) -> None:
    call = FakeCall()
    model.encode(tiny.rows(1), call, call.done)
    assert session.entered.acquire(timeout=WAIT_S)
    retired = threading.Thread(target=model.retire)
    retired.start()
    session.may_go.set()
    model.close()
    retired.join(WAIT_S)
    assert not retired.is_alive()
    assert isinstance(call.result(), Result)
    assert session.closed == 1


def test_rows_that_are_unlike_the_validation_rows_are_counted(
    model: ServedModel, session: FakeSession, registry: CollectorRegistry
) -> None:
    """The quantiles of the package are evenly spaced from 0 to 2, so that an error of 1.98 is the limit."""
    rows = tiny.rows(5)
    errors = ((session.reconstruct(rows) - rows) ** 2).mean(axis=(1, 2))
    wanted = np.array([0.1, 1.5, 1.9, 2.1, 30.0], np.float32)
    call = FakeCall()
    model.reconstruct(rows * np.sqrt(wanted / errors)[:, None, None], call, call.done)
    assert isinstance(call.result(), Result)
    labels = {"model": "tiny", "operation": "reconstruct"}
    assert registry.get_sample_value("autoencoder_novel_rows_total", labels) == 2
    assert registry.get_sample_value("autoencoder_reconstruction_error_count", labels) == 5
    assert registry.get_sample_value("autoencoder_reconstruction_error_sum", labels) == pytest.approx(
        wanted.sum(), rel=1e-3
    )


def test_the_largest_batch_is_run_before_the_model_is_there_and_closing_frees_the_session(
    model: ServedModel, session: FakeSession
) -> None:
    assert model.max_batch_rows == 8
    assert {1, 8} <= set(session.warmed)
    session.may_go.set()
    model.close()
    assert session.closed == 1


def test_errors_of_huge_rows_are_infinite_without_a_warning(tmp_path: Path) -> None:
    class Negating(FakeSession):
        def reconstruct(self, rows: Rows) -> Rows:
            return -rows

    session = Negating()
    session.may_go.set()
    package = packages.read(tiny.write(tmp_path))
    subject = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=Metrics(CollectorRegistry()))
    call = FakeCall()
    subject.reconstruct(np.full((1, *tiny.ROW_SHAPE), 3e38, np.float32), call, call.done)
    outcome = call.result()
    assert isinstance(outcome, Result), outcome
    assert np.isinf(outcome.outputs[1]).all()
    subject.close()
