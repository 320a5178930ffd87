"""A service with the real contract and simple maths on a real socket, and a hook that can fail, wait and count.

A latent is twice the first elements of the row; a row is the halves of the latent, repeated to fill it. The hook runs
before each call and may raise, abort or block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import autoencoder_pb2_grpc, model_pb2
from hourglass.tensors import Array

Hook = Callable[[str, Any, Any], None]

_FLOATS = {model_pb2.DATA_TYPE_FLOAT32: "<f4", model_pb2.DATA_TYPE_FLOAT16: "<f2", model_pb2.DATA_TYPE_UINT8: "u1"}
ALL = ("ENCODE", "DECODE", "RECONSTRUCT", "INTERPOLATE")


def card(
    name: str = "tiny",
    *,
    version: int = 1,
    row_shape: Sequence[int] = (2, 3),
    latent_units: int = 2,
    operations: Sequence[str] = (*ALL, "DENOISE"),
    kind: model_pb2.TensorKind = model_pb2.TENSOR_KIND_IMAGE,
) -> model_pb2.Model:
    row = model_pb2.TensorSpec(dtype="DATA_TYPE_FLOAT32", row_shape=row_shape, minimum=0, maximum=1, kind=kind)
    return model_pb2.Model(
        name=name,
        version=version,
        variant="linear",
        description="A fake.",
        input=row,
        output=row,
        latent=model_pb2.TensorSpec(
            dtype="DATA_TYPE_FLOAT32", row_shape=[latent_units], kind=model_pb2.TENSOR_KIND_VECTOR
        ),
        operations=[f"OPERATION_{operation}" for operation in operations],
        metrics=[model_pb2.Metric(name="psnr_db", value=21.5), model_pb2.Metric(name="squared_error", value=0.01)],
        runtime=model_pb2.Runtime(provider="CPUExecutionProvider", max_batch_rows=64),
    )


def unpack(tensor: pb.Tensor) -> Array:
    array = np.frombuffer(tensor.data, _FLOATS[tensor.dtype]).reshape(tuple(tensor.shape))
    return array / np.float32(255) if array.dtype == np.uint8 else array.astype(np.float32)


def pack(array: Array, wanted: int) -> pb.Tensor:
    dtype = "<f2" if wanted == model_pb2.DATA_TYPE_FLOAT16 else "<f4"
    return pb.Tensor(dtype=wanted or 1, shape=array.shape, data=array.astype(dtype).tobytes())  # type: ignore[arg-type]


def encode(rows: Array, units: int = 2) -> Array:
    return np.asarray(rows.reshape(len(rows), -1)[:, :units] * np.float32(2), np.float32)


def decode(latents: Array, row_shape: Sequence[int] = (2, 3)) -> Array:
    return np.stack([np.resize(latent / np.float32(2), row_shape) for latent in latents])


class FakeService(autoencoder_pb2_grpc.AutoencoderServiceServicer):  # type: ignore[misc]
    def __init__(self, *cards: model_pb2.Model, hook: Hook | None = None) -> None:
        self.cards = list(cards) or [card()]
        self.hook = hook
        self.calls: list[str] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self._lock = threading.Lock()

    def _enter(self, method: str, request: Any, context: Any) -> None:
        with self._lock:
            self.calls.append(method)
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
        if self.hook is not None:
            self.hook(method, request, context)

    def _card(self, request: Any, context: Any) -> model_pb2.Model:
        for model in self.cards:
            if model.name == request.model.name and request.model.version in ("", str(model.version)):
                return model
        fail(context, grpc.StatusCode.NOT_FOUND, "NO_MODEL", f"no model {request.model.name}")
        raise AssertionError("abort raises")

    def _execution(self, model: model_pb2.Model, row_count: int) -> pb.ExecutionInfo:
        return pb.ExecutionInfo(
            model_name=model.name,
            model_version=model.version,
            queue_seconds=0.25,
            compute_seconds=0.5,
            batch_rows=row_count,
        )

    def Encode(self, request: Any, context: Any) -> pb.EncodeResponse:
        self._enter("Encode", request, context)
        model = self._card(request, context)
        latents = encode(unpack(request.rows), model.latent.row_shape[0])
        return pb.EncodeResponse(
            latents=pack(latents, request.output_dtype), execution=self._execution(model, len(latents))
        )

    def Decode(self, request: Any, context: Any) -> pb.DecodeResponse:
        self._enter("Decode", request, context)
        model = self._card(request, context)
        rows = decode(unpack(request.latents), model.output.row_shape)
        return pb.DecodeResponse(rows=pack(rows, request.output_dtype), execution=self._execution(model, len(rows)))

    def Reconstruct(self, request: Any, context: Any) -> pb.ReconstructResponse:
        self._enter("Reconstruct", request, context)
        model = self._card(request, context)
        rows = unpack(request.rows)
        first = rows.reshape(len(rows), -1)[:, 0]
        return pb.ReconstructResponse(
            rows=pack(rows, request.output_dtype),
            reconstruction_errors=first,
            novelties=first / 2,
            execution=self._execution(model, len(rows)),
        )

    def Denoise(self, request: Any, context: Any) -> pb.DenoiseResponse:
        self._enter("Denoise", request, context)
        model = self._card(request, context)
        if model_pb2.OPERATION_DENOISE not in model.operations:
            fail(context, grpc.StatusCode.FAILED_PRECONDITION, "NO_OPERATION", f"{model.name} cannot denoise")
        rows = unpack(request.rows)
        return pb.DenoiseResponse(
            rows=pack(rows, request.output_dtype),
            distances=rows.reshape(len(rows), -1)[:, 0],
            execution=self._execution(model, len(rows)),
        )

    def Interpolate(self, request: Any, context: Any) -> pb.InterpolateResponse:
        self._enter("Interpolate", request, context)
        model = self._card(request, context)
        pair = getattr(request, request.WhichOneof("ends"))
        ends = [unpack(pair.start), unpack(pair.end)]
        if request.WhichOneof("ends") == "rows":
            ends = [encode(end, model.latent.row_shape[0]) for end in ends]
        steps = request.WhichOneof("points") == "steps"
        weights = np.linspace(0, 1, request.steps) if steps else np.array(request.weights.values)
        path = np.stack([ends[0] + (ends[1] - ends[0]) * np.float32(weight) for weight in weights], axis=1)
        rows = np.stack([decode(points, model.output.row_shape) for points in path])
        return pb.InterpolateResponse(
            rows=pack(rows, request.output_dtype),
            latents=pack(path, request.output_dtype) if request.return_latents else None,
            execution=self._execution(model, len(rows)),
        )

    def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        self._enter("ListModels", request, context)
        return pb.ListModelsResponse(models=self.cards)

    def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:
        self._enter("GetModel", request, context)
        return pb.GetModelResponse(model=self._card(request, context))


def rich_status(*details: message.Message) -> bytes:
    status = status_pb2.Status(code=3, message="not read")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return bytes(status.SerializeToString())


def fail(
    context: Any,
    code: grpc.StatusCode,
    reason: str,
    text: str,
    *,
    retry_after_s: float | None = None,
    domain: str = "hourglass",
    **metadata: str,
) -> None:
    """Abort as the service does: ErrorInfo, and RetryInfo where it is asked for."""
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)]
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    context.set_trailing_metadata((("grpc-status-details-bin", rich_status(*details)),))
    context.abort(code, text)


@contextmanager
def serving(
    service: FakeService,
    *,
    address: str = "127.0.0.1:0",
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> Iterator[str]:
    """The service on a real socket; gives its address. At the end the calls that still run are cancelled."""
    pool = futures.ThreadPoolExecutor(max_workers=16)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *options])
    autoencoder_pb2_grpc.add_AutoencoderServiceServicer_to_server(service, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(None).wait()
        pool.shutdown()
