"""Several processes on one port: as one service, whatever becomes of each."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import AdminClient, Client, HourglassError
from service import threads
from tests import tiny
from tests.integration.serving import ROOT, ServerProcess
from tests.integration.test_admin import admin_address
from tests.integration.test_service import TIMEOUT_S, TINY, array, assert_close, tensor

WAIT_S = 60.0
ENCODED = 'autoencoder_rpc_requests_total{code="OK",method="/autoencoder.v1.AutoencoderService/Encode"}'


@pytest.fixture
def server(tiny_models: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_models, "--workers", "2") as process:
        yield process
    assert process.process.returncode == 0
    assert not process.other_lines, "everything on stderr is a log line"


def pids(server: ServerProcess) -> dict[int, int]:
    """The process of each worker, by its number."""
    return {event["worker"]: event["pid"] for event in server.events if event["event"] == "worker ready"}


def wait_until_metric(server: ServerProcess, line_start: str, value: float) -> None:
    until = time.monotonic() + WAIT_S
    while server.metric(line_start) != value:
        assert time.monotonic() < until, server.get("/metrics")[1]


def test_all_workers_serve_and_their_metrics_are_added_up(server: ServerProcess) -> None:
    assert server.metric("autoencoder_workers") == 2
    assert server.get("/readyz")[0] == 200
    rows = tiny.rows(3)
    calls = 40
    for _ in range(calls):  # a connection each, which the kernel spreads
        with server.channel() as channel:
            response = AutoencoderServiceStub(channel).Encode(
                pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S
            )
        assert_close(array(response.latents), tiny.encode(rows))
    assert server.metric(ENCODED) == calls
    assert server.metric('autoencoder_rows_total{model="tiny",operation="encode",version="2"}') == 3 * calls
    assert server.metric('autoencoder_model_ready{model="tiny",version="2"}') == 1
    for pid in pids(server).values():
        assert Path(f"/proc/{pid}/stat").read_text()
        busy = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11])
        assert busy > 0


def test_a_worker_that_dies_is_replaced_and_retrying_clients_do_not_notice(server: ServerProcess) -> None:
    rows = tiny.rows(5)
    victim = pids(server)[1]
    with ThreadPoolExecutor(4) as pool, Client(server.address) as client:

        def call(number: int) -> None:
            if number == 100:
                os.kill(victim, signal.SIGKILL)
            assert_close(client.encode("tiny", rows, timeout_s=TIMEOUT_S), tiny.encode(rows))

        list(pool.map(call, range(400)))
    died = server.wait_for("worker died")
    assert (died["worker"], died["exit_code"]) == (1, -signal.SIGKILL)
    wait_until_metric(server, "autoencoder_workers", 2)
    assert server.metric("autoencoder_worker_restarts_total") == 1
    assert pids(server)[1] != victim


def test_what_a_new_worker_cannot_load_others_may_have(tmp_path: Path) -> None:
    tiny.write(tmp_path)  # which nobody is to serve in the other's place
    package = tiny.write(tmp_path, version=2)
    tiny.write(tmp_path, "plain", denoises=False)
    arguments = ("--workers", "2", "--versions", "latest:1", "--admin-address", "127.0.0.1:0")
    whole = (package / "encoder.onnx").read_bytes()
    with ServerProcess(tmp_path, *arguments) as server:
        (package / "encoder.onnx").write_bytes(b"broken")
        os.kill(pids(server)[1], signal.SIGKILL)
        wait_until_metric(server, "autoencoder_worker_restarts_total", 1)
        wait_until_metric(server, "autoencoder_workers", 2)
        said = set()
        for number in range(90):  # a connection each, which the kernel spreads
            with server.channel() as channel:
                stub = AutoencoderServiceStub(channel)
                stub.Encode(
                    pb.EncodeRequest(model=pb.ModelSelector(name="plain"), rows=tensor(tiny.rows(1))), timeout=TIMEOUT_S
                )
                version = ("", "1", "2")[number % 3]
                health: Any = health_pb2_grpc.HealthStub(channel)
                status = health.Check(health_pb2.HealthCheckRequest(service="tiny"), timeout=TIMEOUT_S).status
                model = pb.ModelSelector(name="tiny", version=version)
                try:
                    stub.Encode(pb.EncodeRequest(model=model, rows=tensor(tiny.rows(1))), timeout=TIMEOUT_S)
                    said.add((version, "OK", status))
                except grpc.RpcError as error:
                    said.add((version, error.code().name, status))
        states = health_pb2.HealthCheckResponse
        answers = (("OK", states.SERVING), ("UNAVAILABLE", states.NOT_SERVING))
        assert said == {
            *((version, *answer) for version in ("", "2") for answer in answers),
            *(("1", "NOT_FOUND", state) for _, state in answers),
        }
        with AdminClient(admin_address(server)) as admin:
            with pytest.raises(HourglassError, match=r"tiny version 2: encoder\.onnx"):
                admin.load("tiny", 2)
            (package / "encoder.onnx").write_bytes(whole)
            admin.load("tiny", 2)
        for _ in range(30):
            with server.channel() as channel:
                model = pb.ModelSelector(name="tiny")
                AutoencoderServiceStub(channel).Encode(
                    pb.EncodeRequest(model=model, rows=tensor(tiny.rows(1))), timeout=TIMEOUT_S
                )


def test_the_counters_of_a_worker_that_died_stay(server: ServerProcess) -> None:
    with Client(server.address) as client:
        for _ in range(20):
            client.encode("tiny", tiny.rows(1), timeout_s=TIMEOUT_S)
    assert server.metric(ENCODED) == 20
    for pid in pids(server).values():
        os.kill(pid, signal.SIGKILL)
    wait_until_metric(server, "autoencoder_worker_restarts_total", 2)
    wait_until_metric(server, "autoencoder_workers", 2)
    assert server.metric(ENCODED) == 20


def test_workers_end_with_a_supervisor_that_is_killed(tiny_models: Path) -> None:
    server = ServerProcess(tiny_models, "--workers", "2")
    workers = list(pids(server).values())
    server.process.kill()
    server.process.wait()
    until = time.monotonic() + WAIT_S
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < until
    server.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_what_a_library_prints_is_not_taken_for_what_a_worker_says(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def print_noise(event, facts):\n"
        "    if event == 'open' and str(facts[0]).endswith('encoder.onnx'):\n"
        "        os.write(1, b'noise\\n')\n"
        "sys.addaudithook(print_noise)\n"
    )
    with ServerProcess(tiny_models, "--workers", "2", environment={"PYTHONPATH": str(tmp_path)}) as server:
        with Client(server.address) as client:
            client.encode("tiny", tiny.rows(3))
        assert server.other_lines.count("noise\n") >= 2
    assert server.process.returncode == 0


FAILING = """
import logging, sys, threading
from service import probes, supervisor
from service.__main__ import main

