"""Certificates that change while a real server serves, on both transports."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
import trustme
from google.protobuf.wrappers_pb2 import Int64Value

from service import certificates
from service.certificates import Certificates
from tests.unit.service.test_transport import WAIT_S, Harness, answer_now, kind, square_of, squares_of

__all__ = ["kind"]


class Files:
    """A certificate for localhost with its key, and the roots of clients."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = folder / "server.pem", folder / "server.key", folder / "clients.pem"

    def write(
        self, authority: trustme.CA, *, clients: trustme.CA | None = None, expires: datetime | None = None
    ) -> None:
        issued = authority.issue_cert("localhost", not_after=expires)
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        if clients is not None:
            self.ca.write_bytes(clients.cert_pem.bytes())

    def load(self, *, mutual: bool = False) -> Certificates:
        self.expiry: dict[str, float] = {}
        return Certificates(self.cert, self.key, self.ca if mutual else None, on_expiry=self.expiry.__setitem__)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def look(subject: Certificates) -> None:
    """Until the files have come to rest."""
    subject.look()
    subject.look()


def connect(subject: Harness, authority: trustme.CA, client: trustme.LeafCert | None = None) -> grpc.Channel:
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()) if client else ()
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *own)
    return grpc.secure_channel(f"localhost:{subject.port}", credentials, [("grpc.use_local_subchannel_pool", 1)])


def is_let_in(subject: Harness, authority: trustme.CA, client: trustme.LeafCert | None = None) -> bool:
    with connect(subject, authority, client) as channel:
        try:
            return bool(square_of(channel)(Int64Value(value=3), timeout=WAIT_S).value == 9)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False


def test_new_certificates_are_for_new_connections_and_no_stream_is_dropped(
    kind: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, old_clients, new_clients = (trustme.CA() for _ in range(4))
    before, after = old_clients.issue_cert("c@example.org"), new_clients.issue_cert("c@example.org")
    files.write(old, clients=old_clients)
    loaded = files.load(mutual=True)
    subject = Harness(kind, credentials=loaded.credentials())
    subject.on_call = answer_now
    inbox: SimpleQueue[Int64Value | None] = SimpleQueue()
    with connect(subject, old, before) as channel:
        answers = squares_of(channel)(iter(inbox.get, None), timeout=2 * WAIT_S)
        inbox.put(Int64Value(value=2))
        assert next(answers).value == 4
        assert not is_let_in(subject, old), "no certificate"
        assert not is_let_in(subject, old, after), "of an unknown authority"

        files.key.write_bytes(new.issue_cert("localhost").private_key_pem.bytes())
        look(loaded)
        (refusal,) = [record for record in caplog.records if record.message == "the certificates stay as they were"]
        assert refusal.__dict__["reason"] == f"{files.key}: is not the key of the first certificate in {files.cert}"
        assert is_let_in(subject, old, before), "the old ones stay"

        files.write(new, clients=new_clients)
        look(loaded)
        assert is_let_in(subject, new, after)
        assert not is_let_in(subject, old, before)
        assert not is_let_in(subject, new, before)
        inbox.put(Int64Value(value=5))
        assert next(answers).value == 25
        inbox.put(None)
        assert list(answers) == []
    subject.calls.clear()
    subject.close()


def test_files_that_are_still_being_written_are_waited_for(files: Files) -> None:
    old, new = trustme.CA(), trustme.CA()
    files.write(old)
    loaded = files.load()
    first = loaded._loaded
    files.write(new)
    loaded.look()
    assert loaded._loaded is first
    loaded.look()
    assert loaded._loaded is not first


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("gone", "No such file"),
        ("no-certificate", "is not a certificate in PEM"),
        ("no-key", "is not a private key in PEM without a password"),
        ("other-key", "is not the key of the first certificate in"),
        ("no-such-version", "server.pem: is not a certificate in PEM: 125 is not a valid X509 version"),
        ("unknown-key", "server.pem: has a public key that cannot be used: Unknown key type"),
        ("no-roots", "clients.pem: is not a certificate in PEM"),
        ("expired", "server.pem: has expired"),
        ("huge", "must have at most"),
    ],
)
def test_files_that_cannot_be_used_are_named(files: Files, broken: str, says: str) -> None:
    authority = trustme.CA()
    expires = datetime.now(UTC) - timedelta(days=1) if broken == "expired" else None
    files.write(authority, clients=authority, expires=expires)
    match broken:
        case "gone":
            files.key.unlink()
        case "no-certificate":
            files.cert.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
        case "no-key":
            files.key.write_text("x")
        case "other-key":
            files.key.write_bytes(authority.issue_cert("localhost").private_key_pem.bytes())
        case "no-such-version":
            der = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
            versioned = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7d", 1)
            assert versioned != der
            files.cert.write_text(ssl.DER_cert_to_PEM_cert(versioned))
        case "unknown-key":
            der = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
            # id-ecPublicKey, 1.2.840.10045.2.1, changed to one that nobody knows.
            unknown = der.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f")
            assert unknown != der
            files.cert.write_text(ssl.DER_cert_to_PEM_cert(unknown))
        case "no-roots":
            files.ca.write_text("")
        case "huge":
            files.cert.write_bytes(bytes(certificates._MAX_BYTES + 1))
    with pytest.raises((OSError, ValueError), match=says):
        files.load(mutual=True)


def test_an_expiry_is_told_and_warned_of_once_a_day(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=40)
    files.write(authority, clients=authority, expires=expires)
    loaded = files.load(mutual=True)
    assert files.expiry["server"] == expires.timestamp()
    assert files.expiry["client-ca"] > time.time()
    now, ran = time.time(), time.monotonic()
    told = []
    for days in (9, 11, 11.5, 12.1, 39.9, 40.1, 40.2, 41.2):
        monkeypatch.setattr(time, "time", lambda days=days: now + days * 86400)
        monkeypatch.setattr(time, "monotonic", lambda days=days: ran + days * 86400)
        caplog.clear()
        loaded.look()
        told.append([(record.levelname, record.__dict__["server_expires_in_days"]) for record in caplog.records])
    assert told == [
        [],
        [("WARNING", pytest.approx(29, abs=0.1))],
        [],
        [("WARNING", pytest.approx(27.9, abs=0.1))],
        [("WARNING", pytest.approx(0.1, abs=0.1))],
        [("ERROR", pytest.approx(-0.1, abs=0.1))],
        [],
        [("ERROR", pytest.approx(-1.2, abs=0.1))],
    ]


def test_a_wall_clock_that_is_moved_back_does_not_hold_up_the_next_warning(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    files.write(authority, expires=datetime.now(UTC) + timedelta(days=20))
    loaded = files.load()
    now, ran = time.time(), time.monotonic()
    caplog.clear()
    monkeypatch.setattr(time, "time", lambda: now - 6 * 3600)
    loaded.look()
    assert not caplog.records
    monkeypatch.setattr(time, "monotonic", lambda: ran + 86400)
    loaded.look()
    assert [record.getMessage() for record in caplog.records] == ["a certificate expires soon"]
