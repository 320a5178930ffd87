"""The methods of inference.GRPCInferenceService, the Open Inference Protocol: they convert, and ask the same models."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from google.protobuf.message import Message

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from service import inference_messages as messages
from service import inference_operations as operations
from service import inference_tensors as tensors
from service.calls import Call, Method, allows, handle, require_model
from service.dispatcher import Result
from service.errors import InvalidArgument, NotFound, NotServed, ServiceError, Unavailable, Unsupported, internal_error
from service.inference_operations import Operation, Wanted
from service.metrics import Metrics
from service.repository import Repository
from service.servicer import reply
from service.statistics import Totals
from service.stream import Counts, Item

NAME = "hourglass"
EXTENSIONS = ("model_configuration", "parameters", "statistics")
_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_TYPE_FP32 = "TYPE_FP32"
_KNOWN = frozenset({"output_datatype", "timeout"})
_KNOWN_OF_INTERPOLATE = _KNOWN | {"steps", "method"}
_FINAL_WANTED, _FINAL = "triton_enable_empty_final_response", "triton_final_response"


class InferenceProtocol:
    """`ready` says whether the service as a whole can be asked."""

    def __init__(
        self,
        repository: Repository,
        *,
        max_interpolation_points: int,
        metrics: Metrics,
        ready: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._max_interpolation_points = max_interpolation_points
        self._counts = Counts(metrics)
        self._ready = ready
        try:
            self._version = version("hourglass")
        except PackageNotFoundError:  # run from a source tree
            self._version = "unknown"

    def methods(self) -> dict[str, Method[Any]]:
        """The RPCs by name."""

        def method(request: Any, handler: Callable[[Any, Call], None], *, stream: bool = False) -> Method[Any]:
            # Clients of Triton's streams take answers to be in the order of their requests.
            return Method(parse=request.FromString, handle=handler, stream=stream, ordered=stream)

        return {
            "ServerLive": method(messages.LiveRequest, self.server_live),
            "ServerReady": method(messages.ReadyRequest, self.server_ready),
            "ModelReady": method(messages.ModelReadyRequest, self.model_ready),
            "ServerMetadata": method(messages.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": method(messages.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": method(messages.InferRequest, self.infer),
            "ModelStreamInfer": method(messages.InferRequest, self.stream_infer, stream=True),
            "ModelConfig": method(messages.ConfigRequest, self.model_config),
            "ModelStatistics": method(messages.StatisticsRequest, self.model_statistics),
            "RepositoryIndex": method(messages.IndexRequest, self.repository_index),
            "RepositoryModelLoad": method(messages.LoadRequest, self.refuse),
            "RepositoryModelUnload": method(messages.UnloadRequest, self.refuse),
        }

    def server_live(self, request: Any, call: Call) -> None:
        call.answer(lambda: messages.LiveResponse(live=True))

    def server_ready(self, request: Any, call: Call) -> None:
        ready = self._ready()
        call.answer(lambda: messages.ReadyResponse(ready=ready))

    def model_ready(self, request: Any, call: Call) -> None:
        try:
            self._operation(request.name, request.version, call)
            ready = True
        except (NotFound, Unavailable, Unsupported):
            ready = False
        call.answer(lambda: messages.ModelReadyResponse(ready=ready))

    def server_metadata(self, request: Any, call: Call) -> None:
        call.answer(lambda: messages.ServerMetadataResponse(name=NAME, version=self._version, extensions=EXTENSIONS))

    def model_metadata(self, request: Any, call: Call) -> None:
        operation = self._operation(request.name, request.version, call)
        versions = [str(card.version) for card in self._repository.all() if card.name == operation.model.name]
        call.answer(
            lambda: messages.ModelMetadataResponse(
                name=request.name,
                versions=versions,
                platform=_PLATFORM,
                inputs=[{"name": each.name, "datatype": "FP32", "shape": each.shape} for each in operation.inputs],
                outputs=[{"name": each.name, "datatype": "FP32", "shape": each.shape} for each in operation.outputs],
            )
        )

    def model_config(self, request: Any, call: Call) -> None:
        operation = self._operation(request.name, request.version, call)
        # The dimension that counts rows is left out where Triton adds it itself.
        first = 1 if operation.batched else 0
        config = {
            "name": operation.full_name,
            "platform": _PLATFORM,
            "backend": _BACKEND,
            "max_batch_size": operation.model.max_batch_rows if operation.batched else 0,
            "input": [
                {"name": each.name, "data_type": _TYPE_FP32, "dims": each.shape[first:], "optional": each.optional}
                for each in operation.inputs
            ],
            "output": [
                {"name": each.name, "data_type": _TYPE_FP32, "dims": each.shape[first:]} for each in operation.outputs
            ],
            "dynamic_batching": {},
        }
        call.answer(lambda: messages.ConfigResponse(config=config))

    def model_statistics(self, request: Any, call: Call) -> None:
        models = [model for model in self._repository.models() if allows(call, model.name)]
        chosen = operations.split(request.name) if request.name else None
        if chosen:
            # Raises where there is none of that name or version.
            asked = self._operation(request.name, request.version, call).model.version
            models = [
                model for model in models if model.name == chosen[0] and (not request.version or model.version == asked)
            ]
        response = messages.StatisticsResponse()
        for model in models:
            for name in operations.names(model.manifest):
                if chosen is None or name == chosen[1]:
                    _statistics(
                        response.model_stats.add(name=f"{model.name}.{name}", version=str(model.version)),
                        model.statistics[name].totals(),
                    )
        call.answer(lambda: response)

    def repository_index(self, request: Any, call: Call) -> None:
        if request.repository_name:
            raise InvalidArgument(
                "BAD_REPOSITORY", f"repository_name: must be empty; got {request.repository_name[:64]!r}"
            )
        models = [
            {"name": f"{card.name}.{name}", "version": str(card.version), "state": "READY"}
            for card in self._repository.all()
            if allows(call, card.name)
            for name in operations.names(card)
        ]
        call.answer(lambda: messages.IndexResponse(models=models))

    def refuse(self, request: Any, call: Call) -> None:
        raise NotServed("NOT_SERVED", "models are loaded and unloaded by who operates the service, not on this port")

    def infer(self, request: Any, call: Call) -> None:
        operation = self._operation(request.model_name, request.model_version, call)
        parameters = tensors.Parameters(request, _KNOWN if operation.batched else _KNOWN_OF_INTERPOLATE)
        dtype = tensors.answer_dtype(parameters)
        wanted = Wanted(
            steps=parameters.number("steps"),
            method=parameters.text("method", "linear"),
            max_points=self._max_interpolation_points,
        )
        outputs = tensors.wanted_outputs(request, operation.outputs)
        inputs = tensors.decode(request, operation.inputs)
        timeout_us = parameters.number("timeout")
        if timeout_us:
            call = _Within(call, timeout_us)
        # FP16 has no typed form.
        typed = not request.raw_input_contents and dtype == model_pb2.DATA_TYPE_FLOAT32
        name, identity = request.model_name, request.id

        def response(result: Result) -> Message:
            arrays = operation.results(result)
            message = messages.InferResponse(model_name=name, model_version=str(operation.model.version), id=identity)
            for number in outputs:
                tensors.encode(message, operation.outputs[number], arrays[number], dtype, typed=typed)
            return message  # type: ignore[no-any-return]

        operation.start(inputs, wanted, call, reply(call, response))

    def stream_infer(self, request: Any, call: Call) -> None:
        item = _Item(call, self._counts, request)
        try:
            handle(self.infer, request, item)
        except ServiceError as error:
            item.fail(error)
        except Exception:
            item.fail(internal_error("a handler failed"))

    def _operation(self, full_name: str, version: str, call: Call) -> Operation:
        model, name = operations.split(full_name)
        require_model(call, model)
        found = self._repository.get(pb.ModelSelector(name=model, version=version))
        if call.observation is not None:
            call.observation.asks(found.name, found.version, 0)
        return operations.operation(found, name)


class _Item(Item):
    """One request of a stream."""

    __slots__ = ("_final", "_id")

    def __init__(self, call: Call, counts: Counts, request: Any) -> None:
        super().__init__(call, counts, "infer", request.id)
        self._id = request.id
        self._final = _FINAL_WANTED in request.parameters and request.parameters[_FINAL_WANTED].bool_param

    def _response(self, message: Message) -> Message:
        answer = messages.StreamInferResponse(infer_response=message)
        if self._final:
            answer.infer_response.parameters[_FINAL].bool_param = True
        return answer  # type: ignore[no-any-return]

    def _failure(self, error: ServiceError) -> Message:
        return messages.StreamInferResponse(  # type: ignore[no-any-return]
            error_message=error.text, infer_response=messages.InferResponse(id=self._id)
        )


class _Within:
    """A call that has `timeout_us` microseconds from now, if it has no less already."""

    def __init__(self, call: Call, timeout_us: int) -> None:
        if timeout_us < 0:
            raise InvalidArgument("BAD_TIMEOUT", f"parameters[timeout]: must be at least 0; got {timeout_us}")
        self.caller = call.caller
        self.grant = call.grant
        self.observation = call.observation
        self.deadline = min(call.deadline, time.monotonic() + timeout_us / 1e6)
        self.on_cancel = call.on_cancel
        self.answer = call.answer
        self.fail = call.fail


def _statistics(message: Any, totals: Totals) -> None:
    message.last_inference = int(totals.last_answer * 1e3)
    message.inference_count = totals.rows
    message.execution_count = totals.batches
    for name, count, seconds in (
        ("success", totals.successes, totals.success_s),
        ("fail", totals.failures, totals.failure_s),
        ("queue", totals.successes, totals.queue_s),
        ("compute_infer", totals.successes, totals.compute_s),
    ):
        duration = getattr(message.inference_stats, name)
        duration.count, duration.ns = count, int(seconds * 1e9)
