"""How a peer is spoken to: raw float32 over HTTP, or the Open Inference Protocol v2 over gRPC.

None of the peers' packages is needed: the few messages of the protocol that are used stand here, in a descriptor pool
of their own (two copies of `package inference` in the default pool clash). Source: the protocol's specification,
https://github.com/kserve/open-inference-protocol, grpc/inference.proto; numbers of fields are those of it.
"""

from __future__ import annotations

import struct
import urllib.request
from functools import cache
from typing import Any, Literal, Protocol

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Floats = npt.NDArray[np.float32]
MODEL = "encoder"
INPUT, OUTPUT = "rows", "latents"


class Wire(Protocol):
    """What a kind of server wants to see. Addresses are host:port, bodies those that h2load posts."""

    kind: Literal["grpc", "http"]
    headers: tuple[str, ...]

    @property
    def path(self) -> str: ...

    def body(self, rows: Floats) -> bytes:
        """The request for rows [B, ...]."""

    def post(self, address: str, body: bytes, timeout_s: float) -> bytes:
        """The answer's body. Raises OSError or grpc.RpcError if there is none, or none that says OK."""

    def latents(self, answer: bytes, rows: int) -> Floats:
        """[rows, ...] of an answer to so many rows."""


class RawHTTP:
    """Rows and latents are the bodies, float32, row-major, little-endian."""

    kind: Literal["grpc", "http"] = "http"
    headers: tuple[str, ...] = ("content-type: application/octet-stream",)

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def path(self) -> str:
        return self._path

    def body(self, rows: Floats) -> bytes:
        return np.ascontiguousarray(rows, "<f4").tobytes()

    def post(self, address: str, body: bytes, timeout_s: float) -> bytes:
        headers = dict(header.split(": ") for header in self.headers)
        request = urllib.request.Request(f"http://{address}{self._path}", body, headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            answer: bytes = response.read()
            return answer

    def latents(self, answer: bytes, rows: int) -> Floats:
        return np.frombuffer(answer, "<f4").reshape(rows, -1)


class OpenInference:
    """ModelInfer, with raw contents. Bodies are framed messages: a zero, the length, the message."""

    kind: Literal["grpc", "http"] = "grpc"
    headers: tuple[str, ...] = ("content-type: application/grpc", "te: trailers")
    path = "/inference.GRPCInferenceService/ModelInfer"

    def body(self, rows: Floats) -> bytes:
        request = messages()["ModelInferRequest"](
            model_name=MODEL, raw_input_contents=[np.ascontiguousarray(rows, "<f4").tobytes()]
        )
        request.inputs.add(name=INPUT, datatype="FP32", shape=rows.shape)
        message: bytes = request.SerializeToString()
        return b"\0" + struct.pack(">I", len(message)) + message

    def post(self, address: str, body: bytes, timeout_s: float) -> bytes:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            call: Any = channel.unary_unary(self.path)
            answer: bytes = call(body[5:], timeout=timeout_s)
        return b"\0" + struct.pack(">I", len(answer)) + answer

    def latents(self, answer: bytes, rows: int) -> Floats:
        response = messages()["ModelInferResponse"].FromString(answer[5:])
        if len(response.outputs) != 1:
            raise ValueError(f"one output was expected, {len(response.outputs)} came")
        output = response.outputs[0]
        if output.datatype != "FP32" or output.shape[0] != rows:
            raise ValueError(f"FP32 of {rows} rows was expected, {output.datatype} of shape {output.shape} came")
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(tuple(output.shape))
        return np.array(output.contents.fp32_contents, "<f4").reshape(tuple(output.shape))


@cache
def messages() -> dict[str, Any]:
    """The message classes by name. Maps of parameters are left out: nothing here sends or reads them."""
    scalar = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int | str, bool]) -> None:
        described = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = scalar.LABEL_REPEATED if repeated else scalar.LABEL_OPTIONAL
            if isinstance(kind, str):
                described.field.add(
                    name=field, number=number, label=label, type=scalar.TYPE_MESSAGE, type_name=f".inference.{kind}"
                )
            else:
                described.field.add(name=field, number=number, label=label, type=kind)

    text, blob, whole, real = scalar.TYPE_STRING, scalar.TYPE_BYTES, scalar.TYPE_INT64, scalar.TYPE_FLOAT
    tensor = (("name", 1, text, False), ("datatype", 2, text, False), ("shape", 3, whole, True))
    contents = ("contents", 5, "InferTensorContents", False)
    message("InferTensorContents", ("fp32_contents", 6, real, True))
    message("InferInputTensor", *tensor, contents)
    message("InferOutputTensor", *tensor, contents)
    names = (("model_name", 1, text, False), ("model_version", 2, text, False), ("id", 3, text, False))
    message("ModelInferRequest", *names, ("inputs", 5, "InferInputTensor", True), ("raw_input_contents", 7, blob, True))
    message(
        "ModelInferResponse", *names, ("outputs", 5, "InferOutputTensor", True), ("raw_output_contents", 6, blob, True)
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        described.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{described.name}"))
        for described in file.message_type
    }
