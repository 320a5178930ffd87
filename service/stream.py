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
        self._counts = Counts(metrics)

    def handle(self, request: pb.StreamRequest, call: Call) -> None:
        """Whatever becomes of one message is answered, and does not end the stream."""
        kind = request.WhichOneof("request")
        item = _Item(call, self._counts, request.id, kind or "")
        try:
            if kind is None:
                wanted = ", ".join(self._operations)
                raise InvalidArgument("NO_REQUEST", f"request: one of {wanted} must be given")
            if not 0 <= request.timeout_seconds < math.inf:
                raise InvalidArgument(
                    "BAD_TIMEOUT", f"timeout_seconds: must be a number of at least 0; got {request.timeout_seconds}"
                )
            if request.timeout_seconds > 0:
                item.deadline = min(item.deadline, time.monotonic() + request.timeout_seconds)
            handle(self._operations[kind], getattr(request, kind), item)
        except ServiceError as error:
            item.fail(error)
        except Exception:
            item.fail(internal_error("a handler failed"))


class Counts:
    """What became of the messages of streams."""

    def __init__(self, metrics: Metrics) -> None:
        self._messages = metrics.stream_messages
        self._ok = metrics.stream_messages.labels("OK")
        self._rejected = metrics.rejected_requests

    def succeeded(self) -> None:
        self._ok.inc()

    def failed(self, error: ServiceError) -> None:
        self._messages.labels(statuses.CODES[type(error)].name).inc()
        self._rejected.labels(error.reason).inc()


class Item:
    """A `calls.Call` of one message of a stream, whose error is an answer too. A subclass says how both look."""

    __slots__ = ("_began", "_call", "_counts", "caller", "deadline", "grant", "observation", "on_cancel")

    def __init__(self, call: Call, counts: Counts, kind: str, identity: str) -> None:
        self._call = call
        self._counts = counts
        self.caller = call.caller
        self.grant = call.grant
        self.deadline = call.deadline
        self.on_cancel = call.on_cancel
        self.observation = None if call.observation is None else call.observation.message(kind, identity)
        self._began = 0.0 if self.observation is None else time.monotonic()

    def _response(self, message: Message) -> Message:
        raise NotImplementedError

    def _failure(self, error: ServiceError) -> Message:
        raise NotImplementedError

    def answer(self, build: Callable[[], Message]) -> None:
        self._call.answer(lambda: self._built(build))

    def fail(self, error: ServiceError) -> None:
        self._call.answer(lambda: self._failed(error))

    def _built(self, build: Callable[[], Message]) -> Message:
        try:
            message = self._response(build())
        except Exception:
            return self._failed(internal_error("an answer could not be built"))
        self._counts.succeeded()
        self._observe("OK")
        return message

    def _failed(self, error: ServiceError) -> Message:
        self._counts.failed(error)
        self._observe(statuses.CODES[type(error)].name, error.reason)
        return self._failure(error)

    def _observe(self, code: str, reason: str = "") -> None:
        if self.observation is not None:
            self.observation.end(code, time.monotonic() - self._began, reason)


class _Item(Item):
    """Of our own Stream: the answer carries the message's id."""

    __slots__ = ("_id", "_kind")

    def __init__(self, call: Call, counts: Counts, identity: int, kind: str) -> None:
        super().__init__(call, counts, kind, str(identity))
        self._id = identity
        self._kind = kind

    def _response(self, message: Message) -> Message:
        response = pb.StreamResponse(id=self._id)
        getattr(response, self._kind).CopyFrom(message)
        return response

    def _failure(self, error: ServiceError) -> Message:
        rich = statuses.rich_of(error)
        return pb.StreamResponse(
            id=self._id, error=pb.StreamError(code=rich.code, message=rich.message, details=rich.details)
        )
