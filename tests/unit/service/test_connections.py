"""Connections that are ended below grpc."""

from __future__ import annotations

import socket
import sys
import threading
import time
from queue import SimpleQueue

import pytest

from service import connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked through /proc")


def test_who_is_connected_is_cut_off_who_comes_is_not_let_in_and_other_ports_are_left_alone() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(listener.getsockname(), timeout=10) as client,
        socket.create_connection(other.getsockname(), timeout=10) as other_client,
    ):
        (here, _), (elsewhere, _) = listener.accept(), other.accept()
        with here, elsewhere:
            began = time.monotonic()
            connections.end(listener.getsockname()[1], patience_s=0.1)
            assert time.monotonic() - began >= 0.1, "nobody closed it, and it was not waited for"
            assert here.recv(1) == b""
            here.sendall(b"last words")
            assert client.recv(100) == b"last words"
            with pytest.raises(TimeoutError):
                socket.create_connection(listener.getsockname(), timeout=0.2).close()
            other_client.sendall(b"as ever")
            assert elsewhere.recv(100) == b"as ever"
            socket.create_connection(other.getsockname(), timeout=10).close()


def test_where_all_is_closed_nothing_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        connections.end(listener.getsockname()[1], patience_s=30)
        connections.end(0, patience_s=30)
        assert time.monotonic() - began < 10


def test_a_connection_that_its_owner_shuts_is_waited_for_and_no_longer() -> None:
    """It is not closed yet: that it is shut is enough, as nobody can be answered on it any more."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=10),
        socket.create_connection(listener.getsockname(), timeout=10),
    ):
        shut: list[str] = []

        def own(one: socket.socket) -> None:
            assert one.recv(1) == b""
            shut.append("shut")
            one.shutdown(socket.SHUT_RDWR)

        with listener.accept()[0] as first, listener.accept()[0] as second:
            owners = [threading.Thread(target=own, args=(one,), daemon=True) for one in (first, second)]
            for owner in owners:
                owner.start()
            began = time.monotonic()
            connections.end(listener.getsockname()[1], patience_s=30)
            assert time.monotonic() - began < 10
            assert shut == ["shut", "shut"]
            for owner in owners:
                owner.join(10)


def test_somebody_whom_nobody_has_accepted_yet_is_cut_off_when_he_is() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=10),
    ):
        ending = threading.Thread(target=connections.end, args=(listener.getsockname()[1], 30), daemon=True)
        ending.start()
        assert not _ends_within(ending, 0.1)
        with listener.accept()[0] as accepted:
            accepted.settimeout(10)
            assert accepted.recv(1) == b""
            accepted.shutdown(socket.SHUT_RDWR)
            assert _ends_within(ending, 10)


def test_somebody_who_is_accepted_while_it_is_looked_is_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    state = connections._state
    accepted: SimpleQueue[socket.socket] = SimpleQueue()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=10),
    ):
        waiting = iter([listener])

        def accept_first(held: socket.socket, events: int) -> int:
            if events and (server := next(waiting, None)) is not None:
                accepted.put(server.accept()[0])  # it was not there when the open files were listed
            return state(held, events)

        monkeypatch.setattr(connections, "_state", accept_first)
        ending = threading.Thread(target=connections.end, args=(listener.getsockname()[1], 30), daemon=True)
        ending.start()
        with accepted.get(timeout=10) as late:
            late.settimeout(10)
            assert late.recv(1) == b""
            late.shutdown(socket.SHUT_RDWR)
            assert _ends_within(ending, 10)


def _ends_within(thread: threading.Thread, patience_s: float) -> bool:
    thread.join(patience_s)
    return not thread.is_alive()
