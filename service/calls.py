"""Calls and methods as the handlers see them: they do not know which server they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from service.errors import InvalidArgument, Retired, ServiceError, internal_error
from service.observation import Observation
from service.tokens import Grant


class Call(Protocol):
    """One request on its way: an RPC, or one message of a stream. `answer` or `fail` is called exactly once, from any
    thread."""

    @property
    def caller(self) -> str:
        """Who calls, for the fair shares of a batch: the same text for the same connection."""

    @property
    def grant(self) -> Grant | None:
        """What the caller may do; None where no tokens are asked for."""

    @property
    def deadline(self) -> float:
        """On the monotonic clock; infinity where the caller gave none."""

    @property
    def observation(self) -> Observation | None:
        """What is to be logged or traced of it; None for most."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback`, from any thread, when the caller goes away or the deadline passes. It may also be called
        after the answer."""

    def answer(self, build: Callable[[], Message]) -> None:
        """Answer with the message that `build` makes, in a thread of the transport's choice."""

    def fail(self, error: ServiceError) -> None:
        """Answer with an error; on a stream it ends the whole stream."""


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[M]):
    """One RPC: how to read a request, and what to do with it. `handle` may raise any error.

    Of a bidirectional `stream` every message is a call of its own, answered by one message: as soon as it can be, or,
    where they are `ordered`, when all that came before are answered. One of `control` asks about the service itself: it
    is let in when others are refused, and neither counted nor logged.
    """

    parse: Callable[[bytes], M]
    handle: Callable[[M, Call], None]
    stream: bool = False
    ordered: bool = False
    control: bool = False


def allows(call: Call, name: str) -> bool:
    """Whether the caller may ask for that model."""
    return call.grant is None or call.grant.allows(name)


def require_model(call: Call, name: str) -> None:
    """Raises PermissionDenied where the caller may not ask for that model, whether there is one or not."""
    if call.grant is not None:
        call.grant.require_model(name)


class Work(Protocol):
    """A thread that also does something else when it has nothing to do."""

    def schedule(self, step: Callable[[], bool]) -> None:
        """Call `step` in that thread, soon, and again until it returns False. Called in another thread, `step` is begun
        before what the next call schedules. An error that it raises ends the thread."""

    def schedule_idle(self, step: Callable[[], object]) -> None:
        """Call `step` in that thread, once, when there is nothing else to do, which may be never. To be called in that
        thread."""


def handle(handler: Callable[[M, Call], None], request: M, call: Call) -> None:
    """Hand a request to its handler; again where the version that it asked for was swapped in that moment."""
    while True:
        try:
            return handler(request, call)
        except Retired:
            continue


def _require_memory(size_bytes: int) -> None:
    """Raises MemoryError. protobuf calls a message broken where it had no memory for what it holds: a copy of it, and
    some more."""
    bytearray(2 * size_bytes)


def perform(method: Method[Any], request: bytes, call: Call) -> None:
    """Read a request and hand it to the method; whatever that raises is the answer."""
    try:
        try:
            message = method.parse(request)
        except DecodeError as error:
            _require_memory(len(request))
            raise InvalidArgument("BAD_MESSAGE", f"the {len(request)} bytes are not a valid request message") from error
        handle(method.handle, message, call)
    except ServiceError as error:
        call.fail(error)
    except Exception:
        call.fail(internal_error("a handler failed"))
