"""The certificates of the service, read again when their files change: no restart, and no connection is dropped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.polling import Changes

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_DAY_S = 86400.0
_WARN_S = 30 * _DAY_S

SERVER, CLIENT_CA = "server", "client-ca"


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """`expiry`: of each kind of certificate the first to expire, in seconds since 1970."""

    key: bytes
    chain: bytes
    client_ca: bytes | None
    expiry: dict[str, float]

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


class Certificates:
    """PEM files: our chain, its key, and for mutual TLS the roots of those who may call.

    `on_expiry` is told when each kind expires. Raises OSError, or ValueError with the rule, where they cannot be used.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None, *, on_expiry: Callable[[str, float], object]
    ) -> None:
        self._paths = cert, key, client_ca
        self._on_expiry = on_expiry
        self._changes = Changes(path for path in self._paths if path is not None)
        self._loaded = _load(*self._paths)
        self._warned_at, self._warned_expired = -math.inf, False
        self._tell()

    def look(self) -> None:
        """Take files that have changed; those that cannot be used are told in the log, and the old ones stay."""
        if self._changes.settled():
            try:
                self._loaded = _load(*self._paths)
            except (OSError, ValueError) as error:
                log.error("the certificates stay as they were", extra={"reason": str(error)})
            else:
                log.info("certificates read", extra=self._days())
                self._warned_at, self._warned_expired = -math.inf, False
        self._tell()

    def credentials(self) -> grpc.ServerCredentials:
        """For one port: new connections get what was read last."""
        given = self._loaded

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self._loaded is given:
                return None
            given = self._loaded
            return given.configuration()

        return grpc.dynamic_ssl_server_credentials(
            given.configuration(),
            fetch,  # type: ignore[arg-type] # the stubs know of no None, which means no change
            require_client_authentication=given.client_ca is not None,
        )

    def _tell(self) -> None:
        for kind, expiry in self._loaded.expiry.items():
            self._on_expiry(kind, expiry)
        left_s = min(self._loaded.expiry.values()) - time.time()
        if left_s >= _WARN_S:
            return
        expired = left_s < 0
        # A day that lasts a day even where the wall clock is moved.
        now = time.monotonic()
        if expired == self._warned_expired and now < self._warned_at + _DAY_S:
            return
        self._warned_at, self._warned_expired = now, expired
        if expired:
            log.error("a certificate has expired", extra=self._days())
        else:
            log.warning("a certificate expires soon", extra=self._days())

    def _days(self) -> dict[str, float]:
        now = time.time()
        return {
            f"{kind.replace('-', '_')}_expires_in_days": round((expiry - now) / _DAY_S, 1)
            for kind, expiry in self._loaded.expiry.items()
        }


def _load(cert: Path, key: Path, client_ca: Path | None) -> _Loaded:
    """Raises OSError, or ValueError with the file and the rule."""
    chain, chain_certificates, chain_expiry = _certificates(cert)
    key_content = _content(key)
    try:
        private_key = load_pem_private_key(key_content, password=None)
    except Exception as error:  # of several kinds, UnsupportedAlgorithm among them
        raise ValueError(f"{key}: is not a private key in PEM without a password: {error}") from error
    try:
        public_key = chain_certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{cert}: has a public key that cannot be used: {error}") from error
    if private_key.public_key() != public_key:
        raise ValueError(f"{key}: is not the key of the first certificate in {cert}")
    expiry = {SERVER: chain_expiry}
    if expiry[SERVER] < time.time():
        raise ValueError(f"{cert}: has expired")
    roots = None
    if client_ca is not None:
        roots, _, expiry[CLIENT_CA] = _certificates(client_ca)
    return _Loaded(key=key_content, chain=chain, client_ca=roots, expiry=expiry)


def _certificates(path: Path) -> tuple[bytes, list[x509.Certificate], float]:
    """The content, what is in it, and the first expiry, in seconds since 1970."""
    content = _content(path)
    try:
        certificates = x509.load_pem_x509_certificates(content)
        expiry = min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    except Exception as error:  # of several kinds, InvalidVersion among them
        raise ValueError(f"{path}: is not a certificate in PEM: {error}") from error
    return content, certificates, expiry


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path}: must have at most {_MAX_BYTES} bytes")
    return content
