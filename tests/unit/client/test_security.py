"""TLS, mutual TLS and tokens, and where a token is not sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

import hourglass
from hourglass.channel import Endpoint, is_local
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, encode, fail, serving

ROWS = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


class Certificates:
    """A root, and files of what it issued for the server and for the client."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.server = authority.issue_cert("localhost", "127.0.0.1")
        client = authority.issue_cert("client@example.org")
        self.root = authority.cert_pem.bytes()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "client.pem", folder / "client.key"
        authority.cert_pem.write_to_path(str(self.ca))
        client.private_key_pem.write_to_path(str(self.key))
        self.cert.write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))

    def credentials(self, *, mutual: bool = False) -> grpc.ServerCredentials:
        chain = b"".join(blob.bytes() for blob in self.server.cert_chain_pems)
        return grpc.ssl_server_credentials(
            [(self.server.private_key_pem.bytes(), chain)],
            root_certificates=self.root if mutual else None,
            require_client_auth=mutual,
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_with_a_root_from_a_file(connect: Connect, certificates: Certificates, host: str) -> None:
    with serving(FakeService(), credentials=certificates.credentials()) as address:
        address = address.replace("127.0.0.1", host)
        client = connect(address, tls=hourglass.TLS(ca=certificates.ca))
        np.testing.assert_array_equal(client.encode("tiny", ROWS), encode(ROWS))


def test_a_server_of_an_unknown_root_is_refused(connect: Connect, certificates: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path)
    with serving(service := FakeService(), credentials=certificates.credentials()) as address:
        for tls in (True, hourglass.TLS(ca=other.ca)):
            with pytest.raises(hourglass.Unavailable):
                connect(address, tls=tls, attempts=1, token="secret").encode("tiny", ROWS)
    assert service.calls == []


def test_mutual_tls(connect: Connect, certificates: Certificates) -> None:
    known = hourglass.TLS(ca=certificates.ca, cert=str(certificates.cert), key=str(certificates.key))
    with serving(FakeService(), credentials=certificates.credentials(mutual=True)) as address:
        np.testing.assert_array_equal(connect(address, tls=known).encode("tiny", ROWS), encode(ROWS))
        with pytest.raises(hourglass.Unavailable):
            connect(address, tls=hourglass.TLS(ca=certificates.ca), attempts=1).encode("tiny", ROWS)


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cert and key go together"):
        hourglass.TLS(cert=tmp_path)
    with pytest.raises(FileNotFoundError):
        hourglass.Client("127.0.0.1:1", tls=hourglass.TLS(ca=tmp_path / "none.pem"))


@pytest.mark.parametrize("message_rows", [1, 256])
def test_the_token_goes_with_every_call(
    connect: Connect, address: str, service: FakeService, message_rows: int
) -> None:
    client = connect(address, token="secret", max_message_rows=message_rows)
    client.models()
    client.model("tiny")
    client.encode("tiny", ROWS)
    assert {metadata["authorization"] for metadata in service.metadata} == {"Bearer secret"}


def test_no_token_no_header(connect: Connect, address: str, service: FakeService) -> None:
    connect(address).models()
    assert "authorization" not in service.metadata[0]


def test_the_token_goes_over_tls_and_a_unix_socket(
    connect: Connect, certificates: Certificates, tmp_path: Path
) -> None:
    with serving(service := FakeService(), credentials=certificates.credentials()) as address:
        connect(address, token="secret", tls=hourglass.TLS(ca=certificates.ca)).models()
    with serving(service, address=f"unix:{tmp_path}/socket") as address:
        connect(address, token="secret").models()
    assert [metadata["authorization"] for metadata in service.metadata] == ["Bearer secret"] * 2


def test_a_wrong_token_is_unauthenticated(connect: Connect) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        if ("authorization", "Bearer right") not in context.invocation_metadata():
            fail(context, grpc.StatusCode.UNAUTHENTICATED, "NO_TOKEN", "no such token")

    with serving(FakeService(hook=hook)) as address:
        connect(address, token="right").models()
        with pytest.raises(hourglass.Unauthenticated, match="no such token"):
            connect(address, token="wrong").models()


@pytest.mark.parametrize(
    "address",
    ["example.org:50051", "10.0.0.1:50051", "0.0.0.0:1", "[2001:db8::1]:1", "127.0.0.1.example.org:1"],
)
def test_a_token_is_not_sent_in_the_clear(connect: Connect, address: str) -> None:
    with pytest.raises(
        ValueError, match="token: sent without TLS only to a loopback address or a unix socket"
    ) as caught:
        connect(address, token="secret").models()
    assert "secret" not in str(caught.value)


def test_a_token_is_sent_in_the_clear_where_one_says_so(connect: Connect) -> None:
    with serving(service := FakeService(), address="0.0.0.0:0") as address:
        port = address.rpartition(":")[2]
        with pytest.raises(ValueError, match="token_in_clear"):
            connect(f"0.0.0.0:{port}", token="secret").models()
        connect(f"0.0.0.0:{port}", token="secret", token_in_clear=True).models()
    assert service.metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:1", True),
        ("::1", True),
        ("unix:/run/x", True),
        ("unix:///run/x", True),
        ("unix-abstract:x", True),
        ("dns:localhost:1", True),
        ("dns:///127.0.0.1:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv6:[::1]:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns://8.8.8.8/localhost:1", False),
        ("xds:///localhost", False),
        ("localhost.example.org:1", False),
        ("example.org", False),
        ("", False),
        ("1:127.0.0.1", False),
    ],
)
def test_what_is_local(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize("token", ["", "a b", "line\n", "schlüssel"])
def test_a_token_that_no_header_can_hold_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValueError, match="token: must be printable ASCII") as caught:
        hourglass.Client("127.0.0.1:1", token=token)
    assert not token or token not in str(caught.value)


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Endpoint(address="127.0.0.1:1", token="secret"))


def test_a_proxy_of_the_environment_never_sees_what_is_local(
    connect: Connect, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    connect(address, attempts=1, token="secret").models()


def test_an_empty_address_is_refused() -> None:
    with pytest.raises(ValueError, match="address: must not be empty"):
        hourglass.Client("")
