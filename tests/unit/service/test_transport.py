"""Both transports with real calls on a real port, and handlers that the test holds by the hand."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value
from prometheus_client import CollectorRegistry

from service import admission, completion_queue, connections, corks, grpc_core, rpcs
from service.calls import Call, Method
from service.completion_queue import CompletionQueueTransport
from service.errors import Cancelled, NotFound
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observer
from service.threaded import ThreadedTransport
from service.transport import Limits, Transport

WAIT_S = 20.0
SERVICE = "test.v1.TestService"
KINDS = ("completion-queue", "threaded")
LIMITS = Limits(max_concurrent_requests=100, max_message_bytes=4096, max_stream_requests=4)


def make(
    kind: str,
    *,
    threads: int = 4,
    limits: Limits = LIMITS,
    registry: CollectorRegistry,
    guard: Guard | None = None,
    observer: Observer | None = None,
) -> Transport:
    metrics = Metrics(registry)
    if kind == "threaded":
        return ThreadedTransport(threads=threads, limits=limits, metrics=metrics, guard=guard, observer=observer)
    return CompletionQueueTransport(limits=limits, metrics=metrics, guard=guard, observer=observer)


class Harness:
    """A transport with a unary method and a stream, whose calls are kept for the test to answer."""

    def __init__(
        self,
        kind: str,
        *,
        threads: int = 4,
        limits: Limits = LIMITS,
        credentials: grpc.ServerCredentials | None = None,
        guard: Guard | None = None,
        observer: Observer | None = None,
        before_start: Callable[[grpc.Server], None] = lambda server: None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.calls: list[tuple[int, Call]] = []
        self.came = threading.Semaphore(0)
        self.on_call: Callable[[Int64Value, Call], None] = lambda request, call: None
        self.transport = make(
            kind, threads=threads, limits=limits, registry=self.registry, guard=guard, observer=observer
        )
        self.transport.add_service(
            SERVICE,
            {
                "Square": Method(parse=Int64Value.FromString, handle=self._handle),
                "Squares": Method(parse=Int64Value.FromString, handle=self._handle, stream=True),
                "InOrder": Method(parse=Int64Value.FromString, handle=self._handle, stream=True, ordered=True),
            },
        )
        before_start(self.transport.server)
        self.port = self.transport.bind("127.0.0.1:0", credentials)
        self.transport.start()
        self.channel = self.connect()
        self.square, self.squares = square_of(self.channel), squares_of(self.channel)

    def connect(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self.answer_all()
        self.channel.close()
        self.transport.stop(WAIT_S)

    def _handle(self, request: Int64Value, call: Call) -> None:
        self.calls.append((request.value, call))
        self.on_call(request, call)
        self.came.release()

    def answer_all(self) -> None:
        calls, self.calls = self.calls, []
        for value, call in calls:
            call.answer(lambda value=value: Int64Value(value=value * value))  # type: ignore[misc]

    def requests(self, code: str, method: str = "Square") -> float:
        labels = {"method": f"/{SERVICE}/{method}", "code": code}
        return self.registry.get_sample_value("autoencoder_rpc_requests_total", labels) or 0.0


def square_of(channel: grpc.Channel) -> Any:
    return channel.unary_unary(f"/{SERVICE}/Square", Int64Value.SerializeToString, Int64Value.FromString)


def squares_of(channel: grpc.Channel) -> Any:
    return channel.stream_stream(f"/{SERVICE}/Squares", Int64Value.SerializeToString, Int64Value.FromString)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def harness(kind: str) -> Iterator[Harness]:
    subject = Harness(kind)
    yield subject
    subject.close()


def in_order_of(channel: grpc.Channel) -> Any:
    return channel.stream_stream(f"/{SERVICE}/InOrder", Int64Value.SerializeToString, Int64Value.FromString)


def answer_now(request: Int64Value, call: Call) -> None:
    call.answer(lambda: Int64Value(value=request.value * request.value))


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
def test_answers_of_one_turn_leave_a_connection_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fast transport. Which connections there are is grpc's to say; a name of ours that differs would show."""
    corked: list[tuple[int, bool]] = []
    cork = corks._cork

    def spy(file: int, value: object) -> bool:
        corked.append((file, value is corks._ON))
        return cork(file, value)

    monkeypatch.setattr(corks, "_cork", spy)
    harness = Harness("completion-queue")
    lone = harness.connect()
    try:
        futures = [harness.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(8)]
        futures.append(square_of(lone).future(Int64Value(value=8), timeout=WAIT_S))
        for _ in futures:
            assert harness.came.acquire(timeout=WAIT_S)
        files = connections.files(harness.port, most_files=4096)
        del files[next(call.caller for value, call in harness.calls if value == 8)]
        (file,) = files.values()
        harness.answer_all()
        assert [future.result().value for future in futures] == [value * value for value in range(9)]
        # Answers that other threads give are done in one turn or in a few.
        assert {number for number, _ in corked} == {file}
        assert [on for _, on in corked] == [True, False] * (len(corked) // 2)
    finally:
        lone.close()
        harness.close()


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
    harness.on_call = lambda request, call: call.on_cancel(left.set)
    future = harness.square.future(Int64Value(value=1), timeout=WAIT_S)
    assert harness.came.acquire(timeout=WAIT_S)
    future.cancel()
    assert left.wait(WAIT_S)
    ((_, call),) = harness.calls
    call.on_cancel(told.set)
    assert told.wait(WAIT_S)


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


def test_a_stop_waits_for_the_calls_inside_and_refuses_others_by_name(kind: str) -> None:
    subject = Harness(kind, threads=8)
    futures = [subject.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(4)]
    for _ in futures:
        assert subject.came.acquire(timeout=WAIT_S)
    with subject.connect() as other:
        late = square_of(other)
        grpc.channel_ready_future(other).result(WAIT_S)
        stopper = threading.Thread(target=subject.transport.stop, args=(WAIT_S,))
        stopper.start()
        code = None
        while code is not grpc.StatusCode.UNAVAILABLE:
            # It may be let in until the stop has begun.
            try:
                late(Int64Value(value=1), timeout=0.2)
            except grpc.RpcError as error:
                code = error.code()
        subject.answer_all()
        assert sorted(future.result().value for future in futures) == [0, 1, 4, 9]
        stopper.join(WAIT_S)
        assert not stopper.is_alive()
    subject.channel.close()


def test_a_stop_serves_the_calls_that_wait_for_a_thread() -> None:
    subject = Harness("threaded", threads=1)
    assert isinstance(subject.transport, ThreadedTransport)
    waiting = subject.transport._pool._work_queue
    futures = [subject.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(5)]
    assert subject.came.acquire(timeout=WAIT_S)
    while waiting.qsize() < 4:  # all have come
        threading.Event().wait(0.01)
    stopper = threading.Thread(target=subject.transport.stop, args=(WAIT_S,))
    stopper.start()
    while waiting.qsize() < 5:  # the stop has begun
        threading.Event().wait(0.01)
    subject.on_call = answer_now
    subject.answer_all()
    assert sorted(future.result().value for future in futures) == [0, 1, 4, 9, 16]
    stopper.join(WAIT_S)
    assert not stopper.is_alive()
    subject.channel.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere grpc cancels what comes in the moment of its end")
def test_callers_without_a_pause_are_answered_or_unavailable_at_a_stop(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_LINGER_S", 0.3)
    subject = Harness(kind, threads=8)
    subject.on_call = answer_now
    told: Counter[grpc.StatusCode] = Counter()
    enough = threading.Event()

    def call_on_and_on() -> None:
        with subject.connect() as channel:
            square = square_of(channel)
            while not enough.is_set():
                futures = [square.future(Int64Value(value=3), timeout=WAIT_S) for _ in range(8)]
                told.update(future.code() for future in futures)

    callers = [threading.Thread(target=call_on_and_on) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in range(50):
        assert subject.came.acquire(timeout=WAIT_S)
    subject.transport.stop(WAIT_S)
    enough.set()
    for caller in callers:
        caller.join(WAIT_S)
    assert told[grpc.StatusCode.OK] >= 50
    assert told[grpc.StatusCode.UNAVAILABLE] > 0
    assert set(told) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, told
    subject.calls.clear()
    subject.channel.close()


def test_a_stop_cancels_what_does_not_end_in_its_grace(kind: str) -> None:
    subject = Harness(kind)
    gone = threading.Event()

    def until_cancelled(request: Int64Value, call: Call) -> None:
        def leave() -> None:
            call.fail(Cancelled("CANCELLED", "gone"))
            gone.set()

        call.on_cancel(leave)

    subject.on_call = until_cancelled
    future = subject.square.future(Int64Value(value=1), timeout=WAIT_S)
    assert subject.came.acquire(timeout=WAIT_S)
    subject.calls.clear()
    subject.transport.stop(0.1)
    assert gone.is_set()
    assert future.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    subject.channel.close()


def test_too_many_calls_are_refused_at_once(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, max_concurrent_requests=2))
    futures = [subject.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(2)]
    for _ in futures:
        assert subject.came.acquire(timeout=WAIT_S)
    with pytest.raises(grpc.RpcError) as caught:
        subject.square(Int64Value(value=1), timeout=WAIT_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    subject.answer_all()
    assert [future.result().value for future in futures] == [0, 1]
    subject.close()


def test_a_message_over_the_limit_and_garbage_are_refused(harness: Harness) -> None:
    raw: Any = harness.channel.unary_unary(f"/{SERVICE}/Square")
    for sent, code in (
        (bytes(5000), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            raw(sent, timeout=WAIT_S)
        assert caught.value.code() == code
    harness.on_call = answer_now
    assert harness.square(Int64Value(value=3), timeout=WAIT_S).value == 9
    harness.calls.clear()


def test_compressed_requests_are_read(harness: Harness) -> None:
    harness.on_call = answer_now
    assert harness.square(Int64Value(value=4), timeout=WAIT_S, compression=grpc.Compression.Gzip).value == 16
    harness.calls.clear()


def test_a_connection_that_is_old_is_made_anew_and_no_call_is_lost(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, max_connection_age_s=0.2, connection_grace_s=WAIT_S))
    subject.on_call = answer_now
    callers: set[str] = set()
    while len(callers) < 3:
        assert subject.square(Int64Value(value=3), timeout=WAIT_S, wait_for_ready=True).value == 9
        callers.update(call.caller for _, call in subject.calls)
        subject.calls.clear()
    subject.close()


def test_a_stream_answers_in_the_order_of_completion(harness: Harness) -> None:
    inbox: SimpleQueue[Int64Value | None] = SimpleQueue()
    answers = harness.squares(iter(inbox.get, None), timeout=WAIT_S)
    for value in (2, 3, 4):
        inbox.put(Int64Value(value=value))
        assert harness.came.acquire(timeout=WAIT_S)
    for value, call in reversed(harness.calls):
        call.answer(lambda value=value: Int64Value(value=value * value))  # type: ignore[misc]
        assert next(answers).value == value * value
    harness.calls.clear()
    inbox.put(None)
    assert list(answers) == []
    assert harness.requests("OK", "Squares") == 1


def test_an_ordered_stream_answers_in_the_order_of_its_messages(harness: Harness) -> None:
    inbox: SimpleQueue[Int64Value | None] = SimpleQueue()
    answers = in_order_of(harness.channel)(iter(inbox.get, None), timeout=WAIT_S)
    for value in (2, 3, 4):
        inbox.put(Int64Value(value=value))
        assert harness.came.acquire(timeout=WAIT_S)
    for value, call in (harness.calls[2], harness.calls[0], harness.calls[1]):
        call.answer(lambda value=value: Int64Value(value=value * value))  # type: ignore[misc]
    assert [next(answers).value for _ in range(3)] == [4, 9, 16]
    harness.calls.clear()
    harness.on_call = answer_now
    for value in range(20):
        inbox.put(Int64Value(value=value))
    inbox.put(None)
    assert [answer.value for answer in answers] == [value * value for value in range(20)]
    assert harness.requests("OK", "InOrder") == 1


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_answers_that_wait_for_their_turn_hold_nothing_when_their_stream_ends(harness: Harness, how: str) -> None:
    inbox: SimpleQueue[Int64Value | None] = SimpleQueue()
    answers = in_order_of(harness.channel)(iter(inbox.get, None), timeout=WAIT_S)
    for value in (2, 3):
        inbox.put(Int64Value(value=value))
        assert harness.came.acquire(timeout=WAIT_S)
    (_, first), (_, second) = harness.calls
    gone = threading.Event()
    first.on_cancel(gone.set)
    second.answer(lambda: Int64Value(value=9))
    if how == "cancelled":
        answers.cancel()
        assert gone.wait(WAIT_S)
        first.fail(Cancelled("CANCELLED", "nobody waits"))
    else:
        first.fail(NotFound("NONE", "none"))
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() is getattr(grpc.StatusCode, {"cancelled": "CANCELLED", "failed": "NOT_FOUND"}[how])
    harness.calls.clear()
    inbox.put(None)
    # The fixture's stop waits for every call that is held.


def test_a_stream_of_many_messages_answers_each_once(harness: Harness) -> None:
    harness.on_call = answer_now
    answers = harness.squares((Int64Value(value=value) for value in range(2000)), timeout=WAIT_S)
    assert sorted(answer.value for answer in answers) == [value * value for value in range(2000)]
    harness.calls.clear()


def test_a_stream_holds_back_a_client_whose_requests_are_not_answered(harness: Harness) -> None:
    answers = harness.squares((Int64Value(value=value) for value in range(50)), timeout=WAIT_S)
    for _ in range(LIMITS.max_stream_requests):
        assert harness.came.acquire(timeout=WAIT_S)
    assert not harness.came.acquire(timeout=0.3)
    assert len(harness.calls) == LIMITS.max_stream_requests
    harness.on_call = answer_now
    harness.answer_all()
    assert sorted(answer.value for answer in answers) == [value * value for value in range(50)]
    harness.calls.clear()


def test_a_client_that_does_not_read_is_held_back_too(kind: str) -> None:
    """The answers are large: what the connection itself buffers is far below what would be sent."""
    subject = Harness(kind)
    limit = 2000

    def large(request: Int64Value, call: Call) -> None:
        call.answer(lambda: BytesValue(value=bytes(1 << 20)))

    subject.on_call = large
    call: Any = subject.channel.stream_stream(
        f"/{SERVICE}/Squares", Int64Value.SerializeToString, lambda data: len(data)
    )
    answers = call((Int64Value(value=value) for value in range(limit)), timeout=WAIT_S)
    while subject.came.acquire(timeout=0.5):  # until nothing more comes
        pass
    assert len(subject.calls) < limit / 4
    subject.calls.clear()
    answers.cancel()
    subject.close()


def test_a_stream_whose_client_leaves_cancels_what_it_asked_for(harness: Harness) -> None:
    gone = threading.Semaphore(0)

    def until_cancelled(request: Int64Value, call: Call) -> None:
        def leave() -> None:
            call.fail(Cancelled("CANCELLED", "gone"))
            gone.release()

        call.on_cancel(leave)

    harness.on_call = until_cancelled
    blocked = threading.Event()

    def requests() -> Iterator[Int64Value]:
        yield Int64Value(value=1)
        yield Int64Value(value=2)
        blocked.wait(WAIT_S)

    answers = harness.squares(requests(), timeout=WAIT_S)
    for _ in range(2):
        assert harness.came.acquire(timeout=WAIT_S)
    harness.calls.clear()
    answers.cancel()
    blocked.set()
    for _ in range(2):
        assert gone.acquire(timeout=WAIT_S)
    harness.on_call = answer_now
    assert harness.square(Int64Value(value=5), timeout=WAIT_S).value == 25
    harness.calls.clear()


@pytest.mark.parametrize("how", ["cancelled", "late", "too large"])
def test_streams_that_end_while_nothing_is_under_way_count_as_what_they_were(how: str) -> None:
    subject = Harness("completion-queue")
    subject.on_call = answer_now
    done = threading.Event()
    streams = 10

    def requests() -> Iterator[bytes]:
        yield Int64Value(value=2).SerializeToString()
        if how == "too large":
            yield bytes(LIMITS.max_message_bytes + 1)
        done.wait(WAIT_S)

    raw: Any = subject.channel.stream_stream(f"/{SERVICE}/Squares")
    for _ in range(streams):
        answers = raw(requests(), timeout=0.2 if how == "late" else WAIT_S)
        if how == "cancelled":
            next(answers)
            answers.cancel()
        with pytest.raises(grpc.RpcError):
            list(answers)
    done.set()
    until = time.monotonic() + WAIT_S
    while subject.registry.get_sample_value("autoencoder_requests_in_flight"):
        assert time.monotonic() < until
    # A few in a thousand are told of by two threads of grpc's, in another order.
    assert subject.requests("CANCELLED", "Squares") >= streams - 2
    subject.calls.clear()
    subject.close()


def test_a_broken_message_ends_its_stream_only(harness: Harness) -> None:
    harness.on_call = answer_now
    raw: Any = harness.channel.stream_stream(f"/{SERVICE}/Squares")
    with pytest.raises(grpc.RpcError) as caught:
        list(raw(iter([b"\xff\xff"]), timeout=WAIT_S))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [answer.value for answer in harness.squares(iter([Int64Value(value=6)]), timeout=WAIT_S)] == [36]
    harness.calls.clear()


def test_a_stop_answers_what_a_stream_brought_and_ends_it_by_name(kind: str) -> None:
    subject = Harness(kind)
    open_end = threading.Event()

    def requests() -> Iterator[Int64Value]:
        yield Int64Value(value=7)
        open_end.wait(WAIT_S)

    answers = subject.squares(requests(), timeout=WAIT_S)
    assert subject.came.acquire(timeout=WAIT_S)
    stopper = threading.Thread(target=subject.transport.stop, args=(WAIT_S,))
    stopper.start()
    subject.answer_all()
    assert next(answers).value == 49
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    open_end.set()
    stopper.join(WAIT_S)
    assert not stopper.is_alive()
    subject.channel.close()


class Shout(grpc.GenericRpcHandler):
    """A handler of each arity, as generated code has them, which looks at metadata and sets some."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        def one(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.send_initial_metadata((("seen", dict(context.invocation_metadata())["mark"]),))
            context.set_trailing_metadata((("last", "word"),))
            return request.upper()

        return {
            "/Shout/UnaryUnary": grpc.unary_unary_rpc_method_handler(one),
            "/Shout/UnaryStream": grpc.unary_stream_rpc_method_handler(
                lambda request, context: iter([request.upper()] * 2)
            ),
            "/Shout/StreamUnary": grpc.stream_unary_rpc_method_handler(
                lambda requests, context: b"".join(requests).upper()
            ),
            "/Shout/StreamStream": grpc.stream_stream_rpc_method_handler(
                lambda requests, context: (request.upper() for request in requests)
            ),
        }.get(details.method)


def test_ordinary_handlers_of_all_arities_work_beside(kind: str) -> None:
    subject = Harness(kind, before_start=lambda server: server.add_generic_rpc_handlers((Shout(),)))
    channel: Any = subject.channel
    metadata = (("mark", "yes"),)
    response, call = channel.unary_unary("/Shout/UnaryUnary").with_call(b"a", metadata=metadata, timeout=WAIT_S)
    assert (response, dict(call.initial_metadata())["seen"], dict(call.trailing_metadata())["last"]) == (
        b"A",
        "yes",
        "word",
    )
    assert list(channel.unary_stream("/Shout/UnaryStream")(b"b", timeout=WAIT_S)) == [b"B", b"B"]
    assert channel.stream_unary("/Shout/StreamUnary")(iter([b"c", b"d"]), timeout=WAIT_S) == b"CD"
    assert list(channel.stream_stream("/Shout/StreamStream")(iter([b"e", b"f"]), timeout=WAIT_S)) == [b"E", b"F"]
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/Shout/Nothing")(b"", timeout=WAIT_S)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    subject.close()


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where threads have run out: none can be started any more, but for those of clients and of the test."""
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name.startswith(("handler", "message-reader", "stream-reader")):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)


def test_ordinary_handlers_need_no_new_thread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Harness(kind, before_start=lambda server: server.add_generic_rpc_handlers((Shout(),)))
    no_threads(monkeypatch)
    channel: Any = subject.channel
    assert channel.unary_unary("/Shout/UnaryUnary")(b"a", metadata=(("mark", "yes"),), timeout=WAIT_S) == b"A"
    subject.close()


def test_a_call_that_gets_no_thread_is_refused_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Harness("threaded")
    subject.on_call = answer_now
    with monkeypatch.context() as patch:
        no_threads(patch)
        for call in (
            lambda: subject.square(Int64Value(value=2), timeout=WAIT_S),
            lambda: list(subject.squares(iter([Int64Value(value=2)]), timeout=WAIT_S)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "no thread" in (caught.value.details() or "")
    rejected = subject.registry.get_sample_value("autoencoder_rejected_requests_total", {"reason": "NO_THREAD"})
    assert rejected == 2
    assert subject.square(Int64Value(value=2), timeout=WAIT_S).value == 4
    assert [answer.value for answer in subject.squares(iter([Int64Value(value=3)]), timeout=WAIT_S)] == [9]
    subject.close()


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_and_mutual_tls(kind: str, mutual: bool) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("client@example.org")
    trusted = authority.cert_pem.bytes()
    pair = (server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], trusted if mutual else None, require_client_auth=mutual)
    subject = Harness(kind, credentials=credentials)
    subject.on_call = answer_now
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    with grpc.secure_channel(f"localhost:{subject.port}", grpc.ssl_channel_credentials(trusted, *own)) as channel:
        assert square_of(channel)(Int64Value(value=8), timeout=WAIT_S).value == 64
        assert [answer.value for answer in squares_of(channel)(iter([Int64Value(value=9)]), timeout=WAIT_S)] == [81]
    if mutual:
        with grpc.secure_channel(f"localhost:{subject.port}", grpc.ssl_channel_credentials(trusted)) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                square_of(channel)(Int64Value(value=8), timeout=2)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    subject.calls.clear()
    subject.close()


def test_a_port_that_is_taken_is_an_error(kind: str) -> None:
    subject = Harness(kind)
    other = make(kind, registry=CollectorRegistry())
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{subject.port}"):
        other.bind(f"127.0.0.1:{subject.port}")
    other.stop(0)
    subject.close()


def test_clients_that_are_gone_leave_nothing_behind() -> None:
    """Ten thousand calls, some cancelled, some past their deadline, some streams: the server holds none of them."""
    subject = Harness("completion-queue", limits=replace(LIMITS, max_concurrent_requests=4000))
    assert isinstance(subject.transport, CompletionQueueTransport)
    loop = subject.transport.work

    def sometimes(request: Int64Value, call: Call) -> None:
        if request.value % 10:
            answer_now(request, call)
        else:
            call.on_cancel(lambda: call.fail(Cancelled("CANCELLED", "gone")))

    subject.on_call = sometimes
    for _ in range(10):
        # Those that nobody answers are to be past their deadline soon; the others never, however slow the machine.
        futures = [
            subject.square.future(Int64Value(value=value), timeout=WAIT_S if value % 10 else 5.0)
            for value in range(1000)
        ]
        for number, future in enumerate(futures):
            if number % 20 == 0:
                future.cancel()
        for number, future in enumerate(futures):
            if number % 10:
                assert future.result().value == number * number
        list(subject.squares((Int64Value(value=value) for value in range(1, 10)), timeout=WAIT_S))
        subject.calls.clear()
    held = len(loop._state.rpc_states)
    until = time.monotonic() + WAIT_S
    while loop._state.rpc_states and time.monotonic() < until:
        threading.Event().wait(0.05)
    assert not loop._state.rpc_states, f"{held} calls were held, {len(loop._state.rpc_states)} still are"
    assert not loop.unwatched
    assert not loop.streams
    subject.close()


def test_a_call_whose_operations_are_not_taken_leaves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when grpcio ends a call under the hands of the loop: no event comes, and nothing may be counted twice."""
    subject = Harness("completion-queue")
    assert isinstance(subject.transport, CompletionQueueTransport)
    loop, admission = subject.transport.work, subject.transport._admission
    start = rpcs.Rpc._start

    def refuse_the_end(self: Any, operations: Any, tag: Any) -> bool:
        return tag.__name__ not in ("_on_sent", "_on_ended", "_on_close", "_on_metadata") and start(
            self, operations, tag
        )

    def wrong(request: Int64Value, call: Call) -> None:
        raise NotFound("NO_SUCH_THING", "nothing here")

    monkeypatch.setattr(rpcs.Rpc, "_start", refuse_the_end)
    subject.on_call = wrong
    unary = subject.square.future(Int64Value(value=1), timeout=0.5)
    stream = subject.squares(iter([Int64Value(value=2)]), timeout=0.5)
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert unary.code() is not None
    until = time.monotonic() + WAIT_S
    while loop._state.rpc_states and time.monotonic() < until:
        threading.Event().wait(0.05)
    assert not loop._state.rpc_states
    assert admission.inside == 0
    monkeypatch.undo()
    subject.on_call = answer_now
    assert subject.square(Int64Value(value=3), timeout=WAIT_S).value == 9
    subject.calls.clear()
    subject.close()


def test_one_posted_action_that_fails_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    subject = Harness("completion-queue")
    assert isinstance(subject.transport, CompletionQueueTransport)
    loop = subject.transport.work
    future = subject.square.future(Int64Value(value=7), timeout=WAIT_S)
    assert subject.came.acquire(timeout=WAIT_S)
    loop._posted.append(lambda: 1 // 0)  # type: ignore[arg-type]
    subject.answer_all()
    assert future.result().value == 49
    assert "what was posted failed" in caplog.text
    subject.close()


def test_the_self_test_passes_here_and_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion_queue.why_not() is None
    monkeypatch.setattr(grpc_core, "version", lambda name: "1.99.0")
    assert "is not one whose private layers are known" in (completion_queue.why_not() or "")


def test_grpc_is_told_to_poll_only_where_it_is_known_and_was_told_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    grpc_core.poll_connections(environment)
    assert environment == {"GRPC_EXPERIMENTS": "-event_engine_listener"}
    told = {"GRPC_EXPERIMENTS": "ph2_server"}
    grpc_core.poll_connections(told)
    assert told == {"GRPC_EXPERIMENTS": "ph2_server"}
    monkeypatch.setattr(grpc_core, "version", lambda name: "1.99.0")
    environment.clear()
    grpc_core.poll_connections(environment)
    assert not environment


def test_a_broken_private_layer_is_found_by_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_queue, "_SELF_TEST_S", 1.0)
    monkeypatch.setattr(rpcs.UnaryRpc, "answer", lambda self, build: self.fail(NotFound("BROKEN", "broken")))
    assert "its self-test on grpcio" in (completion_queue.why_not() or "")


def test_idle_work_is_done_when_there_is_no_other() -> None:
    harness = Harness("completion-queue")
    work = harness.transport.work
    assert work is not None
    done: list[str] = []
    idle = threading.Event()

    def step() -> bool:
        done.append("work")
        return len(done) < 5

    def idle_step() -> None:
        done.append("idle")
        idle.set()

    def schedule(request: Int64Value, call: Call) -> None:
        work.schedule_idle(idle_step)
        work.schedule(step)
        call.answer(lambda: request)

    harness.on_call = schedule
    harness.square(Int64Value(value=3), timeout=WAIT_S)
    harness.calls.clear()
    assert idle.wait(WAIT_S)
    harness.close()
    assert done == ["work"] * 5 + ["idle"]
