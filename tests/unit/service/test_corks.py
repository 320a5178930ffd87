"""Answers that leave a connection together, on connections of the test's own."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from service import connections
from service.corks import Corks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")


@dataclass(frozen=True, kw_only=True)
class Connection:
    caller: str
    server: socket.socket
    client: socket.socket

    @property
    def is_corked(self) -> bool:
        return bool(self.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))

    def write(self, corks: Corks, data: bytes) -> None:
        corks.sends(self.caller, len(data))
        self.server.sendall(data)

    def read_now(self) -> bytes:
        try:
            return self.client.recv(100, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


@pytest.fixture
def subject() -> Corks:
    return Corks()


@pytest.fixture
def connection(subject: Corks) -> Iterator[Connection]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        server, (host, port) = listener.accept()
        # As grpc does: a small write is not to wait for the answer to the one before.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        subject.port = listener.getsockname()[1]
        with server:
            yield Connection(caller=f"ipv4:{host}:{port}", server=server, client=client)


def test_answers_of_one_turn_leave_together(subject: Corks, connection: Connection) -> None:
    for _ in range(3):
        subject.owes(connection.caller)
    connection.write(subject, b"one")
    connection.write(subject, b"two")
    assert connection.read_now() == b""
    subject.release()
    assert not connection.is_corked
    assert connection.client.recv(100) == b"onetwo"
    connection.write(subject, b"three")
    assert connection.read_now() == b"three", "it was the last"
    assert not subject.corked


def test_a_lone_answer_is_not_held_back(subject: Corks, connection: Connection) -> None:
    for word in (b"one", b"two"):
        subject.owes(connection.caller)
        connection.write(subject, word)
        assert connection.read_now() == word
        assert not subject.corked


def test_a_large_answer_waits_for_none_and_takes_along_what_waits(subject: Corks, connection: Connection) -> None:
    for _ in range(4):
        subject.owes(connection.caller)
    connection.write(subject, b"one")
    assert connection.is_corked
    connection.write(subject, bytes(20_000))
    assert not connection.is_corked
    assert connection.client.recv(20_003, socket.MSG_WAITALL) == b"one" + bytes(20_000)
    connection.write(subject, b"three")
    assert connection.is_corked
    subject.release()


def test_a_connection_that_is_not_known_is_looked_for_now_and_then(
    subject: Corks, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look(port: int, *, most_files: int) -> dict[str, int]:
        looks.append(port)
        raise OSError("too many open files")

    now = 100.0
    monkeypatch.setattr(connections, "files", look)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for number in range(5):
        for _ in range(2):
            subject.owes(f"ipv4:127.0.0.1:{number}")
        subject.sends(f"ipv4:127.0.0.1:{number}", 10)
    subject.release()
    assert len(looks) == 1
    now += 2
    subject.owes("unix:")
    subject.owes("unix:")
    subject.sends("unix:", 10)
    assert len(looks) == 2


def test_a_file_that_was_closed_is_forgotten(subject: Corks, connection: Connection) -> None:
    for _ in range(4):
        subject.owes(connection.caller)
    connection.write(subject, b"one")
    subject.release()
    with open(os.devnull, "wb") as other:
        number = connection.server.detach()
        os.dup2(other.fileno(), number)  # closes it, and has another file under its number
        subject.sends(connection.caller, 10)
        subject.release()
        subject.sends(connection.caller, 10)
        assert subject.corked == {connection.caller: None}
        subject.release()
        os.close(number)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("family", "host", "target", "named"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::", "127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::1", "::1", "ipv6:%5B::1%5D:{}"),
    ],
)
def test_connections_are_named_as_grpc_names_them(
    family: socket.AddressFamily, host: str, target: str, named: str
) -> None:
    if family == socket.AF_INET6 and not _has_ipv6():
        pytest.skip("this machine has no address of IPv6")
    with (
        socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listener,
        socket.create_connection((target, listener.getsockname()[1])) as client,
    ):
        server, _ = listener.accept()
        with server:
            port = listener.getsockname()[1]
            assert connections.files(port, most_files=4096) == {named.format(client.getsockname()[1]): server.fileno()}
            assert connections.files(port, most_files=3) == {}
            assert connections.files(0, most_files=4096) == {}
