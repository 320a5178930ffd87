"""The client for administrators: which versions are served, and under which labels."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from autoencoder.v1 import admin_pb2, admin_pb2_grpc
from hourglass.channel import MAX_ATTEMPTS, TLS, Connected, Endpoint
from hourglass.errors import Closed, InvalidArgument, from_rpc
from hourglass.jobs import Deadline, selector


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of one model. `state`: available, loading, ready or failed; `reason`: why it was refused."""

    name: str
    version: int
    state: str
    reason: str
    labels: tuple[str, ...]


class AdminClient(Connected):
    """A connection to the `--admin-address` of a service, for any number of threads; a context manager.

    The arguments are as of `Client`. A change returns all versions of its model as they are
    then. It raises `NotFound`, `InvalidArgument`, `Unsupported` where a package is refused (with the file and the rule
    in the text) or the state does not allow it, and the other subclasses of `HourglassError`; then nothing has changed.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool | TLS = False,
        token: str | None = None,
        token_in_clear: bool = False,
        attempts: int = MAX_ATTEMPTS,
    ) -> None:
        endpoint = Endpoint(
            address=address, tls=tls, token=token, token_in_clear=token_in_clear, attempts=attempts, connections=1
        )
        self._address = address
        self._metadata = endpoint.metadata
        self._closed = False
        self._channel = (
            grpc.insecure_channel(address, endpoint.options)
            if (credentials := endpoint.credentials) is None
            else grpc.secure_channel(address, credentials, endpoint.options)
        )
        self._stub = admin_pb2_grpc.ModelAdminServiceStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closing twice does nothing."""
        self._closed = True
        self._channel.close()

    def versions(self, name: str = "", *, timeout_s: float | None = None) -> list[ModelVersion]:
        """All versions of all models, or of one, served or not, by name, the latest first."""
        return self._call("ListModelVersions", timeout_s, name=name)

    def load(
        self, name: str, version: int | str | None = None, *, timeout_s: float | None = None
    ) -> list[ModelVersion]:
        """Serve a version; with none given, what the service's policy chooses of what is on disk now."""
        return self._call("LoadModel", timeout_s, model=selector(name, version))

    def unload(
        self, name: str, version: int | str | None = None, *, timeout_s: float | None = None
    ) -> list[ModelVersion]:
        """Serve a version no more, or, with none given, the whole model."""
        return self._call("UnloadModel", timeout_s, model=selector(name, version))

    def reload(
        self, name: str, version: int | str | None = None, *, timeout_s: float | None = None
    ) -> list[ModelVersion]:
        """Load from disk again what is served of a model, or one version of it, and swap it."""
        return self._call("ReloadModel", timeout_s, model=selector(name, version))

    def label(self, name: str, label: str, version: int | str, *, timeout_s: float | None = None) -> list[ModelVersion]:
        """Point a label at a version, given by its number or another label; it is loaded where it is not."""
        return self._call("SetLabel", timeout_s, model=selector(name, version), label=label)

    def unlabel(self, name: str, label: str, *, timeout_s: float | None = None) -> list[ModelVersion]:
        """Delete a label."""
        return self._call("DeleteLabel", timeout_s, model=selector(name), label=label)

    def rollback(self, name: str, label: str, *, timeout_s: float | None = None) -> list[ModelVersion]:
        """Point a label at the version that it pointed at before."""
        return self._call("RollbackLabel", timeout_s, model=selector(name), label=label)

    def _call(self, method: str, timeout_s: float | None, **fields: Any) -> list[ModelVersion]:
        deadline = Deadline(timeout_s)
        try:
            request = getattr(admin_pb2, f"{method}Request")(**fields)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"name, label: must be text; {error}") from error
        try:
            response = getattr(self._stub, method)(request, timeout=deadline.remaining_s(), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error, address=self._address) from error
        except ValueError as error:
            raise (Closed("the client is closed") if self._closed else error) from error
        return versions_of(response)


def versions_of(response: Any) -> list[ModelVersion]:
    """What an answer tells; each kind of answer holds versions alike."""
    return [_version(version) for version in response.versions]


def _version(message: admin_pb2.ModelVersion) -> ModelVersion:
    known = message.state in admin_pb2.ModelState.values()
    state = admin_pb2.ModelState.Name(message.state) if known else f"state {message.state}"
    return ModelVersion(
        name=message.name,
        version=message.version,
        state=state.removeprefix("MODEL_STATE_").lower(),
        reason=message.reason,
        labels=tuple(message.labels),
    )
