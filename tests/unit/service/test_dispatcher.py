"""The dispatcher with real threads and a session that the test holds by the hand."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from service.dispatcher import Dispatcher, Job, Outputs, Result
from service.errors import Cancelled, DeadlineExceeded, Internal, Overloaded, Retired, ServiceError
from service.metrics import Metrics
from service.tensors import Array, Rows

WAIT_S = 20.0


@dataclass
class FakeProgram:
    """Doubles rows. Records each batch, can be held in the middle of a run, and fails on rows with -1."""

    row_shape: tuple[int, ...] = (2,)
    batches: list[Rows] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    may_go: threading.Event = field(default_factory=threading.Event)
    together: int = 0

    def run(self, rows: Rows, row_count: int) -> Outputs:
        self.together += 1
        assert self.together == 1, "one run at a time"
        self.batches.append(rows.copy())
        self.entered.release()
        assert self.may_go.wait(WAIT_S)
        self.together -= 1
        if (rows[:row_count] == -1).any():
            raise RuntimeError("broken on purpose")
        return (rows[:row_count] * 2,)


class Harness:
    def __init__(self, padded: bool = False) -> None:
        self.program = FakeProgram()
        self.registry = CollectorRegistry()
        self.dispatcher = Dispatcher(
            model="fake",
            programs={"double": self.program},
            padded_rows=(lambda count: 4 if count <= 4 else 8) if padded else (lambda count: count),
            max_batch_rows=8,
            max_queue_rows=32,
            metrics=Metrics(self.registry),
        )

    def submit(self, *values: float, deadline: float = math.inf, caller: str = "a") -> tuple[Job, Future[Result]]:
        job, future = self.prepared(*values, deadline=deadline, caller=caller)
        self.dispatcher.submit(job)
        return job, future

    def submit_rows(self, rows: Array, deadline: float = math.inf, caller: str = "a") -> tuple[Job, Future[Result]]:
        job, future = self._job(rows, deadline, caller)
        self.dispatcher.submit(job)
        return job, future

    def prepared(self, *values: float, deadline: float = math.inf, caller: str = "a") -> tuple[Job, Future[Result]]:
        """A job that is not submitted yet."""
        return self._job(np.array([[value, value + 0.5] for value in values], np.float32), deadline, caller)

    def _job(self, rows: Array, deadline: float, caller: str) -> tuple[Job, Future[Result]]:
        future: Future[Result] = Future()

        def done(outcome: Result | ServiceError) -> None:
            # set_* raises where a job is answered twice
            if isinstance(outcome, ServiceError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        job = Job(operation="double", row_count=len(rows), caller=caller, deadline=deadline, rows=rows, done=done)
        return job, future

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def harness() -> Iterator[Harness]:
    subject = Harness()
    yield subject
    subject.program.may_go.set()
    subject.dispatcher.close()


def test_rows_keep_their_order_and_their_owner(harness: Harness) -> None:
    harness.program.may_go.set()
    futures = [harness.submit(10.0 * number, 10.0 * number + 1, caller=str(number % 3))[1] for number in range(12)]
    for number, future in enumerate(futures):
        (doubled,) = future.result(WAIT_S).outputs
        np.testing.assert_array_equal(doubled[:, 0], [20.0 * number, 20.0 * number + 2])


def test_what_comes_while_a_batch_runs_is_run_together(harness: Harness) -> None:
    harness.submit(0.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    futures = [harness.submit(float(number))[1] for number in range(1, 6)]
    harness.program.may_go.set()
    assert {future.result(WAIT_S).batch_rows for future in futures} == {5}
    assert [len(batch) for batch in harness.program.batches] == [1, 5]


def test_a_split_request_comes_back_whole(harness: Harness) -> None:
    harness.program.may_go.set()
    _, future = harness.submit(*map(float, range(30)))
    result = future.result(WAIT_S)
    np.testing.assert_array_equal(result.outputs[0][:, 0], np.arange(30) * 2)
    assert result.batch_rows == 8
    assert result.compute_s > 0


def test_a_failed_batch_fails_only_its_own_requests_and_the_thread_lives(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.program.may_go.set()
    _, broken = harness.submit(-1.0)
    error = broken.exception(WAIT_S)
    assert isinstance(error, Internal)
    assert "broken on purpose" not in str(error), "callers do not see the cause"
    assert error.error_id in str(caplog.records[0].__dict__["error_id"])
    assert "broken on purpose" in caplog.text
    for number in range(6):
        assert harness.submit(float(number))[1].result(WAIT_S).outputs[0][0, 0] == 2 * number


def test_a_graph_that_loses_rows_is_an_error_not_a_short_answer(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(harness.program, "run", lambda rows, row_count: (rows[: row_count - 1],))
    assert isinstance(harness.submit(1.0, 2.0)[1].exception(WAIT_S), Internal)
    assert "2 rows went in, [1] came out" in caplog.text


def test_parts_that_cannot_be_joined_cost_their_request_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(parts: object) -> Outputs:
        raise MemoryError("on purpose")

    harness.program.may_go.set()
    with monkeypatch.context() as patch:
        patch.setattr("service.dispatcher._join", no_memory)
        error = harness.submit(*map(float, range(20)))[1].exception(WAIT_S)
        assert isinstance(error, Overloaded)
        assert error.reason == "NO_MEMORY"
    for _ in range(4):
        assert harness.submit(3.0)[1].result(WAIT_S).outputs[0][0, 0] == 6


def test_an_answer_that_fails_does_not_end_the_thread(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.program.may_go.set()

    def bad(outcome: Result | ServiceError) -> None:
        raise ValueError("a bad answer")

    for _ in range(4):
        rows = np.ones((1, 2), np.float32)
        harness.dispatcher.submit(
            Job(operation="double", row_count=1, caller="a", deadline=math.inf, rows=rows, done=bad)
        )
    assert harness.submit(3.0)[1].result(WAIT_S).outputs[0][0, 0] == 6
    assert "a bad answer" in caplog.text


def test_cancelled_rows_are_never_run(harness: Harness) -> None:
    _, running = harness.submit(1.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    gone, gone_future = harness.submit(666.0)
    _, stays = harness.submit(3.0)
    harness.dispatcher.cancel(gone)
    assert isinstance(gone_future.exception(0), Cancelled), "the caller's thread is free at once"
    harness.program.may_go.set()
    assert stays.result(WAIT_S).outputs[0][0, 0] == 6
    assert running.result(WAIT_S).outputs[0][0, 0] == 2
    assert not any((batch == 666.0).any() for batch in harness.program.batches)


def test_a_request_cancelled_in_mid_run_is_answered_once(harness: Harness) -> None:
    job, future = harness.submit(1.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    harness.dispatcher.cancel(job)
    harness.dispatcher.cancel(job)
    assert isinstance(future.exception(0), Cancelled)
    harness.program.may_go.set()
    assert harness.submit(2.0)[1].result(WAIT_S).outputs[0][0, 0] == 4


def prepare(harness: Harness, value: float) -> tuple[Job, Future[Result]]:
    """Submit a full batch while another runs, and wait until it has left the queue."""
    prepared = harness.submit(*[value] * 8)
    for _ in range(1000):
        if harness.dispatcher.queued_rows == 0:
            return prepared
        threading.Event().wait(0.005)
    raise AssertionError("a full batch must be prepared while another runs")


def test_a_prepared_batch_waits_for_its_turn(harness: Harness) -> None:
    harness.submit(1.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    _, prepared = prepare(harness, 5.0)
    assert not harness.program.entered.acquire(timeout=0.2), "one run at a time"
    harness.program.may_go.set()
    assert prepared.result(WAIT_S).batch_rows == 8


def test_a_prepared_batch_that_nobody_waits_for_is_not_run(harness: Harness) -> None:
    _, running = harness.submit(1.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    gone, _ = prepare(harness, 666.0)
    harness.dispatcher.cancel(gone)
    harness.program.may_go.set()
    assert running.result(WAIT_S)
    assert harness.submit(2.0)[1].result(WAIT_S)
    assert not any((batch == 666.0).any() for batch in harness.program.batches)


def test_expired_rows_never_reach_the_session(harness: Harness) -> None:
    harness.submit(1.0)
    assert harness.program.entered.acquire(timeout=WAIT_S)
    _, late = harness.submit(666.0, deadline=time.monotonic())
    harness.program.may_go.set()
    assert isinstance(late.exception(WAIT_S), DeadlineExceeded)
    assert not any((batch == 666.0).any() for batch in harness.program.batches)


def test_close_runs_what_waits_and_refuses_the_rest(harness: Harness) -> None:
    futures = [harness.submit(float(number))[1] for number in range(5)]
    assert harness.program.entered.acquire(timeout=WAIT_S)
    closer = threading.Thread(target=harness.dispatcher.close)
    closer.start()
    refused = None
    while refused is None:  # until close has got as far as refusing
        try:
            futures.append(harness.submit(9.0)[1])
        except Retired as error:
            refused = error
    harness.program.may_go.set()
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert all(future.result(0) for future in futures)


def test_batches_are_padded_and_the_padding_is_counted_and_cut_off() -> None:
    subject = Harness(padded=True)
    subject.program.may_go.set()
    try:
        result = subject.submit(1.0, 2.0, 3.0)[1].result(WAIT_S)
    finally:
        subject.dispatcher.close()
    assert result.outputs[0].shape == (3, 2)
    assert [len(batch) for batch in subject.program.batches] == [4]
    assert subject.value("autoencoder_batch_padding_rows_total", model="fake") == 1
    assert subject.value("autoencoder_batch_rows_sum", model="fake") == 3


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1.0), (np.float16, 1.0), (np.uint8, 1 / 255)])
def test_rows_are_converted_while_the_batch_is_assembled(harness: Harness, dtype: npt.DTypeLike, scale: float) -> None:
    harness.program.may_go.set()
    rows: Array = np.array([[0, 51], [102, 255]]).astype(dtype)
    result = harness.submit_rows(rows)[1].result(WAIT_S)
    np.testing.assert_allclose(result.outputs[0], rows.astype(np.float32) * (scale * 2), rtol=1e-6)


def test_every_phase_is_measured(harness: Harness) -> None:
    harness.program.may_go.set()
    harness.submit(1.0)[1].result(WAIT_S)
    harness.dispatcher.close()
    for phase in ("queue", "assemble", "compute", "respond"):
        labels = {"model": "fake", "operation": "double", "phase": phase}
        assert harness.value("autoencoder_phase_duration_seconds_count", **labels) == 1


def test_every_thread_is_warm_before_the_first_job() -> None:
    warmed: list[str] = []
    dispatcher = make_dispatcher(warm_up=lambda: warmed.append(threading.current_thread().name))
    assert sorted(warmed) == ["fake-0", "fake-1"]
    dispatcher.close()


def test_a_thread_that_cannot_be_started_is_raised_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_first_only(thread: threading.Thread) -> None:
        if thread.name == "fake-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", start_first_only)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        make_dispatcher(warm_up=lambda: None)
    assert threading.active_count() == before


def test_a_warm_up_that_fails_is_raised_and_leaves_no_thread() -> None:
    def broken() -> None:
        raise RuntimeError("cannot be run")

    with pytest.raises(RuntimeError, match="cannot be run"):
        make_dispatcher(warm_up=broken)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fake-")]


class Loop:
    """The transport's thread, which is the test's."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], bool]] = []

    def schedule(self, step: Callable[[], bool]) -> None:
        self.steps.append(step)

    def schedule_idle(self, step: Callable[[], object]) -> None:
        raise AssertionError("nothing is in the background here")


