"""The access log on both transports: what a line tells, how many there are, and the id that goes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int64Value

from service import tokens
from service.calls import Call
from service.errors import NotFound
from service.guard import Guard
from service.observation import Observer, caller_of
from service.tokens import Tokens
from tests.unit.service.test_transport import KINDS, SERVICE, WAIT_S, Harness

UNKNOWN = -1


class Lines(logging.Handler):
    """The lines of the access log at a level that the test sets, without a root logger."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._logger = logging.getLogger("service.access")

    def __enter__(self) -> Lines:
        self._logger.addHandler(self)
        self.level_is(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self.level_is(logging.NOTSET)

    def level_is(self, level: int) -> None:
        self._logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def facts(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(getattr(record, name, None) for name in names) for record in self.records]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with Lines() as handler:
        yield handler


def answer(request: Int64Value, call: Call) -> None:
    if call.observation is not None:
        call.observation.asks("digits", 3, 2)
        call.observation.ran(queue_s=0.25, compute_s=0.5, batch_rows=7)
    if request.value == UNKNOWN:
        call.fail(NotFound("NO_MODEL", "there is no model"))
    else:
        call.answer(lambda: request)


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest, lines: Lines, tmp_path: Path) -> Iterator[Harness]:
    file = tmp_path / "tokens.toml"
    file.write_text(tokens.table("nightly", "secret", allow=["infer"], models=["*"]))
    harness = Harness(request.param, guard=Guard(Tokens(file)), observer=Observer(access_log_share=1.0))
    harness.on_call = answer
    yield harness
    harness.calls.clear()
    harness.close()


def call(harness: Harness, value: int = 3, request_id: str | None = None, token: str = "secret") -> tuple[str, Any]:
    """The status, and the request id that came back."""
    metadata = [("authorization", f"Bearer {token}")]
    if request_id is not None:
        metadata.append(("x-request-id", request_id))
    future = harness.square.future(Int64Value(value=value), timeout=WAIT_S, metadata=metadata)
    return future.code().name, dict(future.trailing_metadata()).get("x-request-id")


def test_a_line_tells_who_asked_for_what_and_how_it_went(harness: Harness, lines: Lines) -> None:
    assert call(harness, request_id="order-17.a") == ("OK", "order-17.a")
    assert call(harness, UNKNOWN, request_id="order-18") == ("NOT_FOUND", "order-18")
    method = f"/{SERVICE}/Square"
    assert lines.facts("msg", "method", "status", "reason", "caller", "token", "request_id") == [
        ("call", method, "OK", None, "127.0.0.1", "nightly", "order-17.a"),
        ("call", method, "NOT_FOUND", "NO_MODEL", "127.0.0.1", "nightly", "order-18"),
    ]
    assert lines.facts("model", "version", "rows", "queue_s", "compute_s", "batch_rows")[0] == (
        "digits", 3, 2, 0.25, 0.5, 7,
    )  # fmt: skip
    assert 0 < lines.records[0].duration_s < WAIT_S  # type: ignore[attr-defined]


def test_a_caller_that_is_not_let_in_is_told_too(harness: Harness, lines: Lines) -> None:
    assert call(harness, token="stolen")[0] == "UNAUTHENTICATED"
    assert lines.facts("status", "reason", "token", "model") == [("UNAUTHENTICATED", "UNKNOWN_TOKEN", None, None)]


@pytest.mark.parametrize("given", [None, "", "a b", 'x"y', "x" * 129])
def test_an_id_that_is_not_well_formed_is_replaced(harness: Harness, lines: Lines, given: str | None) -> None:
    status, request_id = call(harness, request_id=given)
    assert status == "OK"
    assert request_id != given
    assert len(request_id) == 32
    assert lines.facts("request_id") == [(request_id,)]


def test_a_stream_ends_with_a_line(harness: Harness, lines: Lines) -> None:
    metadata = [("authorization", "Bearer secret"), ("x-request-id", "bulk")]
    stream = harness.squares(iter([Int64Value(value=2)]), timeout=WAIT_S, metadata=metadata)
    assert [message.value for message in stream] == [2]
    assert dict(stream.trailing_metadata())["x-request-id"] == "bulk"
    assert lines.facts("method", "status", "request_id", "token") == [(f"/{SERVICE}/Squares", "OK", "bulk", "nightly")]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_drawn_has_neither_line_nor_id_until_the_level_is_debug(kind: str, lines: Lines) -> None:
    observer = Observer()
    harness = Harness(kind, observer=observer)
    harness.on_call = answer
    try:
        assert call(harness) == ("OK", None)
        assert not observer.active
        for level, count in ((logging.DEBUG, 1), (logging.INFO, 1), (logging.DEBUG, 2)):
            lines.level_is(level)
            observer.look()
            call(harness)
            assert len(lines.records) == count
    finally:
        harness.calls.clear()
        harness.close()


def test_the_share_of_requests_that_was_asked_for_is_observed(lines: Lines) -> None:
    observer = Observer(access_log_share=0.25)
    observed = sum(observer.begin("/s/M", [], "unix:", stream=False) is not None for _ in range(4000))
    assert abs(observed - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    lines.level_is(logging.WARNING)
    observer.look()
    assert not observer.active


def test_messages_of_a_stream_are_drawn_each_alone(lines: Lines) -> None:
    observer = Observer(access_log_share=0.5)
    stream = observer.begin("/s/Stream", [("x-request-id", "bulk")], "ipv4:10.0.0.1:5", stream=True)
    assert stream is not None
    messages = [stream.message("encode", str(number)) for number in range(1000)]
    drawn = [message for message in messages if message is not None]
    assert 400 < len(drawn) < 600
    assert {(message.method, message.caller) for message in drawn} == {("/s/Stream/encode", "10.0.0.1")}
    assert len({message.request_id for message in drawn}) == len(drawn)
    assert drawn[0].request_id.startswith("bulk/")


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.1:4242", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4242", "2001:db8::1"),
        ("ipv6:[::1]:4242", "::1"),
        ("unix:", "unix"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_caller_has_no_port(peer: str, caller: str) -> None:
    assert caller_of(peer) == caller
