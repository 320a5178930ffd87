"""The calls of the threaded transport: unary ones, and streams whose messages are calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import Message

from service.calls import Method, perform
from service.errors import Cancelled, ServiceError, Unavailable, internal_error
from service.observation import Observation
from service.tokens import Grant
from service.transport import Limits


def _deadline(context: grpc.ServicerContext) -> float:
    remaining_s = context.time_remaining()
    return float("inf") if remaining_s is None else time.monotonic() + remaining_s


def _serialise(build: Callable[[], Message]) -> bytes:
    """Raises ServiceError."""
    try:
        return build().SerializeToString()
    except ServiceError:
        raise
    except Exception as error:
        raise internal_error("an answer could not be built") from error


class Call:
    """A `calls.Call` whose handler thread waits for the answer."""

    def __init__(self, context: grpc.ServicerContext, grant: Grant | None, observation: Observation | None) -> None:
        self._context = context
        self.grant = grant
        self.observation = observation
        self.caller = context.peer()
        self.deadline = _deadline(context)
        self._outcome: Callable[[], Message] | ServiceError | None = None
        # Released once, by the answer: the cheapest thing a thread can wait for.
        self._answered = threading.Lock()
        self._answered.acquire()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if not self._context.add_callback(callback):
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        self._outcome = build
        self._answered.release()

    def fail(self, error: ServiceError) -> None:
        self._outcome = error
        self._answered.release()

    def result(self) -> bytes:
        """Raises ServiceError."""
        self._answered.acquire()
        if isinstance(self._outcome, ServiceError):
            raise self._outcome
        assert self._outcome is not None
        return _serialise(self._outcome)


# What a stream's sender is told beside answers.
_HALF_CLOSED, _GONE, _DRAIN = object(), object(), object()


class Stream:
    """A bidirectional stream: a thread reads and hands on the messages, the handler's own thread sends the answers.

    The next message is read only while few enough are unanswered or wait to be sent, by number and by bytes.
    """

    def __init__(
        self,
        method: Method[Any],
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        limits: Limits,
        grant: Grant | None,
        observation: Observation | None,
    ) -> None:
        self.grant = grant
        self.observation = observation
        self._method = method
        self._requests = requests
        self._context = context
        self._limits = limits
        self.caller = context.peer()
        self.deadline = _deadline(context)
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._room = threading.Condition()
        # Accepted, not sent yet, in the order in which they came; with the answers that wait for others before them.
        self._calls: dict[StreamCall, Callable[[], Message] | None] = {}
        self._bytes = 0
        self._closed = False
        self._draining = False
        if not context.add_callback(self.leave):
            self.leave()

    def drain(self) -> None:
        self._draining = True
        self._outbox.put(_DRAIN)

    def responses(self) -> Iterator[bytes]:
        """The answers as they come, until all are given. Raises ServiceError where the stream is to end with one."""
        half_closed = False
        while True:
            if half_closed and not self._calls:
                return
            if self._draining and not self._calls:
                raise Unavailable("DRAINING", "the service is stopping; open the stream elsewhere")
            what = self._outbox.get()
            if what is _GONE:
                raise Cancelled("CANCELLED", "the caller went away")
            if what is _HALF_CLOSED:
                half_closed = True
            elif isinstance(what, ServiceError):
                raise what
            elif what is not _DRAIN:
                for call, build in self._sendable(*what):
                    response = _serialise(build)
                    yield response
                    self._finish(call)

    def _sendable(
        self, call: StreamCall, build: Callable[[], Message]
    ) -> Iterator[tuple[StreamCall, Callable[[], Message]]]:
        """What may be sent, now that `call` is answered; each is finished before the next is asked for."""
        if not self._method.ordered:
            yield call, build
            return
        with self._room:
            self._calls[call] = build
        while True:
            with self._room:
                first = next(iter(self._calls.items()), None)
            if first is None or first[1] is None:
                return
            yield first[0], first[1]

    def leave(self) -> None:
        """Read no more; what is not answered yet is for nobody."""
        with self._room:
            self._closed = True
            calls = tuple(self._calls)
            self._room.notify()
        for call in calls:
            call.cancel()
        self._outbox.put(_GONE)

    def put(self, what: Any) -> None:
        self._outbox.put(what)

    def read(self) -> None:
        """Hand on the messages until there are no more."""
        try:
            while self._wait_for_room():
                request = next(self._requests, None)
                if request is None:
                    break
                call = StreamCall(self, len(request))
                with self._room:
                    if self._closed or self._draining:
                        break
                    self._calls[call] = None
                    self._bytes += call.bytes
                perform(self._method, request, call)
        except grpc.RpcError:
            pass  # the caller is gone
        self._outbox.put(_HALF_CLOSED)

    def _wait_for_room(self) -> bool:
        limits = self._limits
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._closed
                    or (len(self._calls) < limits.max_stream_requests and self._bytes < limits.max_message_bytes)
                )
            )
            return not (self._closed or self._draining)

    def _finish(self, call: StreamCall) -> None:
        with self._room:
            self._calls.pop(call, None)
            self._bytes -= call.bytes
            self._room.notify()


class StreamCall:
    """A `calls.Call` for one message of a stream."""

    def __init__(self, stream: Stream, request_bytes: int) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._cancelled = False
        self.bytes = request_bytes
        self.caller = stream.caller
        self.grant = stream.grant
        self.observation = stream.observation
        self.deadline = stream.deadline

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        self._forget()
        self._stream.put((self, build))

    def fail(self, error: ServiceError) -> None:
        self._forget()
        self._stream.put(error)

    def _forget(self) -> None:
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        with self._lock:
            self._callbacks = []
