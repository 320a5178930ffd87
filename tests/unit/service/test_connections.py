"""Connections that are ended below grpc."""

from __future__ import annotations

import socket
import sys
import time

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
