"""Versions that change while the service serves, through the administrators' client and command line."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import hourglass
from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import AdminClient, Client
from service import packages
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TIMEOUT_S, array, tensor

ADMIN = ("--admin-address", "127.0.0.1:0")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def write(models: Path, version: int, scale: int) -> None:
    """Latents are `scale` times those of `tiny`, and mean the same to this version's decoder only: what two versions
    had a hand in is `scale` times wrong."""
    golden = tiny.rows(5, seed=99)
    factor = np.float32(scale)
    latents = tiny.encode(golden) * factor
    encoder = tiny.graph(tiny.ENCODER_WEIGHTS * factor, tiny.ROW_SHAPE, (tiny.LATENT,), "rows", "latents")
    decoder = tiny.graph(tiny.DECODER_WEIGHTS / factor, (tiny.LATENT,), tiny.ROW_SHAPE, "latents", "rows")
    files = {
        packages.ENCODER: encoder.SerializeToString(),
        packages.DECODER: decoder.SerializeToString(),
        packages.GOLDEN: tiny.npz(rows=golden, latents=latents, reconstructions=tiny.decode(latents / factor)),
    }
    packages.write(models, tiny.manifest("tiny", version), files)


def scale_of(rows: tiny.Rows, latents: tiny.Rows) -> int:
    """The scale of the version that answered; all rows must be by the same."""
    expected = tiny.encode(rows)
    scale = round(float(np.sum(latents * expected) / np.sum(expected * expected)))
    np.testing.assert_allclose(latents, expected * scale, rtol=1e-3, atol=1e-3)
    return scale


def assert_reconstructed(got: tiny.Rows, rows: tiny.Rows) -> None:
    np.testing.assert_allclose(got, tiny.decode(tiny.encode(rows)), rtol=1e-3, atol=1e-3)


def admin_address(server: ServerProcess) -> str:
    return str(server.wait_for("administrators are listened to")["address"])


class Load:
    """Callers that go on until they are told to stop; every row that they send is unlike every other, nothing is tried
    twice, and one wrong or failed answer ends the test."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(5)
        self.scales: set[int] = set()
        self.answered = 0

    def __enter__(self) -> Load:
        self._seeds = itertools.count(1)
        self._futures = [
            self._pool.submit(call)
            for call in (self._encode, self._encode, self._reconstruct, self._interpolate, self._stream)
        ]
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for future in self._futures:
            self.answered += future.result()

    def _rows(self, count: int) -> tiny.Rows:
        return tiny.rows(count, seed=next(self._seeds))

    def _encode(self) -> int:
        with Client(self._server.address, attempts=1) as client:
            for step in itertools.count():
                if self._stop.is_set():
                    return step
                rows = self._rows(1 + step % 40)
                self.scales.add(scale_of(rows, client.encode("tiny", rows, timeout_s=TIMEOUT_S)))
        return 0

    def _reconstruct(self) -> int:
        with Client(self._server.address, attempts=1) as client:
            for step in itertools.count():
                if self._stop.is_set():
                    return step
                rows = self._rows(1 + step % 40)
                assert_reconstructed(client.reconstruct("tiny", rows, timeout_s=TIMEOUT_S).rows, rows)
        return 0

    def _interpolate(self) -> int:
        """Two jobs of one request, which must be by one version."""
        with Client(self._server.address, attempts=1) as client:
            for step in itertools.count():
                if self._stop.is_set():
                    return step
                start, end = self._rows(3), self._rows(3)
                walk = client.interpolate("tiny", start, end, steps=2, timeout_s=TIMEOUT_S).rows
                assert_reconstructed(walk[:, 0], start)
                assert_reconstructed(walk[:, 1], end)
        return 0

    def _stream(self) -> int:
        sent: dict[int, tiny.Rows] = {}

        def requests() -> Iterator[pb.StreamRequest]:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                sent[number] = self._rows(2)
                encode = pb.EncodeRequest(model=pb.ModelSelector(name="tiny"), rows=tensor(sent[number]))
                yield pb.StreamRequest(id=number, encode=encode)

        with self._server.channel() as channel:
            for answer in AutoencoderServiceStub(channel).Stream(requests(), timeout=2 * TIMEOUT_S):
                assert not answer.HasField("error"), answer.error
                scale_of(sent.pop(answer.id), array(answer.encode.latents))
                answered = answer.id
        assert not sent
        return int(answered)


@pytest.mark.parametrize(
    ("reloads", "arguments"),
    [
        (50, ("--transport", "completion-queue")),
        (10, ("--transport", "threaded", "--handler-threads", "16")),
        (5, ("--workers", "2")),
    ],
    ids=["completion-queue", "threaded", "workers"],
)
def test_reloads_under_load_fail_no_request_and_mix_no_answers(
    tmp_path: Path, reloads: int, arguments: tuple[str, ...]
) -> None:
    write(tmp_path, 1, scale=1)
    with ServerProcess(tmp_path, *ADMIN, *arguments) as server, AdminClient(admin_address(server)) as admin:
        with Load(server) as load:
            for number in range(reloads):
                write(tmp_path, 1, scale=2 + number)
                admin.reload("tiny", timeout_s=TIMEOUT_S)
        assert load.answered > 5 * reloads
        assert len(load.scales) > reloads / 4, "most versions had requests"
        rows = tiny.rows(3)
        with Client(server.address) as client:
            assert scale_of(rows, client.encode("tiny", rows)) == 1 + reloads
        closed = [event for event in server.events if event["event"] == "model closed"]
        assert len(closed) == reloads * (2 if "--workers" in arguments else 1)
    assert server.process.returncode == 0
    assert not server.other_lines


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one-process", "two-workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    for version in (1, 2):
        write(tmp_path, version, scale=version)
    with ServerProcess(tmp_path, *ADMIN, "--versions", "latest:1", *request.param) as process:
        yield process
    assert process.process.returncode == 0
    assert not process.other_lines


