"""The bidirectional streams of the fast transport, each of whose messages is a call of its own.

All of it is touched by the loop's thread alone, but for `answer`, `fail` and `on_cancel`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from grpc._cython import cygrpc

from service.calls import perform
from service.errors import Cancelled, ServiceError, Unavailable, internal_error
from service.rpcs import Event, Rpc

_BUFFER_HINT = cygrpc.WriteFlag.buffer_hint


class StreamRpc(Rpc):
    """A bidirectional stream, each of whose messages is a call of its own.

    The next message is asked for only while few enough are unanswered or wait to be sent, by number and by bytes;
    HTTP/2 then holds back a client that sends more, or that does not read.
    """

    __slots__ = ("_bytes", "_calls", "_half_closed", "_outbox", "_receiving", "_sending")

    def begin(self) -> None:
        # Not answered yet, in the order in which they came; or answered, and others are to be answered before.
        self._calls: dict[StreamCall, bytes | None] = {}
        self._outbox: deque[tuple[bytes, int]] = deque()  # answers, and the bytes of what they answer
        self._bytes = 0
        self._half_closed = self._receiving = self._sending = False
        if not self._enter():
            return
        self._loop.streams.add(self)
        self._start((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)
        self._start((cygrpc.SendInitialMetadataOperation(None, 0),), self._on_metadata)
        self._receive()

    def drain(self) -> None:
        """Take no more messages; end as unavailable when those that came are answered."""
        self._go_on()

    def _receive(self) -> None:
        limits = self._loop.limits
        if (
            not (self._half_closed or self._answered or self._loop.draining)
            and len(self._calls) + len(self._outbox) < limits.max_stream_requests
            and self._bytes < limits.max_message_bytes
        ):
            self._receiving = self._start((cygrpc.ReceiveMessageOperation(0),), self._on_message)

    def _on_metadata(self, event: Event) -> None:
        self._pending -= 1
        self._retire()

    def _on_message(self, event: Event) -> None:
        self._pending -= 1
        request = event.batch_operations[0].message()
        if request is not None:
            self._receiving = False
            if not self._answered:
                call = StreamCall(self, len(request))
                self._calls[call] = None
                self._bytes += len(request)
                perform(self._method, request, call)
        # A caller that has gone looks like one that has half closed until `_on_close` is told so, all but always by the
        # next event: `_on_half_close` comes after it.
        elif event.success and not self._start((), self._on_half_close):
            self._half_close()
        if not self._calls or self._answered:
            self._go_on()
        elif not self._receiving:  # what there is to send is being sent, and nothing is to be ended
            self._receive()

    def _on_half_close(self, event: Event) -> None:
        self._pending -= 1
        # Past its deadline a stream has not half closed, but is over: grpc's timer is about to tell `_on_close`.
        if time.monotonic() < self.deadline:
            self._half_close()
        self._go_on()

    def _half_close(self) -> None:
        self._receiving = False
        self._half_closed = True

    def _on_close(self, event: Event) -> None:
        self._pending -= 1
        if event.batch_operations[0].cancelled():
            self._cancelled = True
            self._drop_answers()
            for call in tuple(self._calls):
                call.cancel()
        self._go_on()

    def answered(self, call: StreamCall, message: bytes) -> None:
        if self._cancelled or self._answered:
            del self._calls[call]
            self._bytes -= call.bytes
        else:
            self._bytes += len(message)
            if self._method.ordered:
                self._calls[call] = message
                self._release_in_order()
            else:
                self._release(call, message)
            if self._sending:  # of which more comes when it is done
                return
        self._go_on()

    def _release_in_order(self) -> None:
        while self._calls:
            call, message = next(iter(self._calls.items()))
            if message is None:
                return
            self._release(call, message)

    def _release(self, call: StreamCall, message: bytes) -> None:
        del self._calls[call]
        self._outbox.append((message, call.bytes + len(message)))

    def _drop_answers(self) -> None:
        self._outbox.clear()
        self._calls = {call: None for call, message in self._calls.items() if message is None}

    def failed(self, call: StreamCall, error: ServiceError) -> None:
        del self._calls[call]
        if not self._answered:
            self._end_with(error)
        self._go_on()

    def _go_on(self) -> None:
        if self._outbox and not self._sending:
            message, size = self._outbox.popleft()
            self._bytes -= size
            flags = _BUFFER_HINT if self._outbox else 0
            self._sending = self._start((cygrpc.SendMessageOperation(message, flags),), self._on_message_sent)
        if not (self._answered or self._calls or self._outbox or self._sending):
            if self._cancelled:
                # Nobody is left to be told.
                self._answered = True
                self._failed(Cancelled("CANCELLED", "the caller went away"))
            elif self._half_closed:
                self._end(self._succeeded())
            elif self._loop.draining:
                self._end_with(Unavailable("DRAINING", "the service is stopping; open the stream elsewhere"))
        if not self._receiving:
            self._receive()
        if self._answered:
            self._retire()

    def _on_message_sent(self, event: Event) -> None:
        self._pending -= 1
        self._sending = False
        if not event.success:
            self._drop_answers()
        self._go_on()

    def _end_with(self, error: ServiceError) -> None:
        status = self._failed(error)
        self._drop_answers()
        if self._admitted:
            self._end(status)
        else:
            self._end(cygrpc.SendInitialMetadataOperation(None, 0), status)

    def _end(self, *operations: Any) -> None:
        self._answered = True
        if not self._start(operations, self._on_ended):
            self._retire()

    def _on_ended(self, event: Event) -> None:
        self._pending -= 1
        self._retire()

    def _retire(self) -> None:
        if self._answered and not self._calls and not self._pending:
            self._loop.streams.discard(self)
            super()._retire()


class StreamCall:
    """A `calls.Call` for one message of a stream."""

    __slots__ = ("_callbacks", "_stream", "bytes", "caller", "deadline", "grant", "observation")

    def __init__(self, stream: StreamRpc, request_bytes: int) -> None:
        self._stream = stream
        self._callbacks: list[Callable[[], None]] = []
        self.bytes = request_bytes
        self.caller = stream.caller
        self.grant = stream.grant
        self.observation = stream.observation
        self.deadline = stream.deadline

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if self._stream._cancelled:
            callback()
        else:
            self._callbacks.append(callback)

    def cancel(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        if self._stream._loop.is_here:
            self._answer(build)
        else:
            self._stream._loop.post(self._stream._call, lambda: self._answer(build))

    def fail(self, error: ServiceError) -> None:
        if self._stream._loop.is_here:
            self._fail(error)
        else:
            self._stream._loop.post(self._stream._call, lambda: self._fail(error))

    def _answer(self, build: Callable[[], Message]) -> None:
        try:
            message = build().SerializeToString()
        except Exception:
            self._fail(internal_error("an answer could not be built"))
            return
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        self._callbacks.clear()
        self._stream.answered(self, message)

    def _fail(self, error: ServiceError) -> None:
        self._callbacks.clear()
        self._stream.failed(self, error)
