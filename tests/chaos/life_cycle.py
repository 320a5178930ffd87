"""The service is reloaded, stopped and killed under load."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from hourglass import AdminClient, HourglassError, Unavailable
from tests import tiny
from tests.chaos.load import CALL_S, Load, assert_clean_end, assert_serves, wait_until
from tests.integration.serving import ServerProcess
from tests.integration.test_workers import pids

# What a caller is told whose request was not run: by the service by name, or by nobody being there. All but the second
# are calls that are sent as the connections close, when everything that was let in has been answered.
_NOT_RUN = ("the service is stopping", "Connection refused", "Socket closed", "Broken pipe", "Connection reset")


def reloads(folder: Path, count: int) -> dict[str, float]:
    """Load again and swap what serves, so many times. Nobody tries twice."""
    tiny.write(folder)
    with ServerProcess(folder, "--admin-address", "127.0.0.1:0") as server:
        address = str(server.wait_for("administrators are listened to")["address"])
        with Load(server.address) as load, AdminClient(address) as admin:
            for _ in range(count):
                admin.reload("tiny", timeout_s=CALL_S)
                load.wait_for_more(5)
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures


def stops_of_one_of_two(folder: Path, count: int) -> dict[str, float]:
    """SIGTERM for one of two servers, which is then started again; so many times, in turn. Clients try again."""
    tiny.write(folder)
    with ExitStack() as stack:
        ports = free_ports(2)
        servers = [stack.enter_context(ServerProcess(folder, "--port", str(port))) for port in ports]
        both = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        with Load(both, attempts=5) as load:
            for number in range(count):
                turn = number % 2
                stop(servers[turn])
                load.wait_for_more(10)
                servers[turn] = stack.enter_context(ServerProcess(folder, "--port", str(ports[turn])))
                load.wait_for_more(10)
        for server in servers:
            assert_serves(server.address)
    return load.figures


def stops_without_retries(folder: Path, count: int) -> dict[str, float]:
    """SIGTERM under load and a start again, so many times. Nobody tries twice, and who is refused goes on without a pause:
    what is not answered was not run, and is UNAVAILABLE."""
    tiny.write(folder)
    (port,) = free_ports(1)
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(folder, "--port", str(port)))
        with Load(server.address, may_refuse=was_not_run) as load:
            for _ in range(count):
                stop(server)
                server = stack.enter_context(ServerProcess(folder, "--port", str(port)))
                load.wait_for_more(30)
        assert_serves(server.address)
    assert load.refused, "no stop met a request"
    by_name = sum(number for what, number in load.refused.items() if "the service is stopping" in what)
    return load.figures | {"not run, by name": by_name}


def workers_killed(folder: Path, count: int) -> dict[str, float]:
    """SIGKILL for a worker, which is replaced; so many times, in turn. Clients try again."""
    tiny.write(folder)
    with ServerProcess(folder, "--workers", "2") as server:
        back_s = []
        with Load(server.address, attempts=5) as load:
            for number in range(count):
                began = time.monotonic()
                os.kill(pids(server)[number % 2], signal.SIGKILL)
                server.wait_for("worker died", count=number + 1)
                load.wait_for_more(20)
                server.wait_for("worker ready", count=3 + number)
                wait_until(lambda: server.metric("autoencoder_workers") == 2, "the worker is not replaced")
                back_s.append(time.monotonic() - began)
        assert server.metric("autoencoder_worker_restarts_total") == count
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"longest s until replaced": max(back_s)}


def stop(server: ServerProcess) -> None:
    server.stop()
    assert_clean_end(server)


def was_not_run(error: HourglassError) -> bool:
    return isinstance(error, Unavailable) and (
        error.reason in ("DRAINING", "LOADING") or any(text in str(error) for text in _NOT_RUN)
    )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(held.getsockname()[1]) for held in sockets]