def fail():
    raise MemoryError("no more")

class Probes(probes.Probes):
    def start(self):
        super().start()
        threading.Thread(target=fail, name="of-the-supervisor").start()

supervisor.Probes = Probes
sys.exit(main())
"""


def test_a_supervisor_ends_with_a_thread_of_its_own_that_fails(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "failing_supervisor.py").write_text(FAILING)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with ServerProcess(
        tiny_models, "--workers", "2", ready=False, module="failing_supervisor", environment=environment
    ) as server:
        assert server.wait() == threads.EXIT_CODE
        assert server.events[-1]["failed_thread"] == "of-the-supervisor"


def test_a_port_that_another_service_has_is_not_shared(tiny_models: Path) -> None:
    with ServerProcess(tiny_models, "--workers", "2") as first:
        port = first.address.rpartition(":")[2]
        second = ServerProcess(tiny_models, "--workers", "2", "--port", port, ready=False)
        assert second.wait() == 1
        assert f"--port {port} on 127.0.0.1: Address already in use" in second.wait_for("cannot start")["reason"]
        second.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        third = ServerProcess(tiny_models, "--workers", "2", "--port", str(taken.getsockname()[1]), ready=False)
        assert third.wait() == 1
        third.stop()


def test_what_keeps_workers_from_starting_ends_the_start(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--workers", "2", ready=False)
    assert server.wait() == 1
    assert "no package there can be served" in server.wait_for("cannot start")["reason"]
    assert server.wait_for("a worker did not start")["exit_code"] == 1
    server.stop()
