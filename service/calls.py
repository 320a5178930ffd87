"""Calls and methods as the handlers see them: they do not know which server they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from service.errors import ServiceError


class Call(Protocol):
    """One RPC on its way. `answer` or `fail` is called exactly once, from any thread."""

    @property
    def caller(self) -> str:
        """Who calls, for the fair shares of a batch: the same text for the same connection."""

    @property
    def deadline(self) -> float:
        """On the monotonic clock; infinity where the caller gave none."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback`, from any thread, when the caller goes away or the deadline passes. It may also be called
        after the answer."""

    def answer(self, build: Callable[[], Message]) -> None:
        """Answer with the message that `build` makes, in a thread of the transport's choice."""

    def fail(self, error: ServiceError) -> None:
        """Answer with an error."""


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[M]):
    """One unary RPC: how to read a request, and what to do with it. `handle` may raise any error."""

    parse: Callable[[bytes], M]
    handle: Callable[[M, Call], None]
