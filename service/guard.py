"""Who is let in: what each method asks of a token."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import PermissionDenied
from service.tokens import ADMIN, INFER, READ, Grant, Tokens

# Whether the service is there may be asked by all.
_OPEN = frozenset({"grpc.health.v1.Health"})
_INFERENCE = "inference.GRPCInferenceService"
_OPEN_METHODS = frozenset(f"/{_INFERENCE}/{name}" for name in ("ServerLive", "ServerReady"))
# Their handlers ask whether the token allows the model. Of other services a token for some models gets nothing.
_BY_MODEL = frozenset({"autoencoder.v1.AutoencoderService", "autoencoder.v1.ModelAdminService", _INFERENCE})
# Of methods and services that are not here: infer.
_GROUPS = {
    "/autoencoder.v1.AutoencoderService/ListModels": READ,
    "/autoencoder.v1.AutoencoderService/GetModel": READ,
    "autoencoder.v1.ModelAdminService": ADMIN,
    "grpc.reflection.v1alpha.ServerReflection": READ,
    **{
        f"/{_INFERENCE}/{name}": READ
        for name in (
            "ServerMetadata",
            "ModelReady",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        )
    },
}

Metadata = Iterable[tuple[str, str | bytes]]


class Guard:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def admit(self, method: str, metadata: Metadata) -> Grant | None:
        """What the caller of `/service/method` may do; None where all may. Raises Unauthenticated, PermissionDenied."""
        service = method[1:].rpartition("/")[0]
        if service in _OPEN or method in _OPEN_METHODS:
            return None
        authorization = next((value for key, value in metadata if key == "authorization"), None)
        grant = self._tokens.authenticate(authorization if isinstance(authorization, str) else None)
        grant.require_group(_GROUPS.get(method) or _GROUPS.get(service, INFER))
        if service not in _BY_MODEL and "*" not in grant.models and not service.startswith("grpc.reflection."):
            raise PermissionDenied(
                "MODEL_NOT_ALLOWED",
                f"the token {grant.name} allows models like {', '.join(grant.models)}, and {service} does not ask for "
                "them: use autoencoder.v1.AutoencoderService, or a token for all models",
            )
        return grant
