"""What is told of single requests: a line of the access log, a trace. Nothing is done for those that are not observed.

A transport asks its `Observer` at the beginning of an RPC, where that is `active`, for an `Observation`; whoever knows
a fact of the request notes it there, and the transport ends it with the status.
"""

from __future__ import annotations

import logging
import random
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import unquote

log = logging.getLogger("service.access")

REQUEST_ID = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_MOST_IDENTITY = 64

Metadata = Iterable[tuple[str, str | bytes]]


class Trace(Protocol):
    """The span of a request that is recorded."""

    @property
    def trace_id(self) -> str: ...

    def message(self, name: str) -> Trace | None:
        """The span of one message of this stream; None where it is not recorded."""

    def ran(self, parts: Sequence[TracedPart], *, operation: str, row_count: int, began: float, ended: float) -> None:
        """A batch of `row_count` rows was run with rows of all `parts`, of which the first is this span's. Monotonic
        clock."""

    def end(self, observation: Observation, code: str) -> None: ...


class TracedPart(NamedTuple):
    """Rows of a request in a batch. `admitted_at`: None where earlier rows were in an earlier batch."""

    trace: Trace
    admitted_at: float | None
    begun_at: float


class Tracer(Protocol):
    def begin(self, method: str, metadata: Metadata) -> Trace | None:
        """The span of an RPC, under that of its caller; None where it is not recorded."""

    def stop(self) -> None:
        """Send what was recorded."""


@dataclass(eq=False, kw_only=True, slots=True)
class Observation:
    """The facts of one request. `rows`: those that were run for it; an interpolation runs its ends and its points."""

    observer: Observer
    method: str
    caller: str
    request_id: str
    level: int | None  # of its line in the log; None for no line
    trace: Trace | None
    token: str = ""
    model: str = ""
    version: int = 0
    rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 0

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((REQUEST_ID, self.request_id),)

    def asks(self, model: str, version: int, rows: int) -> None:
        self.model, self.version = model, version
        self.rows += rows

    def ran(self, *, queue_s: float, compute_s: float, batch_rows: int) -> None:
        self.queue_s += queue_s
        self.compute_s += compute_s
        self.batch_rows = max(self.batch_rows, batch_rows)

    def message(self, kind: str, identity: str) -> Observation | None:
        """One message of this stream, `identity` by its client; None where nothing is told of it."""
        name = f"{self.method}/{kind}"
        trace = None if self.trace is None else self.trace.message(name)
        request_id = f"{self.request_id}/{identity[:_MOST_IDENTITY]}"
        return self.observer.observe(name, self.caller, request_id, trace=trace, token=self.token, always=False)

    def end(self, code: str, duration_s: float, reason: str = "") -> None:
        """It was answered with the gRPC status `code`, for an error's `reason`, `duration_s` after it came."""
        if self.trace is not None:
            self.trace.end(self, code)
        if self.level is None:
            return
        facts: dict[str, object] = {"method": self.method, "status": code, "duration_s": round(duration_s, 6)}
        if reason:
            facts["reason"] = reason
        if self.model:
            facts |= {
                "model": self.model,
                "version": self.version,
                "rows": self.rows,
                "queue_s": round(self.queue_s, 6),
                "compute_s": round(self.compute_s, 6),
                "batch_rows": self.batch_rows,
            }
        facts |= {"caller": self.caller, "request_id": self.request_id}
        if self.token:
            facts["token"] = self.token
        if self.trace is not None:
            facts["trace_id"] = self.trace.trace_id
        log.log(self.level, "call", extra=facts)


class Observer:
    """Decides which requests are observed: `access_log_share` of them, 0 to 1, drawn by chance, and those that `tracer`
    records; at the log level debug all."""

    def __init__(self, *, access_log_share: float = 0.0, tracer: Tracer | None = None) -> None:
        self._share = access_log_share
        self._tracer = tracer
        self._random = random.Random()
        self.look()

    def look(self) -> None:
        """The log level has changed."""
        self._all = log.isEnabledFor(logging.DEBUG)
        self._some = self._share > 0 and log.isEnabledFor(logging.INFO)
        self.active = self._all or self._some or self._tracer is not None

    def begin(self, method: str, metadata: Metadata, peer: str, *, stream: bool) -> Observation | None:
        """An RPC has come, to `/service/method`, from gRPC's `peer`. Of a `stream` there is always one, for its
        messages."""
        trace = None if self._tracer is None else self._tracer.begin(method, metadata)
        given = next((value for key, value in metadata if key == REQUEST_ID), None)
        well_formed = isinstance(given, str) and _WELL_FORMED.fullmatch(given)
        return self.observe(method, caller_of(peer), str(given) if well_formed else "", trace=trace, always=stream)

    def observe(
        self, method: str, caller: str, request_id: str, *, trace: Trace | None, always: bool, token: str = ""
    ) -> Observation | None:
        level = None
        if self._some and self._random.random() < self._share:
            level = logging.INFO
        elif self._all:
            level = logging.DEBUG
        if level is None and trace is None and not always:
            return None
        return Observation(
            observer=self,
            method=method,
            caller=caller,
            request_id=request_id or uuid.uuid4().hex,
            level=level,
            trace=trace,
            token=token,
        )

    def stop(self) -> None:
        if self._tracer is not None:
            self._tracer.stop()


def caller_of(peer: str) -> str:
    """The address in gRPC's name of a peer, without the port: `ipv4:10.0.0.1:4242`, `ipv6:%5B::1%5D:4242`, `unix:`."""
    scheme, _, address = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return peer.rstrip(":")
    return unquote(address).rpartition(":")[0].strip("[]")
