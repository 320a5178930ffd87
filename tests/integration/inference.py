"""A client of the Open Inference Protocol on plain grpc, with messages from a descriptor pool of its own."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import message_factory

from service import inference_messages

TIMEOUT_S = 30.0
POOL = inference_messages.pool()
Arrays = dict[str, npt.NDArray[Any]]

_DATATYPES = {np.dtype("f4"): "FP32", np.dtype("f2"): "FP16", np.dtype("u1"): "UINT8"}
_DTYPES = {"FP32": np.float32, "FP16": np.float16}


def message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


class Stub:
    """Each RPC by its name: a message in, a message out."""

    def __init__(self, channel: grpc.Channel) -> None:
        service = POOL.FindServiceByName(inference_messages.SERVICE)
        for method in service.methods:
            multi: Any = channel.stream_stream if method.name == "ModelStreamInfer" else channel.unary_unary
            call = multi(
                f"/{service.full_name}/{method.name}",
                lambda request: request.SerializeToString(),
                message_factory.GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def request(
    model: str,
    inputs: Arrays,
    *,
    typed: bool = False,
    parameters: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
    **fields: Any,
) -> Any:
    """A ModelInferRequest."""
    made = message("ModelInferRequest")(model_name=model, outputs=[{"name": name} for name in outputs], **fields)
    for name, array in inputs.items():
        datatype = _DATATYPES[array.dtype]
        sent = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            field = {"FP32": "fp32_contents", "UINT8": "uint_contents"}[datatype]
            getattr(sent.contents, field).extend(array.ravel().tolist())
        else:
            made.raw_input_contents.append(array.tobytes())
    for name, value in (parameters or {}).items():
        kind = {str: "string_param", int: "int64_param", bool: "bool_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    return made


def arrays(response: Any) -> Arrays:
    """The outputs of a ModelInferResponse by name."""
    found: Arrays = {}
    for number, output in enumerate(response.outputs):
        dtype, shape = _DTYPES[output.datatype], tuple(output.shape)
        if response.raw_output_contents:
            found[output.name] = np.frombuffer(response.raw_output_contents[number], dtype).reshape(shape)
        else:
            found[output.name] = np.asarray(output.contents.fp32_contents, dtype).reshape(shape)
    return found
