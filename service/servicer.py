"""The methods of autoencoder.v1.AutoencoderService: each converts, asks the model, and converts back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from service import paths, tensors
from service.calls import Call, Method, allows, require_model
from service.dispatcher import Done, Result
from service.errors import InvalidArgument, ServiceError
from service.metrics import Metrics
from service.model import ServedModel
from service.repository import Repository
from service.stream import Stream

SERVICE = "autoencoder.v1.AutoencoderService"

_METHODS = {
    pb.INTERPOLATION_METHOD_UNSPECIFIED: paths.linear,
    pb.INTERPOLATION_METHOD_LINEAR: paths.linear,
    pb.INTERPOLATION_METHOD_SPHERICAL: paths.spherical,
}

_Response = TypeVar(
    "_Response",
    pb.EncodeResponse,
    pb.DecodeResponse,
    pb.ReconstructResponse,
    pb.DenoiseResponse,
    pb.InterpolateResponse,
)
_Request = pb.EncodeRequest | pb.DecodeRequest | pb.ReconstructRequest | pb.DenoiseRequest | pb.InterpolateRequest


class Servicer:
    def __init__(self, repository: Repository, *, max_interpolation_points: int, metrics: Metrics) -> None:
        self._repository = repository
        self._max_interpolation_points = max_interpolation_points
        self._stream = Stream(
            {
                "encode": self.encode,
                "decode": self.decode,
                "reconstruct": self.reconstruct,
                "denoise": self.denoise,
                "interpolate": self.interpolate,
            },
            metrics,
        )

    def methods(self) -> dict[str, Method[Any]]:
        """The RPCs by name."""
        return {
            "Encode": Method(parse=pb.EncodeRequest.FromString, handle=self.encode),
            "Decode": Method(parse=pb.DecodeRequest.FromString, handle=self.decode),
            "Reconstruct": Method(parse=pb.ReconstructRequest.FromString, handle=self.reconstruct),
            "Denoise": Method(parse=pb.DenoiseRequest.FromString, handle=self.denoise),
            "Interpolate": Method(parse=pb.InterpolateRequest.FromString, handle=self.interpolate),
            "ListModels": Method(parse=pb.ListModelsRequest.FromString, handle=self.list_models),
            "GetModel": Method(parse=pb.GetModelRequest.FromString, handle=self.get_model),
            "Stream": Method(parse=pb.StreamRequest.FromString, handle=self._stream.handle, stream=True),
        }

    def encode(self, request: pb.EncodeRequest, call: Call) -> None:
        model, dtype = self._asked(request, call)
        rows = tensors.decode("rows", request.rows, model.input)

        def response(result: Result) -> Message:
            (latents,) = result.outputs
            message = pb.EncodeResponse()
            tensors.encode(latents, dtype, message.latents)
            return _executed(message, model, result)

        model.encode(rows, call, reply(call, response))

    def decode(self, request: pb.DecodeRequest, call: Call) -> None:
        model, dtype = self._asked(request, call)
        latents = tensors.decode("latents", request.latents, model.latent)

        def response(result: Result) -> Message:
            (rows,) = result.outputs
            message = pb.DecodeResponse()
            tensors.encode(rows, dtype, message.rows)
            return _executed(message, model, result)

        model.decode(latents, call, reply(call, response))

    def reconstruct(self, request: pb.ReconstructRequest, call: Call) -> None:
        model, dtype = self._asked(request, call)
        rows = tensors.decode("rows", request.rows, model.input)

        def response(result: Result) -> Message:
            reconstructions, errors = result.outputs
            message = pb.ReconstructResponse(
                reconstruction_errors=errors.tolist(), novelties=model.novelty(errors).tolist()
            )
            tensors.encode(reconstructions, dtype, message.rows)
            return _executed(message, model, result)

        model.reconstruct(rows, call, reply(call, response))

    def denoise(self, request: pb.DenoiseRequest, call: Call) -> None:
        model, dtype = self._asked(request, call)
        rows = tensors.decode("rows", request.rows, model.input)

        def response(result: Result) -> Message:
            clean, errors = result.outputs
            message = pb.DenoiseResponse(distances=np.sqrt(errors).tolist())
            tensors.encode(clean, dtype, message.rows)
            return _executed(message, model, result)

        model.denoise(rows, call, reply(call, response))

    def interpolate(self, request: pb.InterpolateRequest, call: Call) -> None:
        model, dtype = self._asked(request, call)
        path = self._path(request)
        return_latents = request.return_latents

        def response(result: Result) -> Message:
            rows, latents = result.outputs
            message = pb.InterpolateResponse()
            tensors.encode(rows, dtype, message.rows)
            if return_latents:
                tensors.encode(latents, dtype, message.latents)
            return _executed(message, model, result)

        done = reply(call, response)
        match request.WhichOneof("ends"):
            case "rows":
                start, end = _pair("rows", request.rows, model.input)
                model.interpolate_rows(start, end, path, call, done)
            case "latents":
                start, end = _pair("latents", request.latents, model.latent)
                model.interpolate_latents(start, end, path, call, done)
            case _:
                raise InvalidArgument("NO_ENDS", "rows or latents: one of them must be given")

    def list_models(self, request: pb.ListModelsRequest, call: Call) -> None:
        cards = [card for card in self._repository.all() if allows(call, card.name)]
        call.answer(lambda: pb.ListModelsResponse(models=cards))

    def get_model(self, request: pb.GetModelRequest, call: Call) -> None:
        require_model(call, request.model.name)
        card = self._repository.get(request.model).manifest
        call.answer(lambda: pb.GetModelResponse(model=card))

    def _asked(self, request: _Request, call: Call) -> tuple[ServedModel, model_pb2.DataType]:
        """The model and the type of the answer that a request asks for."""
        selector = request.model
        require_model(call, selector.name)
        model = self._repository.get(selector)
        if call.observation is not None:
            call.observation.asks(model.name, model.version, 0)
        return model, tensors.output_dtype(request.output_dtype)

    def _path(self, request: pb.InterpolateRequest) -> paths.Path:
        method = _METHODS.get(request.method)
        if method is None:
            raise InvalidArgument("BAD_METHOD", f"method: must be LINEAR or SPHERICAL; got number {request.method}")
        points = request.WhichOneof("points")
        return paths.Path.through(
            method,
            steps=request.steps if points == "steps" else None,
            weights=request.weights.values if points == "weights" else None,
            max_points=self._max_interpolation_points,
        )


def _pair(field: str, pair: pb.TensorPair, spec: tensors.Spec) -> tuple[tensors.Array, tensors.Array]:
    start = tensors.decode(f"{field}.start", pair.start, spec)
    end = tensors.decode(f"{field}.end", pair.end, spec)
    if len(start) != len(end):
        raise InvalidArgument(
            "BAD_SHAPE", f"{field}: start has {len(start)} rows and end has {len(end)}; must be equal"
        )
    return start, end


def reply(call: Call, response: Callable[[Result], Message]) -> Done:
    """What answers a call when the model is done; `response` is called in a thread of the transport's choice."""

    def done(outcome: Result | ServiceError) -> None:
        if isinstance(outcome, ServiceError):
            call.fail(outcome)
        else:
            call.answer(lambda: response(outcome))

    return done


def _executed(message: _Response, model: ServedModel, result: Result) -> _Response:
    """The message with who answered, and where the time went."""
    execution = message.execution
    execution.model_name = model.name
    execution.model_version = model.version
    execution.queue_seconds = result.queue_s
    execution.compute_seconds = result.compute_s
    execution.batch_rows = result.batch_rows
    return message
