from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from service import tensors
from service.errors import InvalidArgument, ServiceError

IMAGE = tensors.Spec(row_shape=(2, 3), is_image=True)
VECTOR = tensors.Spec(row_shape=(6,), is_image=False)


def tensor(array: np.ndarray, dtype: int = model_pb2.DATA_TYPE_FLOAT32, **changes: object) -> pb.Tensor:
    fields: dict[str, object] = {"dtype": dtype, "shape": array.shape, "data": array.tobytes()}
    return pb.Tensor(**(fields | changes))  # type: ignore[arg-type]


@given(hnp.arrays(np.float32, st.integers(1, 9).map(lambda n: (n, 2, 3)), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_round_trip_is_exact(array: np.ndarray) -> None:
    sent = pb.Tensor()
    tensors.encode(array, model_pb2.DATA_TYPE_FLOAT32, sent)
    np.testing.assert_array_equal(tensors.decode("rows", sent, IMAGE), array)


@given(hnp.arrays(np.float16, (4, 2, 3), elements=st.floats(-60000, 60000, width=16)))
def test_a_float16_round_trip_is_exact(array: np.ndarray) -> None:
    sent = pb.Tensor()
    tensors.encode(array.astype(np.float32), model_pb2.DATA_TYPE_FLOAT16, sent)
    assert len(sent.data) == array.size * 2
    np.testing.assert_array_equal(tensors.decode("rows", sent, IMAGE), array)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_our_own_errors(data: bytes) -> None:
    try:
        message = pb.Tensor.FromString(data)
    except Exception:  # not a message at all: the transport's business
        return
    for spec in (IMAGE, VECTOR):
        try:
            tensors.decode("rows", message, spec)
        except ServiceError as error:
            assert error.text.startswith("rows.")


@given(
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
    dtype=st.integers(-5, 5),
    data=st.binary(max_size=64),
)
def test_any_shape_is_refused_or_matches_its_bytes(shape: list[int], dtype: int, data: bytes) -> None:
    message = pb.Tensor(shape=shape, data=data)
    message.dtype = dtype  # type: ignore[assignment]
    try:
        array = tensors.decode("rows", message, IMAGE)
    except InvalidArgument:
        return
    assert list(array.shape) == shape
    assert array.nbytes == len(data)


GOOD = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize(
    ("sent", "spec", "says"),
    [
        (tensor(GOOD, dtype=0), IMAGE, "rows.dtype: must be FLOAT32, FLOAT16 or UINT8; got UNSPECIFIED"),
        (tensor(GOOD, dtype=77), IMAGE, "got unknown number 77"),
        (tensor(GOOD.reshape(2, 6).astype("u1"), dtype=3), VECTOR, "UINT8 is only for rows of images"),
        (tensor(GOOD.reshape(2, 6)), IMAGE, "rows.shape: must be [rows, 2, 3]; got [2, 6]"),
        (tensor(GOOD, shape=[]), IMAGE, "got []"),
        (tensor(GOOD[:0]), IMAGE, "must have at least one row; got 0"),
        (tensor(GOOD, shape=[-1, 2, 3]), IMAGE, "must have at least one row; got -1"),
        (tensor(GOOD, shape=[2**62, 2, 3]), IMAGE, f"has {2**62 * 24} bytes; got 48"),
        (tensor(GOOD, data=b"123"), IMAGE, "has 48 bytes; got 3"),
        (tensor(GOOD, data=GOOD.tobytes() + b"1234"), IMAGE, "has 48 bytes; got 52"),
        (tensor(GOOD, shape=[1] * 100), IMAGE, "… 100 dimensions]"),
        (tensor(np.where(GOOD == 7, np.nan, GOOD)), IMAGE, "row 1 holds NaN or infinity"),
        (tensor(np.where(GOOD == 2, -np.inf, GOOD)), IMAGE, "row 0 holds NaN or infinity"),
        (tensor(np.where(GOOD % 6 == 2, np.inf, GOOD)), IMAGE, "row 0 holds NaN or infinity"),
        (tensor(np.full((1, 2, 3), np.inf, "f2"), dtype=2), IMAGE, "row 0 holds NaN or infinity"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(sent: pb.Tensor, spec: tensors.Spec, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tensors.decode("rows", sent, spec)
    assert says in caught.value.text


def test_finite_numbers_whose_sum_overflows_are_accepted() -> None:
    huge = np.full((1, 2, 3), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(tensors.decode("rows", tensor(huge), IMAGE), huge)


def test_decoding_copies_nothing() -> None:
    array = tensors.decode("rows", tensor(GOOD), IMAGE)
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_uint8_is_scaled_to_one() -> None:
    rows = np.array([[[0, 255, 51]] * 2], np.uint8)
    np.testing.assert_allclose(tensors.as_float32(rows)[0, 0], [0.0, 1.0, 0.2], rtol=1e-6)


def test_what_is_beyond_float16_becomes_infinite() -> None:
    sent = pb.Tensor()
    tensors.encode(np.array([[1e6, -1e6]], np.float32), model_pb2.DATA_TYPE_FLOAT16, sent)
    np.testing.assert_array_equal(np.frombuffer(sent.data, "<f2"), [np.inf, -np.inf])


def test_an_answer_is_float32_unless_float16_was_asked_for() -> None:
    asked: Any = tensors.output_dtype
    assert asked(0) == model_pb2.DATA_TYPE_FLOAT32
    assert asked(2) == model_pb2.DATA_TYPE_FLOAT16
    for wrong in (3, 9, -1):
        with pytest.raises(InvalidArgument, match="output_dtype"):
            asked(wrong)
