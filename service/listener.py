"""The listener of ModelAdminService, apart from the one that clients use: a unix socket or an address."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from service import admin, introspection
from service.calls import Method
from service.errors import StartError
from service.guard import Guard
from service.metrics import Metrics
from service.threaded import ThreadedTransport
from service.transport import Limits

_UNIX = "unix:"
_THREADS = 4
_LIMITS = Limits(max_concurrent_requests=64, max_message_bytes=1 << 16, max_stream_requests=1)
_GRACE_S = 5.0


class AdminListener:
    """Listens from the beginning on, until `stop`. `credentials` are for addresses; a socket is the file system's.

    Raises StartError where the address cannot be had."""

    def __init__(
        self,
        address: str,
        methods: Mapping[str, Method[Any]],
        *,
        guard: Guard | None,
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        # These calls are few and have no place among the metrics of those that are many.
        self._transport = ThreadedTransport(
            threads=_THREADS, limits=_LIMITS, metrics=Metrics(CollectorRegistry()), guard=guard
        )
        self._transport.add_service(admin.SERVICE, methods)
        introspection.add_reflection(self._transport, (admin.SERVICE,))
        try:
            if address.startswith(_UNIX):
                _require_free(address.removeprefix(_UNIX))
                # The socket is for the user that the service runs as, and nobody else.
                before = os.umask(0o177)
                try:
                    self._transport.bind(address)
                finally:
                    os.umask(before)
                self.address = address
            else:
                host, _, _ = address.rpartition(":")
                self.address = f"{host}:{self._transport.bind(address, credentials)}"
        except OSError as error:
            raise StartError(f"--admin-address {address}: {error}") from error
        self._transport.start()

    def stop(self) -> None:
        """A change under way is made first."""
        self._transport.stop(_GRACE_S)


def _require_free(path: str) -> None:
    """Raises OSError. grpc would take a socket away from whoever listens on it, and does not say what is wrong."""
    if not os.path.isdir(os.path.dirname(path)):
        raise OSError(f"there is no directory {os.path.dirname(path)}")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(f"{path} is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise OSError(f"somebody listens on {path}")