def scales(server: ServerProcess, version: str = "", connections: int = 8) -> set[int]:
    """By whom several connections are answered: with two workers, by both."""
    rows = tiny.rows(3)
    with Client(server.address, connections=connections) as client:
        return {scale_of(rows, client.encode("tiny", rows, version=version or None)) for _ in range(connections)}


def test_labels_lead_to_versions_and_back_and_a_bad_package_changes_nothing(
    server: ServerProcess, tmp_path: Path
) -> None:
    with AdminClient(admin_address(server)) as admin, server.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert scales(server) == {2}
        admin.label("tiny", "stable", 1)
        assert scales(server, "stable") == {1}
        write(tmp_path, 3, scale=3)
        admin.load("tiny")
        admin.label("tiny", "canary", 3)
        admin.label("tiny", "stable", "canary")
        assert scales(server, "stable") == scales(server, "canary") == {3}
        (tmp_path / "tiny" / "3" / "encoder.onnx").write_bytes(b"truncated")
        with pytest.raises(hourglass.Unsupported, match=r"tiny version 3: encoder.onnx: has 9 bytes"):
            admin.reload("tiny", 3)
        assert scales(server, "stable") == {3}
        admin.rollback("tiny", "stable")
        assert scales(server, "stable") == {1}
        assert [(v.version, v.state, v.labels) for v in admin.versions("tiny")] == [
            (3, "ready", ("canary",)), (2, "available", ()), (1, "ready", ("stable",)),
        ]  # fmt: skip
        admin.unload("tiny")
        status = health.Check(health_pb2.HealthCheckRequest(service="tiny")).status
        assert status == NOT_SERVING
        with pytest.raises(hourglass.NotFound), Client(server.address) as client:
            client.encode("tiny", tiny.rows(1))
        assert 'autoencoder_model_ready{model="tiny"' not in server.get("/metrics")[1]
        admin.load("tiny", 2)
        assert health.Check(health_pb2.HealthCheckRequest(service="tiny")).status == SERVING
        assert scales(server) == {2}


def test_a_worker_that_is_replaced_serves_what_the_others_serve(tmp_path: Path) -> None:
    for version in (1, 2):
        write(tmp_path, version, scale=version)
    with ServerProcess(tmp_path, *ADMIN, "--workers", "2") as server, AdminClient(admin_address(server)) as admin:
        admin.label("tiny", "stable", 1)
        admin.unload("tiny", 2)
        write(tmp_path, 3, scale=3)
        write(tmp_path, 4, scale=4)
        admin.load("tiny", 3)
        before = {event["worker"]: event["pid"] for event in server.events if event["event"] == "worker ready"}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        server.wait_for("worker ready", count=4)
        # As soon as all are there again it can be changed again.
        assert [v.state for v in admin.versions("tiny")] == ["available", "ready", "available", "ready"]
        admin.reload("tiny", timeout_s=TIMEOUT_S)
        assert scales(server) == {3}
        assert scales(server, "stable") == {1}


def test_the_directory_is_followed(tmp_path: Path) -> None:
    write(tmp_path, 1, scale=1)
    with (
        ServerProcess(tmp_path, "--watch-s", "0.05", "--versions", "latest:1") as server,
        Client(server.address) as client,
    ):
        rows = tiny.rows(2)
        write(tmp_path, 2, scale=2)
        server.wait_for("model changed")
        assert scale_of(rows, client.encode("tiny", rows)) == 2
        write(tmp_path, 2, scale=5)
        while scale_of(rows, client.encode("tiny", rows)) != 5:
            pass


def test_the_command_line_changes_what_is_served_over_a_socket_of_one_user(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for version in (1, 2):
        write(models, version, scale=version)
    address = f"unix:{tmp_path}/admin.socket"
    environment = os.environ | {"HOURGLASS_ADMIN_ADDRESS": address}

    def hourglass_admin(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "hourglass", "admin", *words],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    with ServerProcess(models, "--admin-address", address):
        assert stat.S_IMODE(os.stat(f"{tmp_path}/admin.socket").st_mode) == 0o600
        code, out, _ = hourglass_admin("label", "tiny", "stable", "1")
        assert (code, out.splitlines()) == (
            0, ["name  version  state  labels  reason", "tiny  2        ready", "tiny  1        ready  stable"],
        )  # fmt: skip
        assert hourglass_admin("rollback", "tiny", "stable") == (
            1, "", "hourglass: tiny: stable has pointed at version 1 only\n",
        )  # fmt: skip
        second = ServerProcess(models, "--admin-address", address, ready=False)
        assert second.wait() == 1
        assert f"somebody listens on {tmp_path}/admin.socket" in second.wait_for("cannot start")["reason"]
        second.stop()
        nowhere = ServerProcess(models, "--admin-address", f"unix:{tmp_path}/none/admin.socket", ready=False)
        assert nowhere.wait() == 1
        assert f"there is no directory {tmp_path}/none" in nowhere.wait_for("cannot start")["reason"]
        nowhere.stop()
        with grpc.insecure_channel(address) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            assert "autoencoder.v1.ModelAdminService" in {s.name for s in answer.list_services_response.service}
        assert hourglass_admin("list", "none")[2] == "hourglass: there is no model 'none'\n"
