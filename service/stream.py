"""The RPC Stream: each message is a request of its own, and its error is an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from autoencoder.v1 import autoencoder_pb2 as pb
from service import statuses
from service.calls import Call, handle
from service.errors import InvalidArgument, ServiceError, internal_error
from service.metrics import Metrics


class Stream:
    """`operations`: by the name of the request in the message, how it is handled."""

    def __init__(self, operations: Mapping[str, Callable[[Any, Call], None]], metrics: Metrics) -> None:
        self._operations = operations
        self._messages = metrics.stream_messages
        self._ok = metrics.stream_messages.labels("OK")
        self._rejected = metrics.rejected_requests

    def handle(self, request: pb.StreamRequest, call: Call) -> None:
        """Whatever becomes of one message is answered, and does not end the stream."""
        kind = request.WhichOneof("request")
        item = _Item(self, call, request, kind or "")
        try:
            if kind is None:
                wanted = ", ".join(self._operations)
                raise InvalidArgument("NO_REQUEST", f"request: one of {wanted} must be given")
            if not 0 <= request.timeout_seconds < math.inf:
                raise InvalidArgument(
                    "BAD_TIMEOUT", f"timeout_seconds: must be a number of at least 0; got {request.timeout_seconds}"
                )
            handle(self._operations[kind], getattr(request, kind), item)
        except ServiceError as error:
            item.fail(error)
        except Exception:
            item.fail(internal_error("a handler failed"))

    def succeeded(self) -> None:
        self._ok.inc()

    def failed(self, error: ServiceError) -> None:
        self._messages.labels(statuses.CODES[type(error)].name).inc()
        self._rejected.labels(error.reason).inc()


class _Item:
    """A `calls.Call` of one message, whose answer carries the message's id."""

    __slots__ = (
        "_began",
        "_call",
        "_id",
        "_kind",
        "_stream",
        "caller",
        "deadline",
        "grant",
        "observation",
        "on_cancel",
    )

    def __init__(self, stream: Stream, call: Call, request: pb.StreamRequest, kind: str) -> None:
        self._stream = stream
        self._call = call
        self._id = request.id
        self._kind = kind
        self.caller = call.caller
        self.grant = call.grant
        self.deadline = call.deadline
        if request.timeout_seconds > 0:
            self.deadline = min(self.deadline, time.monotonic() + request.timeout_seconds)
        self.on_cancel = call.on_cancel
        self.observation = None if call.observation is None else call.observation.message(kind, request.id)
        self._began = 0.0 if self.observation is None else time.monotonic()

    def answer(self, build: Callable[[], Message]) -> None:
        self._call.answer(lambda: self._response(build))

    def fail(self, error: ServiceError) -> None:
        self._call.answer(lambda: self._error(error))

    def _response(self, build: Callable[[], Message]) -> Message:
        answer: dict[str, Any] = {}
        try:
            answer[self._kind] = build()
        except Exception:
            return self._error(internal_error("an answer could not be built"))
        self._stream.succeeded()
        self._observe("OK")
        return pb.StreamResponse(id=self._id, **answer)

    def _error(self, error: ServiceError) -> Message:
        self._stream.failed(error)
        rich = statuses.rich_of(error)
        self._observe(statuses.CODES[type(error)].name, error.reason)
        return pb.StreamResponse(
            id=self._id, error=pb.StreamError(code=rich.code, message=rich.message, details=rich.details)
        )

    def _observe(self, code: str, reason: str = "") -> None:
        if self.observation is not None:
            self.observation.end(code, time.monotonic() - self._began, reason)
