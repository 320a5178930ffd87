"""Limits of connections, on both transports."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value

from tests.unit.service.test_transport import LIMITS, SERVICE, WAIT_S, Harness, answer_now, kind, square_of

__all__ = ["kind"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING = 4, 6
OK = grpc.StatusCode.OK


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The frames that come, until the connection ends."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            yield head[3], stream.read(int.from_bytes(head[:3], "big"))


def test_connections_beyond_the_limit_are_closed_and_the_others_serve(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, max_connections=3))
    subject.on_call = answer_now
    assert subject.square(Int64Value(value=2), timeout=WAIT_S).value == 4
    with subject.connect() as second, subject.connect() as third:
        for channel in (second, third):
            assert square_of(channel)(Int64Value(value=2), timeout=WAIT_S).value == 4
        with subject.connect() as fourth, pytest.raises(grpc.RpcError) as caught:
            square_of(fourth)(Int64Value(value=2), timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert subject.square(Int64Value(value=3), timeout=WAIT_S).value == 9
    subject.calls.clear()
    subject.close()


def test_headers_beyond_the_limit_are_refused_and_below_it_are_not(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, max_header_bytes=8000))
    subject.on_call = answer_now
    for _ in range(20):  # none by chance
        assert subject.square(Int64Value(value=2), timeout=WAIT_S, metadata=[("x", "y" * 7000)]).value == 4
    with pytest.raises(grpc.RpcError) as caught:
        subject.square(Int64Value(value=2), timeout=WAIT_S, metadata=[("x", "y" * 8000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "metadata size" in (caught.value.details() or "")
    subject.calls.clear()
    subject.close()


def test_calls_beyond_the_limit_of_a_connection_never_come_and_the_others_are_answered(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, max_connection_streams=2), threads=8)
    futures = [subject.square.future(Int64Value(value=value), timeout=WAIT_S) for value in range(5)]
    for _ in range(2):
        assert subject.came.acquire(timeout=WAIT_S)
    assert not subject.came.acquire(timeout=0.3)
    inside = sorted(value for value, _ in subject.calls)
    with subject.connect() as other:  # another connection has a limit of its own
        subject.on_call = answer_now
        assert square_of(other)(Int64Value(value=9), timeout=WAIT_S).value == 81
    subject.calls.pop()
    subject.answer_all()
    assert sorted(futures[value].result().value for value in inside) == [value * value for value in inside]
    assert {future.code() for future in futures} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    subject.calls.clear()
    subject.close()


def test_a_client_that_is_silent_is_asked_and_then_left(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, keepalive_s=1.0))
    with socket.create_connection(("127.0.0.1", subject.port), timeout=WAIT_S) as connection:
        connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1))
        kinds = [kind for kind, _ in frames(connection)]  # until the service ends it
    assert PING in kinds
    subject.close()


def test_a_call_whose_message_does_not_come_is_ended_and_leaves_its_place(kind: str) -> None:
    subject = Harness(kind, threads=1, limits=replace(LIMITS, max_concurrent_requests=1, receive_timeout_s=0.3))
    subject.on_call = answer_now
    never: SimpleQueue[Int64Value | None] = SimpleQueue()
    slow: Any = subject.channel.stream_unary(f"/{SERVICE}/Square", Int64Value.SerializeToString, Int64Value.FromString)
    call = slow.future(iter(never.get, None))
    assert call.exception(WAIT_S) is not None
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "--receive-timeout-s=0.3 s" in call.details()
    until = time.monotonic() + WAIT_S
    while (last := square_of(subject.channel).future(Int64Value(value=3), timeout=WAIT_S)).code() is not OK:
        assert last.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # its place is another's a moment later
        assert time.monotonic() < until
    assert last.result().value == 9
    rejected = {"reason": "MESSAGE_TIMEOUT"}
    assert subject.registry.get_sample_value("autoencoder_rejected_requests_total", rejected) == 1
    never.put(Int64Value(value=5))  # too late, for nobody
    never.put(None)
    subject.calls.clear()
    subject.close()


def test_a_message_that_takes_its_time_is_waited_for(kind: str) -> None:
    subject = Harness(kind, limits=replace(LIMITS, receive_timeout_s=WAIT_S))
    subject.on_call = answer_now
    leave = threading.Event()

    def late() -> Iterator[Int64Value]:
        leave.wait(WAIT_S)
        yield Int64Value(value=6)

    slow: Any = subject.channel.stream_unary(f"/{SERVICE}/Square", Int64Value.SerializeToString, Int64Value.FromString)
    call = slow.future(late())
    for _ in range(3):
        assert subject.square(Int64Value(value=3), timeout=WAIT_S).value == 9
    leave.set()
    assert call.result(WAIT_S).value == 36
    subject.calls.clear()
    subject.close()