@pytest.mark.parametrize("broken", [False, True])
def test_the_transports_thread_is_warm_before_the_first_batch(broken: bool) -> None:
    done: list[str] = []

    def warm_up() -> None:
        done.append("warm")
        if broken:
            raise RuntimeError("broken on purpose")

    loop = Loop()
    dispatcher = make_dispatcher(warm_up, loop)
    assert not done, "this is not that thread"
    job = Job(
        operation="double", caller="a", row_count=1, deadline=math.inf,
        rows=np.ones((1, 2), np.float32), done=lambda outcome: done.append(type(outcome).__name__),
    )  # fmt: skip
    program = dispatcher._programs["double"]
    assert isinstance(program, FakeProgram)
    program.may_go.set()
    dispatcher.submit(job)
    assert [step() for step in loop.steps] == [False, False]
    assert done == ["warm", "Result"]
    assert dispatcher.retire(), "nothing is inside any more"


def test_the_transports_thread_is_not_warmed_for_a_model_that_was_closed() -> None:
    loop = Loop()
    warmed: list[str] = []
    dispatcher = make_dispatcher(lambda: warmed.append("warm"), loop)
    dispatcher.close()
    assert [step() for step in loop.steps] == [False]
    assert not warmed


def make_dispatcher(warm_up: Callable[[], None], work: Loop | None = None) -> Dispatcher:
    return Dispatcher(
        model="fake",
        programs={"double": FakeProgram()},
        padded_rows=lambda count: count,
        max_batch_rows=8,
        max_queue_rows=32,
        metrics=Metrics(CollectorRegistry()),
        warm_up=warm_up,
        work=work,
    )
