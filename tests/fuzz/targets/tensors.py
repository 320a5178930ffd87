"""bytes of a Tensor -> a view of them as an array, or InvalidArgument"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from autoencoder.v1 import autoencoder_pb2 as pb
from service import tensors
from service.errors import InvalidArgument
from tests import tiny

SPECS = (
    tensors.Spec(row_shape=tiny.ROW_SHAPE, is_image=True),
    tensors.Spec(row_shape=(tiny.LATENT,), is_image=False),
    tensors.Spec(row_shape=(), is_image=False),
)


def one(data: bytes) -> None:
    try:
        sent = pb.Tensor.FromString(data)
    except DecodeError:
        return
    for spec in SPECS:
        try:
            array = tensors.decode("rows", sent, spec)
        except InvalidArgument as error:
            assert error.text.startswith("rows"), error.text
            continue
        assert list(array.shape) == list(sent.shape)
        assert array.shape[1:] == spec.row_shape
        assert array.tobytes() == sent.data
        rows = tensors.as_float32(array)
        assert np.isfinite(rows).all()
        back = pb.Tensor()
        tensors.encode(rows, 1, back)  # type: ignore[arg-type]
        np.testing.assert_array_equal(tensors.decode("rows", back, spec), rows)


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    yield one


def seeds() -> dict[str, bytes]:
    rows = tiny.rows(2)
    sent = {
        "float32": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=rows.shape, data=rows.tobytes()),
        "float16": pb.Tensor(dtype="DATA_TYPE_FLOAT16", shape=rows.shape, data=rows.astype("<f2").tobytes()),
        "uint8": pb.Tensor(dtype="DATA_TYPE_UINT8", shape=(1, 4, 4), data=bytes(range(0, 256, 16))),
        "latents": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=(1, 3), data=rows[0, 0, :3].tobytes()),
        "numbers": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=(2,), data=rows[0, 0, :2].tobytes()),
        "not_finite": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=(1,), data=np.float32("nan").tobytes()),
        "many_rows": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=(2**62, 3)),
        "many_dimensions": pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[2**62] * 300),
    }
    return {name: message.SerializeToString() for name, message in sent.items()}
