"""TLS and tokens as the settings ask for them, kept in step with their files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import StartError
from service.guard import Guard
from service.polling import Poll
from service.settings import Settings
from service.tokens import Tokens

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

# Files are taken at the second look that finds them the same.
_LOOK_S = 0.5


class Security:
    """`guard` is None where no tokens are asked for. Raises StartError where a file cannot be used.

    `on_expiry`: as of `Certificates`. `start`, then `stop`.
    """

    def __init__(self, settings: Settings, *, on_expiry: Callable[[str, float], object]) -> None:
        self._exit = ExitStack()
        self.guard: Guard | None = None
        self._tokens: Tokens | None = None
        self._certificates = None
        try:
            if settings.tokens:
                self._tokens = Tokens(Path(settings.tokens))
                self.guard = Guard(self._tokens)
        except (OSError, ValueError) as error:
            raise StartError(f"--tokens {settings.tokens}: {error}") from error
        if settings.tls_cert:
            # Whoever does without TLS does without what reads certificates.
            from service.certificates import Certificates

            client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
            try:
                self._certificates = Certificates(
                    Path(settings.tls_cert), Path(settings.tls_key), client_ca, on_expiry=on_expiry
                )
            except (OSError, ValueError) as error:
                raise StartError(f"--tls-cert, --tls-key, --tls-client-ca: {error}") from error
        elif self._tokens is not None and not settings.is_local(settings.host):
            log.warning("tokens come in the clear: use --tls-cert, or keep this behind what ends TLS")

    def credentials(self) -> grpc.ServerCredentials | None:
        """For one port; None for plain text."""
        return None if self._certificates is None else self._certificates.credentials()

    def start(self) -> None:
        """Begin to look at the files."""
        for name, watched in (("certificates", self._certificates), ("tokens", self._tokens)):
            if watched is not None:
                self._exit.enter_context(Poll(_LOOK_S, watched.look, name=name))

    def stop(self) -> None:
        self._exit.close()
