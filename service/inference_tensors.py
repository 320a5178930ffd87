"""Tensors and parameters of the Open Inference Protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoencoder.v1 import model_pb2
from service import tensors
from service.errors import InvalidArgument
from service.inference_operations import Input, Output
from service.tensors import Array, Rows

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
}
_ANSWERS = {"FP32": model_pb2.DATA_TYPE_FLOAT32, "FP16": model_pb2.DATA_TYPE_FLOAT16}
_FIELDS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
# Triton's own, which change nothing where there are no sequences, priorities or streams of many answers.
_IGNORED = {"priority", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
_IGNORED_PREFIX = "triton_"


def decode(request: Any, inputs: Sequence[Input]) -> dict[str, Array]:
    """The inputs of a ModelInferRequest by name. Raises InvalidArgument."""
    known = {each.name: each for each in inputs}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            "BAD_RAW_CONTENTS",
            f"raw_input_contents: one entry for each of {len(request.inputs)} inputs; got {len(raw)}",
        )
    found: dict[str, Array] = {}
    for number, sent in enumerate(request.inputs):
        wanted = known.get(sent.name)
        if wanted is None:
            raise InvalidArgument("BAD_INPUT", f"inputs: must be of {', '.join(known)}; got {sent.name[:64]!r}")
        field = f"inputs[{sent.name}]"
        if sent.name in found:
            raise InvalidArgument("BAD_INPUT", f"{field}: is there twice")
        refuse_parameters(field, sent.parameters)
        found[sent.name] = _decode(field, sent, raw[number] if raw else None, wanted)
    for each in inputs:
        if not each.optional and each.name not in found:
            raise InvalidArgument("BAD_INPUT", f"inputs: {each.name} is missing")
    return found


def _decode(field: str, sent: Any, raw: bytes | None, wanted: Input) -> Array:
    dtype = _DTYPES.get(sent.datatype)
    if dtype is None:
        raise InvalidArgument(
            "BAD_DTYPE", f"{field}.datatype: must be {', '.join(_DTYPES)}; got {sent.datatype[:64]!r}"
        )
    shape = tuple(sent.shape)
    if raw is not None:
        if sent.HasField("contents"):
            raise InvalidArgument("BAD_RAW_CONTENTS", f"{field}.contents: must be absent beside raw_input_contents")
        data = raw
    else:
        tensors.check_shape(field, shape, wanted.spec)
        data = _typed(field, sent.datatype, dtype, shape, sent.contents)
    return tensors.view(field, dtype, sent.datatype, shape, data, wanted.spec)


def _typed(field: str, datatype: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], contents: Any) -> bytes:
    name = _FIELDS.get(datatype)
    if name is None:
        raise InvalidArgument("BAD_DTYPE", f"{field}.datatype: {datatype} comes in raw_input_contents only")
    others = [each.name for each, _ in contents.ListFields() if each.name != name]
    if others:
        raise InvalidArgument("BAD_CONTENTS", f"{field}.contents: {datatype} is in {name}; got {', '.join(others)}")
    values = getattr(contents, name)
    if len(values) != math.prod(shape):
        raise InvalidArgument(
            "BAD_DATA_LENGTH",
            f"{field}.contents.{name}: shape {list(shape[:8])} has {math.prod(shape)} elements; got {len(values)}",
        )
    if datatype == "UINT8" and values and max(values) > 255:
        raise InvalidArgument("BAD_CONTENTS", f"{field}.contents.{name}: UINT8 is from 0 to 255; got {max(values)}")
    return np.asarray(values, dtype).tobytes()


def wanted_outputs(request: Any, outputs: Sequence[Output]) -> list[int]:
    """Which outputs are asked for, in their order. Raises InvalidArgument."""
    if not request.outputs:
        return list(range(len(outputs)))
    known = {output.name: number for number, output in enumerate(outputs)}
    for sent in request.outputs:
        if sent.name not in known:
            raise InvalidArgument("BAD_OUTPUT", f"outputs: must be of {', '.join(known)}; got {sent.name[:64]!r}")
        refuse_parameters(f"outputs[{sent.name}]", sent.parameters)
    return [known[sent.name] for sent in request.outputs]


def encode(response: Any, output: Output, array: Rows, dtype: model_pb2.DataType, *, typed: bool) -> None:
    """Add an output to a ModelInferResponse, of which all are `typed` or none is."""
    dtype = dtype if output.converted else model_pb2.DATA_TYPE_FLOAT32
    datatype = "FP16" if dtype == model_pb2.DATA_TYPE_FLOAT16 else "FP32"
    made = response.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
    if typed:
        made.contents.fp32_contents.extend(array.ravel().tolist())
    else:
        response.raw_output_contents.append(tensors.to_bytes(array, dtype))


def answer_dtype(parameters: Parameters) -> model_pb2.DataType:
    """Raises InvalidArgument."""
    name = parameters.text("output_datatype", "FP32")
    if name not in _ANSWERS:
        raise InvalidArgument("BAD_DTYPE", f"parameters[output_datatype]: must be FP32 or FP16; got {name[:64]!r}")
    return _ANSWERS[name]


def refuse_parameters(field: str, parameters: Mapping[str, Any]) -> None:
    """Parameters of a tensor would change what it means: shared memory, classification."""
    for name in parameters:
        if not name.startswith("binary_data"):  # of the protocol over HTTP; gateways leave it there
            raise InvalidArgument("BAD_PARAMETER", f"{field}.parameters: {name[:64]!r} is not known")


class Parameters:
    """The parameters of a request. Raises InvalidArgument for one that is neither `known` nor Triton's."""

    def __init__(self, request: Any, known: frozenset[str]) -> None:
        self._values = request.parameters
        for name in self._values:
            if name not in known and name not in _IGNORED and not name.startswith(_IGNORED_PREFIX):
                raise InvalidArgument(
                    "BAD_PARAMETER", f"parameters: must be of {', '.join(sorted(known))}; got {name[:64]!r}"
                )

    def text(self, name: str, default: str) -> str:
        return str(self._value(name, "string_param")) if name in self._values else default

    def number(self, name: str) -> int | None:
        return int(self._value(name, "int64_param", "uint64_param")) if name in self._values else None

    def _value(self, name: str, *kinds: str) -> Any:
        value = self._values[name]
        kind = value.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise InvalidArgument("BAD_PARAMETER", f"parameters[{name}]: must be {' or '.join(kinds)}; got {kind}")
        return getattr(value, kind)
