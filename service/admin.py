"""The methods of autoencoder.v1.ModelAdminService: each converts, asks the catalogue, and converts back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoencoder.v1 import admin_pb2 as pb
from service.calls import Call, Method
from service.catalogue import Catalogue
from service.errors import InvalidArgument

SERVICE = "autoencoder.v1.ModelAdminService"


class Admin:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def methods(self) -> dict[str, Method[Any]]:
        """The RPCs by name."""
        catalogue, change = self._catalogue, self._change
        return {
            "LoadModel": change(
                pb.LoadModelRequest, pb.LoadModelResponse, lambda r: catalogue.load(r.model.name, r.model.version)
            ),
            "UnloadModel": change(
                pb.UnloadModelRequest, pb.UnloadModelResponse, lambda r: catalogue.unload(r.model.name, r.model.version)
            ),
            "ReloadModel": change(
                pb.ReloadModelRequest, pb.ReloadModelResponse, lambda r: catalogue.reload(r.model.name, r.model.version)
            ),
            "SetLabel": change(
                pb.SetLabelRequest,
                pb.SetLabelResponse,
                lambda r: catalogue.label(r.model.name, r.label, r.model.version),
            ),
            "DeleteLabel": change(
                pb.DeleteLabelRequest,
                pb.DeleteLabelResponse,
                lambda r: catalogue.unlabel(r.model.name, r.label),
                versioned=False,
            ),
            "RollbackLabel": change(
                pb.RollbackLabelRequest,
                pb.RollbackLabelResponse,
                lambda r: catalogue.rollback(r.model.name, r.label),
                versioned=False,
            ),
            "ListModelVersions": Method(parse=pb.ListModelVersionsRequest.FromString, handle=self.list_versions),
        }

    def list_versions(self, request: pb.ListModelVersionsRequest, call: Call) -> None:
        if request.name and call.grant is not None:
            call.grant.require_model(request.name)
        versions = self._versions(request.name)
        if (grant := call.grant) is not None:
            versions = [version for version in versions if grant.allows(version.name)]
        call.answer(lambda: pb.ListModelVersionsResponse(versions=versions))

    def _change(
        self, request_type: Any, response_type: Any, do: Callable[[Any], None], *, versioned: bool = True
    ) -> Method[Any]:
        def handle(request: Any, call: Call) -> None:
            if not request.model.name:
                raise InvalidArgument("NO_MODEL_NAME", "model.name: must be given")
            if request.model.version and not versioned:
                raise InvalidArgument(
                    "BAD_VERSION", f"model.version: must be empty here; got {request.model.version[:64]!r}"
                )
            if call.grant is not None:
                call.grant.require_model(request.model.name)
            do(request)
            versions = self._versions(request.model.name)
            call.answer(lambda: response_type(versions=versions))

        return Method(parse=request_type.FromString, handle=handle)

    def _versions(self, name: str) -> list[pb.ModelVersion]:
        return [
            pb.ModelVersion(
                name=entry.name,
                version=entry.version,
                state=f"MODEL_STATE_{entry.state}",
                reason=entry.reason,
                labels=entry.labels,
            )
            for entry in self._catalogue.entries(name)
        ]
