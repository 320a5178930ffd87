"""numpy arrays to tensors of the wire and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from autoencoder.v1 import autoencoder_pb2, model_pb2
from hourglass.errors import Internal, InvalidArgument

Array = npt.NDArray[Any]

# Explicitly little-endian: the wire's order, whatever the machine's.
_WIRE: dict[np.dtype[Any], model_pb2.DataType] = {
    np.dtype("<f4"): model_pb2.DATA_TYPE_FLOAT32,
    np.dtype("<f2"): model_pb2.DATA_TYPE_FLOAT16,
    np.dtype("u1"): model_pb2.DATA_TYPE_UINT8,
}
_ANSWERS: dict[int, np.dtype[Any]] = {
    model_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    model_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
}

# What every numpy can hold.
_MAX_DIMENSIONS = 32


def check_rows(name: str, rows: npt.ArrayLike) -> Array:
    """The rows as an array that was not copied, or read, where it was an array already."""
    if np.ma.is_masked(rows) or (isinstance(rows, list | tuple) and any(map(np.ma.is_masked, rows))):
        raise InvalidArgument(f"{name}: must have no masked element, whose value is unknown; fill them first")
    try:
        array = np.asarray(rows)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: must be an array of numbers; {error}") from error
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(f"{name}: must hold real numbers; got the dtype {array.dtype}")
    if array.ndim < 2:
        raise InvalidArgument(f"{name}: the first dimension counts rows, the others are the row; got {array.shape}")
    if 0 in array.shape:
        raise InvalidArgument(f"{name}: must have at least one row and no empty dimension; got {array.shape}")
    return array


def wire_dtype(array: Array, *, uint8: bool = True) -> np.dtype[Any]:
    """float16 and (rows of images) uint8 are sent as they are, all else as float32 of the same value."""
    kind = (array.dtype.kind, array.dtype.itemsize)
    if kind == ("f", 2) or (kind == ("u", 1) and uint8):
        return array.dtype.newbyteorder("<")
    return np.dtype("<f4")


def pack(array: Array, dtype: np.dtype[Any]) -> autoencoder_pb2.Tensor:
    # A float64 beyond float32 becomes infinite here, and the server refuses that by its own rule.
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(array, dtype).tobytes()
    return autoencoder_pb2.Tensor(dtype=_WIRE[dtype], shape=array.shape, data=data)


def unpack(tensor: autoencoder_pb2.Tensor) -> Array:
    """A view of the tensor's bytes. Raises Internal where they do not fit its shape."""
    dtype, shape = _ANSWERS.get(tensor.dtype), tuple(tensor.shape)
    if (
        dtype is None
        or not 1 <= len(shape) <= _MAX_DIMENSIONS
        or min(shape) < 1
        or len(tensor.data) != math.prod(shape) * dtype.itemsize
    ):
        shown = f"{list(shape[:_MAX_DIMENSIONS])}{' and more' if len(shape) > _MAX_DIMENSIONS else ''}"
        raise Internal(
            f"the answer holds a tensor that breaks the contract: dtype {tensor.dtype}, shape {shown}, "
            f"{len(tensor.data)} bytes",
            reason="BAD_ANSWER",
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def answer_dtype(dtype: npt.DTypeLike | None) -> model_pb2.DataType:
    """The element type to ask for."""
    if dtype is None:
        return model_pb2.DATA_TYPE_FLOAT32
    try:
        wanted = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"dtype: answers are float32 or float16; got {dtype!r}") from error
    if wanted not in (np.float32, np.float16):
        raise InvalidArgument(f"dtype: answers are float32 or float16; got {wanted}")
    return model_pb2.DATA_TYPE_FLOAT16 if wanted == np.float16 else model_pb2.DATA_TYPE_FLOAT32
