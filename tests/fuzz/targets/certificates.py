"""bytes of a certificate, a key or roots, as PEM or as what is in it -> certificates, or ValueError with the file

What gRPC's own TLS makes of them after that is not fuzzed.
"""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from service.certificates import CLIENT_CA, SERVER, Certificates

FILES = ("server.pem", "server.key", "clients.pem")
_PEM = 4  # of the first byte: PEM as it is; without it the target puts DER into PEM, so that mutations meet its fields
_KINDS = ("CERTIFICATE", "PRIVATE KEY", "CERTIFICATE")


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    good = {FILES[0]: pem("CERTIFICATE", _certificate()), FILES[1]: pem("PRIVATE KEY", _key())}
    good[FILES[2]] = good[FILES[0]]
    cert, key, roots = (folder / name for name in FILES)

    def one(data: bytes) -> None:
        which = data[0] % 4 % 3 if data else 0
        content = data[1:] if data and data[0] & _PEM else pem(_KINDS[which], data[1:])
        for name, usual in good.items():
            (folder / name).write_bytes(content if name == FILES[which] else usual)
        expiry: dict[str, float] = {}
        try:
            with warnings.catch_warnings():
                # Of certificates against the standard, which it takes for now.
                warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                Certificates(cert, key, roots, on_expiry=expiry.__setitem__)
        except ValueError as error:
            assert str(error).startswith(f"{folder / FILES[which]}: ") or FILES[0] in str(error), error
            assert not expiry
            return
        assert expiry.keys() == {SERVER, CLIENT_CA}
        assert all(math.isfinite(when) for when in expiry.values())

    yield one


def pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(der) + f"-----END {kind}-----\n".encode()


def _private() -> ed25519.Ed25519PrivateKey:
    """Always the same, and of no use to anybody."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def _key() -> bytes:
    return _private().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None = None, *, until: int = 9999) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public or _private().public_key())
        .serial_number(7)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(until, 12, 31, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(_private(), None)
        .public_bytes(serialization.Encoding.DER)
    )


def seeds() -> dict[str, bytes]:
    good = _certificate()
    curve = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    # id-Ed25519, 1.3.101.112, of the key changed to an algorithm that nobody knows.
    head, _, tail = good.partition(b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70")
    unknown = head + b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x7f" + tail
    # The end of the validity, a GeneralizedTime, changed to a month that there is not.
    never = good.replace(b"99991231000000Z", b"99991331000000Z")
    assert unknown != good != never
    certificate, private, root = (bytes([number]) for number in range(3))
    text, key_text = bytes([_PEM]), bytes([_PEM + 1])
    return {
        "certificate": certificate + good,
        "key": private + _key(),
        "roots": root + good,
        "other_key": certificate + _certificate(curve),
        "expired": certificate + _certificate(until=2001),
        "unknown_algorithm": certificate + unknown,
        "unknown_algorithm_of_a_root": root + unknown,
        "never": certificate + never,
        "never_of_a_root": root + never,
        "two": text + pem("CERTIFICATE", good) * 2,
        "no_certificate": text + b"nothing\n",
        "key_for_certificate": text + pem("PRIVATE KEY", _key()),
        "certificate_for_key": key_text + pem("CERTIFICATE", good),
        "empty_key": key_text,
    }
