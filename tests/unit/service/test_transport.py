"""The transport with real calls on a real port, and handlers that the test holds by the hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from prometheus_client import CollectorRegistry

from service.calls import Call, Method
from service.errors import Cancelled, NotFound
from service.metrics import Metrics
from service.transport import ThreadedTransport

WAIT_S = 20.0
SERVICE = "test.v1.TestService"


class Harness:
    """A transport with one method, whose calls are kept for the test to answer."""

    def __init__(self, threads: int = 4) -> None:
        self.registry = CollectorRegistry()
        self.calls: list[tuple[int, Call]] = []
        self.came = threading.Semaphore(0)
        self.on_call: Callable[[Int64Value, Call], None] = lambda request, call: None
        self.transport = ThreadedTransport(
            threads=threads, max_concurrent_requests=100, max_message_bytes=4096, metrics=Metrics(self.registry)
        )
        method = Method(parse=Int64Value.FromString, handle=self._handle)
        self.transport.add_service(SERVICE, {"Square": method})
        port = self.transport.bind("127.0.0.1:0")
        self.transport.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.square: Any = self.channel.unary_unary(
            f"/{SERVICE}/Square",
            request_serializer=Int64Value.SerializeToString,
            response_deserializer=Int64Value.FromString,
        )

    def _handle(self, request: Int64Value, call: Call) -> None:
        self.calls.append((request.value, call))
        self.on_call(request, call)
        self.came.release()

    def answer_all(self) -> None:
        for value, call in self.calls:
            call.answer(lambda value=value: Int64Value(value=value * value))  # type: ignore[misc]
        self.calls.clear()

    def requests(self, code: str) -> float:
        labels = {"method": f"/{SERVICE}/Square", "code": code}
        return self.registry.get_sample_value("autoencoder_rpc_requests_total", labels) or 0.0


@pytest.fixture
def harness() -> Iterator[Harness]:
    subject = Harness()
    yield subject
    subject.answer_all()
    subject.channel.close()
    subject.transport.stop(WAIT_S)


def answer_now(request: Int64Value, call: Call) -> None:
    call.answer(lambda: Int64Value(value=request.value * request.value))


def test_an_answer_may_come_from_any_thread(harness: Harness) -> None:
    future = harness.square.future(Int64Value(value=7), timeout=WAIT_S)
    assert harness.came.acquire(timeout=WAIT_S)
    thread = threading.Thread(target=harness.answer_all)
    thread.start()
    assert future.result().value == 49
    thread.join()


def test_a_call_knows_who_calls_and_until_when(harness: Harness) -> None:
    harness.on_call = answer_now
    began = time.monotonic()
    harness.square(Int64Value(value=1), timeout=WAIT_S)
    harness.square(Int64Value(value=2))
    (_, first), (_, second) = harness.calls
    harness.calls.clear()
    assert first.caller == second.caller
    assert first.caller.startswith("ipv4:127.0.0.1:")
    assert began < first.deadline <= time.monotonic() + WAIT_S + 1  # the wire has milliseconds, rounded
    assert second.deadline > time.monotonic() + 1e6


def test_a_caller_that_goes_away_is_told_of(harness: Harness) -> None:
    gone = threading.Event()

    def until_cancelled(request: Int64Value, call: Call) -> None:
        def leave() -> None:
            gone.set()
            call.fail(Cancelled("CANCELLED", "gone"))

        call.on_cancel(leave)

    harness.on_call = until_cancelled
    future = harness.square.future(Int64Value(value=1), timeout=WAIT_S)
    assert harness.came.acquire(timeout=WAIT_S)
    harness.calls.clear()
    future.cancel()
    assert gone.wait(WAIT_S)


def test_a_deadline_that_passes_counts_as_going_away(harness: Harness) -> None:
    gone = threading.Event()
    harness.on_call = lambda request, call: call.on_cancel(gone.set)
    with pytest.raises(grpc.RpcError) as caught:
        harness.square(Int64Value(value=1), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert gone.wait(WAIT_S)


def test_who_registers_after_the_caller_left_is_told_at_once(harness: Harness) -> None:
    left, told = threading.Event(), threading.Event()

    def late(request: Int64Value, call: Call) -> None:
        call.on_cancel(left.set)
        assert left.wait(WAIT_S)
        call.on_cancel(told.set)

    harness.on_call = late
    future = harness.square.future(Int64Value(value=1), timeout=WAIT_S)
    while not harness.calls:
        threading.Event().wait(0.01)
    future.cancel()
    assert told.wait(WAIT_S)
    assert harness.came.acquire(timeout=WAIT_S)


def test_an_error_costs_its_call_only(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Int64Value, call: Call) -> None:
        raise RuntimeError("broken on purpose") if request.value == 3 else NotFound("NO_SUCH_THING", "nothing here")

    harness.on_call = broken
    codes = []
    for value in (3, 4):
        with pytest.raises(grpc.RpcError) as caught:
            harness.square(Int64Value(value=value), timeout=WAIT_S)
        codes.append((caught.value.code().name, caught.value.details() or ""))
    harness.calls.clear()
    assert codes[0][0] == "INTERNAL"
    assert codes[0][1].startswith("internal error ")
    assert codes[1] == ("NOT_FOUND", "nothing here")
    assert "broken on purpose" in caplog.text
    harness.on_call = answer_now
    assert harness.square(Int64Value(value=5), timeout=WAIT_S).value == 25
    harness.calls.clear()
    assert (harness.requests("INTERNAL"), harness.requests("NOT_FOUND"), harness.requests("OK")) == (1, 1, 1)


def test_an_answer_that_cannot_be_built_is_internal(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    def unbuildable() -> Int64Value:
        raise ValueError("cannot be built")

    harness.on_call = lambda request, call: call.answer(unbuildable)
    with pytest.raises(grpc.RpcError) as caught:
        harness.square(Int64Value(value=1), timeout=WAIT_S)
    harness.calls.clear()
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "cannot be built" in caplog.text


def test_a_stop_serves_the_calls_that_wait_for_a_thread() -> None:
    subject = Harness(threads=1)
    futures = [subject.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(5)]
    assert subject.came.acquire(timeout=WAIT_S)
    while subject.transport._pool._work_queue.qsize() < 4:  # all have come
        threading.Event().wait(0.01)
    stopper = threading.Thread(target=subject.transport.stop, args=(WAIT_S,))
    stopper.start()
    while subject.transport._pool._work_queue.qsize() < 5:  # the stop has begun
        threading.Event().wait(0.01)
    subject.on_call = answer_now
    subject.answer_all()
    assert sorted(future.result().value for future in futures) == [0, 1, 4, 9, 16]
    stopper.join(WAIT_S)
    assert not stopper.is_alive()
    subject.channel.close()


def test_a_port_that_is_taken_is_an_error() -> None:
    subject = Harness()
    port = subject.transport.bind("127.0.0.1:0")
    other = ThreadedTransport(
        threads=1, max_concurrent_requests=1, max_message_bytes=1024, metrics=Metrics(CollectorRegistry())
    )
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        other.bind(f"127.0.0.1:{port}")
    other.stop(0)
    subject.channel.close()
    subject.transport.stop(0)
