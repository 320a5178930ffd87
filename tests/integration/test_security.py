"""A real service with TLS and tokens, and what the clients see of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

import hourglass
from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import TLS, AdminClient, Client
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TIMEOUT_S, array, assert_close, tensor


class Files:
    """What the service and its clients are given; tokens are called as their names, with a prefix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients = trustme.CA()
        client = self.clients.issue_cert("client@example.org")
        self.clients.cert_pem.write_to_path(str(folder / "clients.pem"))
        client.private_key_pem.write_to_path(str(folder / "client.key"))
        client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
        self.rotate()
        self.write_tokens("old-")

    def rotate(self) -> None:
        """A new authority with a new certificate of the server."""
        authority = trustme.CA()
        server = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        server.private_key_pem.write_to_path(str(self.folder / "server.key"))
        server.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))

    def write_tokens(self, prefix: str) -> None:
        self.prefix = prefix
        allow = {
            "all": 'allow = ["infer", "read", "admin"]',
            "plain": 'allow = ["infer", "read"]\nmodels = ["plain*"]',
        }
        blocks = [
            f'[tokens.{name}]\nsha256 = "{hashlib.sha256((prefix + name).encode()).hexdigest()}"\n{lines}\n'
            for name, lines in allow.items()
        ]
        (self.folder / "tokens.toml").write_text("".join(blocks))

    @property
    def flags(self) -> list[str]:
        names = {
            "tls-cert": "server.pem",
            "tls-key": "server.key",
            "tls-client-ca": "clients.pem",
            "tokens": "tokens.toml",
        }
        return [word for flag, name in names.items() for word in (f"--{flag}", str(self.folder / name))]

    @property
    def tls(self) -> TLS:
        return TLS(ca=self.folder / "ca.pem", cert=self.folder / "client.pem", key=self.folder / "client.key")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(params=["completion-queue", "threaded", "workers"])
def server(request: pytest.FixtureRequest, tiny_models: Path, files: Files) -> Iterator[ServerProcess]:
    arguments = ["--workers", "2"] if request.param == "workers" else ["--transport", request.param]
    with ServerProcess(tiny_models, *files.flags, "--admin-address", "0.0.0.0:0", *arguments) as process:
        yield process
    assert process.process.returncode == 0
    assert not process.other_lines, "everything on stderr is a log line"


def test_who_is_let_in_and_what_for_follows_the_files(server: ServerProcess, files: Files) -> None:
    rows = tiny.rows(4)
    admin_port = str(server.wait_for("administrators are listened to")["address"]).rpartition(":")[2]

    def client(name: str | None, **options: Any) -> Client:
        secret = None if name is None else files.prefix + name
        return Client(server.address, **({"tls": files.tls, "token": secret, "attempts": 1} | options))

    def admin(token: str) -> AdminClient:
        return AdminClient(f"localhost:{admin_port}", tls=files.tls, token=files.prefix + token, attempts=1)

    with client("all") as everything, client("plain") as some:
        assert_close(everything.encode("tiny", rows, timeout_s=TIMEOUT_S), tiny.encode(rows))
        assert_close(some.encode("plain", rows, timeout_s=TIMEOUT_S), tiny.encode(rows))
        assert {card.name for card in everything.models()} == {"tiny", "plain"}
        assert {card.name for card in some.models()} == {"plain"}
        for refused in (lambda: some.encode("tiny", rows), lambda: some.model("tiny"), lambda: some.encode("no", rows)):
            with pytest.raises(hourglass.PermissionDenied, match="the token plain allows models like plain"):
                refused()
    with client(None) as nobody, pytest.raises(hourglass.Unauthenticated, match="a token is asked for"):
        nobody.models()
    with client("wrong") as wrong, pytest.raises(hourglass.Unauthenticated, match="the token is not known"):
        wrong.models()
    for tls in (False, TLS(ca=files.folder / "ca.pem")):
        with client("all", tls=tls) as outside, pytest.raises(hourglass.Unavailable):
            outside.models(timeout_s=TIMEOUT_S)

    def secure_channel() -> grpc.Channel:
        return grpc.secure_channel(server.address, files.tls.credentials(), [("grpc.use_local_subchannel_pool", 1)])

    bearer = (("authorization", f"Bearer {files.prefix}plain"),)
    with secure_channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == 1
        requests = [
            pb.StreamRequest(id=number, encode=pb.EncodeRequest(model=pb.ModelSelector(name=name), rows=tensor(rows)))
            for number, name in enumerate(("plain", "tiny"))
        ]
        stub = AutoencoderServiceStub(channel)
        answers = {answer.id: answer for answer in stub.Stream(iter(requests), timeout=TIMEOUT_S, metadata=bearer)}
        assert_close(array(answers[0].encode.latents), tiny.encode(rows))
        assert answers[1].error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]

    with (
        admin("plain") as limited,
        pytest.raises(hourglass.PermissionDenied, match="allows infer, read; this is admin"),
    ):
        limited.versions()
    with admin("all") as may:
        assert {version.name for version in may.versions(timeout_s=TIMEOUT_S)} == {"tiny", "plain"}
        may.reload("plain", timeout_s=TIMEOUT_S)

    assert server.metric('autoencoder_certificate_expiry_timestamp_seconds{certificate="client-ca"}') > 0
    workers = int(server.metric("autoencoder_workers"))
    processes = workers + 1  # the supervisor has the administrators' listener
    files.rotate()
    server.wait_for("certificates read", count=processes)
    with client("all") as before:
        before.models(timeout_s=TIMEOUT_S)
    files.write_tokens("new-")
    server.wait_for("tokens read", count=processes)
    for _ in range(4):
        with client("all") as again:
            assert_close(again.encode("tiny", rows, timeout_s=TIMEOUT_S), tiny.encode(rows))
        with client("all", token="old-all") as gone, pytest.raises(hourglass.Unauthenticated):
            gone.models(timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_files_that_cannot_be_used_end_the_start_with_the_flag(tiny_models: Path, files: Files, workers: str) -> None:
    broken = files.folder / ("tokens.toml" if workers == "1" else "server.key")
    broken.write_text("broken")
    process = ServerProcess(tiny_models, *files.flags, "--workers", workers, ready=False)
    assert process.wait() == 1
    reason = process.wait_for("cannot start")["reason"]
    assert str(broken) in reason
    assert ("--tokens" if workers == "1" else "--tls-key") in reason
    process.stop()
