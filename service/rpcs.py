"""The RPCs of the fast transport, as its loop knows them, and unary calls; `service.stream_rpcs` has the streams.

All of it is touched by the loop's thread alone, but for `answer`, `fail` and `on_cancel`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import Message
from grpc import _common
from grpc._cython import cygrpc

from service.admission import Admission
from service.calls import Method, perform
from service.corks import Corks
from service.errors import Cancelled, ServiceError, internal_error
from service.guard import Guard
from service.observation import Observation, Observer
from service.tokens import Grant
from service.transport import Limits, Meter

if TYPE_CHECKING:
    from service.stream_rpcs import StreamRpc

log = logging.getLogger(__name__)

_OK = cygrpc.StatusCode.ok
Event = Any


class Loop(Protocol):
    """The thread that the RPCs live in."""

    admission: Admission
    corks: Corks
    guard: Guard | None
    limits: Limits
    observer: Observer
    draining: bool
    # Streams that are not over.
    streams: set[StreamRpc]
    # Calls that do not listen for their caller's leaving yet, the oldest first.
    unwatched: dict[UnaryRpc, None]
    # Calls that do listen, and whose message has not come yet, the oldest first.
    unread: dict[UnaryRpc, None]

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's thread."""

    def post(self, call: Any, action: Callable[[], None]) -> None:
        """Have `action` done by the loop; `call` is grpc's, and carries the wake-up."""

    def hold(self, rpc: Rpc) -> None:
        """A stop waits for it."""

    def let_go(self, rpc: Rpc) -> None: ...


class Rpc:
    """What the loop knows of one RPC. Touched by the loop alone.

    It stays in the server's `rpc_states`, which a stop waits for, until it was answered and no operation is under way.
    """

    __slots__ = (
        "_admitted", "_answered", "_call", "_cancelled", "_held", "_loop", "_metadata", "_meter", "_method", "_pending",
        "began", "caller", "deadline", "grant", "observation",
    )  # fmt: skip

    def __init__(self, loop: Loop, method: Method[Any], meter: Meter, event: Event) -> None:
        self._loop = loop
        self._method = method
        self._meter = meter
        self._call = event.call
        self._pending = 0
        self._answered = False
        self._cancelled = False
        self._admitted = False
        self._metadata = () if loop.guard is None else event.invocation_metadata
        self.grant: Grant | None = None
        self.began = time.monotonic()
        self.caller: str = event.call.peer().decode()
        self.deadline: float = self.began + (event.call_details.deadline - time.time())
        self.observation: Observation | None = None
        if loop.observer.active and not method.control:
            self.observation = loop.observer.begin(
                meter.method, event.invocation_metadata, self.caller, stream=method.stream
            )
        self._held = True
        loop.hold(self)

    def _start(self, operations: tuple[Any, ...], tag: Callable[[Event], None]) -> bool:
        """Start operations, of whose end the loop tells `tag`. False where they cannot be: then no event comes."""
        if self._call.start_server_batch(operations, tag) != cygrpc.CallError.ok:
            return False
        self._pending += 1
        return True

    def _enter(self) -> bool:
        """Whether the RPC is let in; else it is answered."""
        try:
            if self._loop.guard is not None:
                self.grant = self._loop.guard.admit(self._meter.method, self._metadata)
                if self.observation is not None and self.grant is not None:
                    self.observation.token = self.grant.name
            if not self._method.control:
                self._loop.admission.enter()
        except ServiceError as error:
            self._end_with(error)
            return False
        self._admitted = True
        return True

    def _end_with(self, error: ServiceError) -> None:
        raise NotImplementedError

    def _succeeded(self) -> Any:
        """Counts the RPC; the operation that ends it."""
        observation = self.observation
        self._meter.succeeded(self.began, observation)
        trailing_metadata = None if observation is None else observation.trailing_metadata
        return cygrpc.SendStatusFromServerOperation(trailing_metadata, _OK, b"", 0)

    def _failed(self, error: ServiceError) -> Any:
        """As `_succeeded`."""
        status = self._meter.failed(error, self.began, self.observation)
        code = _common.STATUS_CODE_TO_CYGRPC_STATUS_CODE[status.code]
        return cygrpc.SendStatusFromServerOperation(status.trailing_metadata, code, status.details.encode(), 0)

    def _retire(self) -> None:
        if self._pending or not self._answered or not self._held:
            return
        self._held = False
        self._loop.let_go(self)
        if self._admitted and not self._method.control:
            self._loop.admission.leave()


class UnaryRpc(Rpc):
    """A unary call; a `calls.Call`."""

    __slots__ = ("_callbacks", "_has_message")

    def begin(self) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self._has_message = False
        self._loop.corks.owes(self.caller)
        if not self._enter():
            return
        self._loop.unwatched[self] = None
        if not self._start((cygrpc.ReceiveMessageOperation(0),), self._on_message):
            self._end_with(internal_error("grpc took no operation"))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if self._cancelled:
            callback()
        else:
            self._callbacks.append(callback)

    def answer(self, build: Callable[[], Message]) -> None:
        if self._loop.is_here:
            self._answer(build)
        else:
            self._loop.post(self._call, lambda: self._answer(build))

    def fail(self, error: ServiceError) -> None:
        if self._loop.is_here:
            self._end_with(error)
        else:
            self._loop.post(self._call, lambda: self._end_with(error))

    def watch(self) -> None:
        """The call lives long: listen for its caller's leaving, and see that its message comes."""
        self._loop.unwatched.pop(self, None)
        if not self._has_message:
            self._loop.unread[self] = None
        self._start((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)

    def refuse_to_wait(self) -> None:
        """The message has not come in time. What ends the call ends the wait for it too."""
        self._end_with(self._loop.limits.no_message())

    def _on_message(self, event: Event) -> None:
        self._pending -= 1
        self._has_message = True
        self._loop.unread.pop(self, None)
        request = event.batch_operations[0].message()
        if self._answered:
            self._retire()
        elif request is None:
            # Also what a caller that is gone already looks like.
            self._end_with(Cancelled("CANCELLED", "the call ended without a message"))
        else:
            perform(self._method, request, self)

    def _on_close(self, event: Event) -> None:
        self._pending -= 1
        if event.batch_operations[0].cancelled():
            self._cancelled = True
            for callback in tuple(self._callbacks):
                callback()
        self._retire()

    def _answer(self, build: Callable[[], Message]) -> None:
        try:
            message = build().SerializeToString()
        except ServiceError as error:
            self._end_with(error)
            return
        except Exception:
            self._end_with(internal_error("an answer could not be built"))
            return
        self._send(
            len(message),
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(message, 0),
            self._succeeded(),
        )

    def _end_with(self, error: ServiceError) -> None:
        self._send(0, cygrpc.SendInitialMetadataOperation(None, 0), self._failed(error))

    def _send(self, message_bytes: int, *operations: Any) -> None:
        if self._answered:
            log.error("this is a bug: a call was answered twice")
            return
        self._answered = True
        self._loop.unwatched.pop(self, None)
        self._loop.unread.pop(self, None)
        self._loop.corks.sends(self.caller, message_bytes)
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        self._callbacks.clear()
        if not self._start(operations, self._on_sent):
            self._retire()

    def _on_sent(self, event: Event) -> None:
        self._pending -= 1
        self._retire()
