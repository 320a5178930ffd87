"""Each call, on both clients: what is sent and what comes back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import hourglass
from autoencoder.v1 import model_pb2
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, card, decode, encode, serving

ROWS = np.arange(30, dtype=np.float32).reshape(5, 2, 3)


def test_encode_gives_the_latents_and_tells_who_answered(connect: Connect, address: str) -> None:
    seen: list[hourglass.Execution] = []
    latents = connect(address, max_message_rows=2).encode("tiny", ROWS, on_execution=seen.append)
    np.testing.assert_array_equal(latents, encode(ROWS))
    assert latents.dtype == np.float32
    assert latents.dtype.isnative
    assert seen == [hourglass.Execution(model="tiny", version=1, queue_s=0.75, compute_s=1.5, batch_rows=2, messages=3)]


def test_decode_gives_the_rows(connect: Connect, address: str) -> None:
    latents = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(connect(address).decode("tiny", latents), decode(latents))


@pytest.mark.parametrize("message_rows", [2, 256])
def test_reconstruct_gives_rows_errors_and_novelties(connect: Connect, address: str, message_rows: int) -> None:
    answer = connect(address, max_message_rows=message_rows).reconstruct("tiny", ROWS)
    np.testing.assert_array_equal(answer.rows, ROWS)
    np.testing.assert_array_equal(answer.errors, ROWS[:, 0, 0])
    np.testing.assert_array_equal(answer.novelties, ROWS[:, 0, 0] / 2)
    assert answer.execution.version == 1


def test_denoise_gives_rows_and_distances(connect: Connect, address: str) -> None:
    answer = connect(address).denoise("tiny", ROWS)
    np.testing.assert_array_equal(answer.rows, ROWS)
    np.testing.assert_array_equal(answer.distances, ROWS[:, 0, 0])
    assert answer.execution.messages == 1


@pytest.mark.parametrize("message_rows", [4, 256])
def test_interpolate_walks_from_start_to_end(connect: Connect, address: str, message_rows: int) -> None:
    client = connect(address, max_message_rows=message_rows)
    answer = client.interpolate("tiny", ROWS, ROWS + 6, steps=3, return_latents=True)
    assert answer.rows.shape == (5, 3, 2, 3)
    np.testing.assert_array_equal(answer.latents[:, 0], encode(ROWS))
    np.testing.assert_array_equal(answer.latents[:, 1], encode(ROWS + 3))
    np.testing.assert_array_equal(answer.latents[:, 2], encode(ROWS + 6))
    np.testing.assert_array_equal(answer.rows[:, 2], decode(encode(ROWS + 6)))


def test_interpolate_takes_latents_weights_and_a_method(connect: Connect, address: str, service: FakeService) -> None:
    ends = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    answer = connect(address).interpolate(
        "tiny", *ends, weights=[0.25, 1], method="spherical", latents=True, return_latents=True
    )
    np.testing.assert_array_equal(answer.latents, [[[0.25, 0.25], [1, 1]]])
    assert service.requests[0].method == 2
    assert service.requests[0].WhichOneof("ends") == "latents"
    assert connect(address).interpolate("tiny", *ends, steps=2, latents=True).latents is None


def test_messages_of_an_interpolation_are_bounded_by_its_points(
    connect: Connect, address: str, service: FakeService
) -> None:
    connect(address, max_message_rows=8).interpolate("tiny", ROWS, ROWS, steps=4)
    assert sorted(request.rows.start.shape[0] for request in service.requests) == [1, 2, 2]
    service.requests.clear()
    connect(address, max_message_rows=8).interpolate("tiny", ROWS, ROWS, steps=100)
    assert [request.rows.start.shape[0] for request in service.requests] == [1] * 5


def test_models_are_cards(connect: Connect) -> None:
    with serving(FakeService(card("a", version=2), card("a", version=1), card("b"))) as address:
        cards = connect(address).models()
        assert [(c.name, c.version) for c in cards] == [("a", 2), ("a", 1), ("b", 1)]
        one = connect(address).model("a", 1)
        assert one.version == 1
        assert one.operations == ("encode", "decode", "reconstruct", "interpolate", "denoise")
        assert one.input == hourglass.Spec(shape=(2, 3), range=(0, 1), kind="image")
        assert one.latent == hourglass.Spec(shape=(2,), range=None, kind="vector")
        assert one.metrics == {"psnr_db": 21.5, "squared_error": 0.01}
        assert (one.provider, one.max_batch_rows) == ("CPUExecutionProvider", 64)
        assert isinstance(one.message, model_pb2.Model)


def test_a_card_of_a_newer_server_is_still_read(connect: Connect) -> None:
    newer = card()
    newer.operations.append(77)  # type: ignore[arg-type]
    newer.input.kind = 99  # type: ignore[assignment]
    with serving(FakeService(newer)) as address:
        one = connect(address).model("tiny")
    assert one.operations[-1] == "77"
    assert one.input.kind == "99"


def test_the_version_is_asked_for(connect: Connect, address: str, service: FakeService) -> None:
    client = connect(address)
    for version in (1, "1", None):
        client.encode("tiny", ROWS, version=version)
    assert [request.model.version for request in service.requests] == ["1", "1", ""]


def test_float16_answers(connect: Connect, address: str) -> None:
    latents = connect(address, max_message_rows=2).encode("tiny", ROWS, dtype=np.float16)
    assert latents.dtype == np.float16
    np.testing.assert_array_equal(latents, encode(ROWS))


@pytest.mark.parametrize(
    ("rows", "sent"),
    [
        (ROWS, 1),
        (ROWS.astype(">f4"), 1),
        (ROWS.astype(np.float64), 1),
        (ROWS.astype(">f8"), 1),
        (ROWS.astype(np.int64), 1),
        (ROWS.astype(">u2"), 1),
        (ROWS.astype(np.float16), 2),
        (ROWS.astype(">f2"), 2),
        (np.asfortranarray(ROWS), 1),
        (np.repeat(ROWS, 2, axis=0)[::2], 1),
        (ROWS[::-1][::-1], 1),
        (ROWS.tolist(), 1),
    ],
)
def test_any_array_of_numbers_arrives_with_its_values(
    connect: Connect, address: str, service: FakeService, rows: npt.ArrayLike, sent: int
) -> None:
    np.testing.assert_array_equal(connect(address, max_message_rows=2).encode("tiny", rows), encode(ROWS))
    assert {request.rows.dtype for request in service.requests} == {sent}


def test_uint8_is_sent_as_it_is_for_rows_and_as_numbers_for_latents(
    connect: Connect, address: str, service: FakeService
) -> None:
    client = connect(address)
    client.encode("tiny", ROWS.astype(np.uint8))
    client.decode("tiny", np.ones((3, 2), np.uint8))
    client.interpolate("tiny", np.ones((3, 2), np.uint8), np.ones((3, 2), np.uint8), steps=2, latents=True)
    client.encode("tiny", ROWS > 3)
    dtypes = [r.rows.dtype if hasattr(r, "rows") and hasattr(r.rows, "dtype") else 0 for r in service.requests]
    assert dtypes == [3, 0, 0, 1]
    assert service.requests[1].latents.dtype == 1
    assert service.requests[2].latents.start.dtype == 1


def test_a_number_too_large_for_float32_arrives_as_infinity(
    connect: Connect, address: str, service: FakeService
) -> None:
    connect(address).encode("tiny", np.full((1, 2, 3), 1e300))
    assert np.isinf(np.frombuffer(service.requests[0].rows.data, "<f4")).all()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rows": np.empty((0, 2, 3))}, "rows: must have at least one row"),
    ({"rows": np.empty((3, 0))}, "rows: must have at least one row and no empty dimension"),
    ({"rows": np.float32(3)}, "rows: the first dimension counts rows"),
    ({"rows": np.ma.masked_equal(np.ones((2, 28, 28)), 1)}, "rows: must have no masked element"),
    ({"rows": np.ones(3)}, "rows: the first dimension counts rows"),
    ({"rows": np.ones((2, 2), complex)}, "rows: must hold real numbers; got the dtype complex128"),
    ({"rows": [["a", "b"]]}, "rows: must hold real numbers"),
    ({"rows": np.array([[None]])}, "rows: must hold real numbers; got the dtype object"),
    ({"rows": [[1, 2], [3]]}, "rows: must be an array of numbers"),
    ({"rows": ROWS, "dtype": np.int8}, "dtype: answers are float32 or float16; got int8"),
    ({"rows": ROWS, "timeout_s": 0}, "timeout_s: must be a positive number"),
    ({"rows": ROWS, "timeout_s": float("nan")}, "timeout_s: must be a positive number"),
    ({"rows": ROWS, "timeout_s": "soon"}, "timeout_s: must be a positive number of seconds, or None; got 'soon'"),
    ({"rows": ROWS, "dtype": "bogus"}, "dtype: answers are float32 or float16; got 'bogus'"),
    ({"rows": ROWS, "version": "\ud800"}, "model, version: must be text; got 'tiny'"),
    ({"rows": [np.ma.masked_equal(np.ones((2, 3)), 1)] * 2}, "rows: must have no masked element"),
    ({"rows": ROWS, "out": [[0.0] * 2] * 5}, "out: must be a numpy array; got list"),
    ({"rows": ROWS, "out": np.empty((4, 2), np.float32)}, "out: must be a writeable array of 5 rows of float32"),
    ({"rows": ROWS, "out": np.empty((5, 2))}, "out: must be a writeable array of 5 rows of float32"),
    ({"rows": ROWS, "out": np.empty((5, 3), np.float32)}, r"out: must have rows of the shape \(2,\); got \(3,\)"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD)
def test_a_wrong_argument_is_named(connect: Connect, address: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(hourglass.InvalidArgument, match=text) as caught:
        connect(address).encode("tiny", **arguments)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "steps, weights: give one of the two"),
        ({"steps": 2, "weights": [0]}, "steps, weights: give one of the two"),
        ({"steps": -1}, "steps, weights"),
        ({"steps": 2**32}, "steps, weights"),
        ({"steps": 2.5}, "steps, weights"),
        ({"weights": ["x"]}, "steps, weights"),
        ({"steps": 2, "method": ["linear"]}, "method: must be linear or spherical"),
        ({"steps": 2, "method": "cubic"}, "method: must be linear or spherical; got 'cubic'"),
        ({"steps": 2, "end": ROWS[:2]}, "start, end: must have the same shape"),
    ],
)
def test_a_wrong_argument_of_interpolate_is_named(
    connect: Connect, address: str, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(hourglass.InvalidArgument, match=text):
        connect(address).interpolate("tiny", ROWS, **{"end": ROWS} | arguments)


@pytest.mark.parametrize("model", [5, None, b"\xff", "\ud800"])
def test_a_model_that_is_no_text_is_named(connect: Connect, address: str, model: Any) -> None:
    client = connect(address)
    with pytest.raises(hourglass.InvalidArgument, match="model, version: must be text") as caught:
        client.encode(model, ROWS)
    assert repr(model) in str(caught.value)
    with pytest.raises(hourglass.InvalidArgument, match="model, version: must be text"):
        client.model(model)


@pytest.mark.parametrize("timeout_s", [8e9, 1e300, np.float32(1e9), 10**12])
def test_a_timeout_of_ages_is_none(connect: Connect, address: str, timeout_s: float) -> None:
    client = connect(address, max_message_rows=2)
    np.testing.assert_array_equal(client.encode("tiny", ROWS, timeout_s=timeout_s), encode(ROWS))
    np.testing.assert_array_equal(client.encode("tiny", ROWS[:1], timeout_s=timeout_s), encode(ROWS[:1]))


def test_out_is_written_and_returned(connect: Connect, address: str) -> None:
    out = np.full((5, 2), -1, np.float32)
    client = connect(address, max_message_rows=2)
    assert client.encode("tiny", ROWS, out=out) is out
    np.testing.assert_array_equal(out, encode(ROWS))
    rows = np.empty((5, 2, 3), np.float16)
    assert client.reconstruct("tiny", ROWS, out=rows, dtype=np.float16).rows is rows
    np.testing.assert_array_equal(rows, ROWS)


def test_importing_the_client_imports_nothing_it_does_not_need() -> None:
    code = """
import sys, hourglass
print([name for name in ("onnxruntime", "PIL", "tqdm", "torch", "service", "google.rpc") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
