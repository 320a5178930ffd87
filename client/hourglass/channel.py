"""How the server is reached: address, TLS, token, retries, and the options of the channel."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import grpc

from autoencoder.v1 import admin_pb2, autoencoder_pb2

# No server that keeps to gRPC's default of one ping in five minutes takes these for a flood.
_KEEPALIVE_TIME_MS = 330_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_SERVICES = (
    autoencoder_pb2.DESCRIPTOR.services_by_name["AutoencoderService"],
    admin_pb2.DESCRIPTOR.services_by_name["ModelAdminService"],
)
# gRPC's own upper bound; it would lower a larger number without an error.
MAX_ATTEMPTS = 5
# With four, all of two processes are reached in seven of eight cases, and most of four.
CONNECTIONS = 4


class Connected:
    """What holds connections; it goes into no pickle."""

    def __reduce__(self) -> Never:
        raise TypeError(
            f"{type(self).__name__} holds connections and cannot be pickled or copied; make one in each process"
        )


@dataclass(frozen=True, kw_only=True)
class TLS:
    """PEM files. `ca`: whom to trust, None for gRPC's own roots; `cert` and `key`: who we are, for mutual TLS."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("TLS: cert and key go together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        def read(path: str | Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Everything that a channel is made of. Raises ValueError or OSError where it cannot be."""

    address: str
    tls: bool | TLS = False
    token: str | None = None
    token_in_clear: bool = False
    attempts: int = MAX_ATTEMPTS
    connections: int = CONNECTIONS

    def __post_init__(self) -> None:
        if not self.address:
            raise ValueError("address: must not be empty")
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts: must be from 1 to {MAX_ATTEMPTS}; got {self.attempts}")
        if self.connections < 1:
            raise ValueError(f"connections: must be at least 1; got {self.connections}")
        if self.token is None:
            return
        if not self.token or not all("!" <= letter <= "~" for letter in self.token):
            raise ValueError("token: must be printable ASCII without spaces, at least one character")
        if not self.tls and not is_local(self.address) and not self.token_in_clear:
            raise ValueError(
                f"token: sent without TLS only to a loopback address or a unix socket, not to {self.address}; pass "
                "tls, or token_in_clear where nobody can listen"
            )

    def __repr__(self) -> str:
        return f"Endpoint(address={self.address!r}, tls={bool(self.tls)}, token={'given' if self.token else None})"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        if not self.tls:
            return None
        return (self.tls if isinstance(self.tls, TLS) else TLS()).credentials()

    @property
    def channel_options(self) -> list[list[tuple[str, Any]]]:
        """The options of each channel. gRPC would have channels that are alike share one connection."""
        return [[*self.options, ("grpc.use_local_subchannel_pool", 1)] for _ in range(self.connections)]

    @property
    def options(self) -> list[tuple[str, Any]]:
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if self.attempts > 1:
            # Not streams: what gRPC would send again of one is not what was not answered.
            names = [
                {"service": service.full_name, "method": method.name}
                for service in _SERVICES
                for method in service.methods
                if not method.client_streaming
            ]
            config["methodConfig"] = [{"name": names, "retryPolicy": _retry_policy(self.attempts)}]
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", json.dumps(config)),
            ("grpc.enable_retries", int(self.attempts > 1)),
            # A message that does not fit in here (gRPC's default is 256 KiB) would not be retried.
            ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # The size of an answer follows from the rows of a message, which are bounded here already.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.primary_user_agent", "hourglass-client"),
        ]
        if is_local(self.address):
            # A proxy of the environment is for other machines; and it would see the token.
            options.append(("grpc.enable_http_proxy", 0))
        return options


def _retry_policy(attempts: int) -> dict[str, Any]:
    """gRPC waits 80 % to 120 % of each back-off, and never beyond the deadline of the call."""
    return {
        "maxAttempts": attempts,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }


def is_local(address: str) -> bool:
    """Whether nothing sent to this gRPC address leaves the machine."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("ipv4", "ipv6"):
        return all(_is_loopback(_host(part)) for part in rest.split(","))
    if address.startswith("dns:"):
        # dns:host, dns:///host, or dns://server/host, whose answers come from elsewhere.
        if rest.startswith("//") and not rest.startswith("///"):
            return False
        address = rest.removeprefix("///")
    return _is_loopback(_host(address))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, port = address.rpartition(":")
    return host if host and ":" not in host and port else address


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
