"""Tensors on the wire and in memory.

Shape legend: B rows, D... the dimensions of one row.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from autoencoder.v1 import autoencoder_pb2, model_pb2
from service.errors import InvalidArgument

Array = npt.NDArray[np.generic]
Rows = npt.NDArray[np.float32]

# Explicitly little-endian: the wire's order, whatever the machine's.
_DTYPES: dict[int, np.dtype[np.generic]] = {
    model_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    model_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    model_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
_NAMES = {number: name.removeprefix("DATA_TYPE_") for name, number in model_pb2.DataType.items()}
_BYTES = np.dtype(np.uint8)
_IS_LITTLE_ENDIAN = sys.byteorder == "little"
_UINT8_SCALE = np.float32(1.0 / 255.0)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What rows or latents of a model must be: their shape D..., and whether they may come as UINT8."""

    row_shape: tuple[int, ...]
    is_image: bool

    @classmethod
    def of(cls, spec: model_pb2.TensorSpec) -> Self:
        return cls(row_shape=tuple(spec.row_shape), is_image=spec.kind == model_pb2.TENSOR_KIND_IMAGE)


def decode(field: str, tensor: autoencoder_pb2.Tensor, spec: Spec) -> Array:
    """A view of the tensor's bytes as an array [B, D...] of the type that was sent; nothing is copied.

    Raises InvalidArgument, naming `field`, where the tensor breaks a rule of `spec` or of the wire format.
    """
    number = tensor.dtype
    dtype = _DTYPES.get(number)
    if dtype is None:
        raise InvalidArgument(
            "BAD_DTYPE", f"{field}.dtype: must be FLOAT32, FLOAT16 or UINT8; got {_dtype_name(number)}"
        )
    # Of a slice: protobuf's own container takes twice as long to go through.
    return view(field, dtype, _NAMES[number], tuple(tensor.shape[:]), tensor.data, spec)


def view(
    field: str, dtype: np.dtype[np.generic], dtype_name: str, shape: tuple[int, ...], data: bytes, spec: Spec
) -> Array:
    """As `decode`, of the parts of a tensor. `dtype_name` is what the type is called where `field` comes from."""
    are_bytes = dtype == _BYTES
    if are_bytes and not spec.is_image:
        raise InvalidArgument(
            "BAD_DTYPE", f"{field}: {dtype_name} is only for rows of images; send floats of 32 or 16 bits"
        )
    check_shape(field, shape, spec)
    wanted_bytes = math.prod(shape) * dtype.itemsize
    if len(data) != wanted_bytes:
        raise InvalidArgument(
            "BAD_DATA_LENGTH",
            f"{field}.data: {dtype_name} of shape {_short(shape)} has {wanted_bytes} bytes; got {len(data)}",
        )
    array: Array = np.ndarray(shape, dtype, data)
    if not are_bytes:
        # Where the first False is: `all` takes a microsecond to begin.
        are_finite = np.isfinite(array)
        first = are_finite.argmin()
        if not are_finite.item(first):
            row = int(first) // math.prod(spec.row_shape)
            raise InvalidArgument("NOT_FINITE", f"{field}.data: row {row} holds NaN or infinity")
    return array


def check_shape(field: str, shape: tuple[int, ...], spec: Spec) -> None:
    """Raises InvalidArgument. To be called before a shape is computed with: it may have millions of dimensions."""
    if shape[1:] != spec.row_shape or not shape:
        wanted = ", ".join(("rows", *map(str, spec.row_shape)))
        raise InvalidArgument("BAD_SHAPE", f"{field}.shape: must be [{wanted}]; got {_short(shape)}")
    if shape[0] < 1:
        raise InvalidArgument("BAD_SHAPE", f"{field}.shape: must have at least one row; got {shape[0]}")


def copy_rows(source: Array, target: Rows) -> None:
    """Copy rows into a batch buffer of the same shape, converting; UINT8 is scaled from 0..255 to 0..1."""
    target[...] = source
    if source.dtype == _BYTES:
        # Twice over the rows, but without the buffers through which numpy multiplies mixed types.
        np.multiply(target, _UINT8_SCALE, out=target)


def as_float32(array: Array) -> Rows:
    """Float32 rows of an array in any wire type; a copy unless it is float32 already."""
    if array.dtype == np.float32:
        return array.astype(np.float32, copy=False)
    target = np.empty(array.shape, np.float32)
    copy_rows(array, target)
    return target


def output_dtype(number: model_pb2.DataType) -> model_pb2.DataType:
    """The type for an answer: FLOAT32 unless FLOAT16 was asked for. Raises InvalidArgument for any other."""
    if number == model_pb2.DATA_TYPE_UNSPECIFIED:
        return model_pb2.DATA_TYPE_FLOAT32
    if number not in (model_pb2.DATA_TYPE_FLOAT32, model_pb2.DATA_TYPE_FLOAT16):
        raise InvalidArgument("BAD_DTYPE", f"output_dtype: must be FLOAT32 or FLOAT16; got {_dtype_name(number)}")
    return number


def encode(array: Rows, dtype: model_pb2.DataType, target: autoencoder_pb2.Tensor) -> None:
    """Write an array into a message."""
    target.dtype = dtype
    target.shape.extend(array.shape)
    target.data = to_bytes(array, dtype)


def to_bytes(array: Rows, dtype: model_pb2.DataType) -> bytes:
    """The elements as they are sent; values beyond FLOAT16's range become infinite there."""
    if dtype == model_pb2.DATA_TYPE_FLOAT16:
        with np.errstate(over="ignore"):
            return array.astype(_DTYPES[dtype]).tobytes()
    return array.tobytes() if _IS_LITTLE_ENDIAN else array.astype(_DTYPES[dtype]).tobytes()


def _dtype_name(number: int) -> str:
    return _NAMES.get(number) or f"unknown number {number}"


def _short(shape: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, shape[:8]))
    return f"[{shown}, … {len(shape)} dimensions]" if len(shape) > 8 else f"[{shown}]"
