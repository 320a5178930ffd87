"""What the servicer makes of a model's results, with a model that answers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from service.calls import Method, perform
from service.dispatcher import Done, Result
from service.errors import Retired, ServiceError
from service.metrics import Metrics
from service.paths import Path
from service.servicer import Servicer
from service.stream import Stream
from service.tensors import Array, Rows, Spec

ROWS: Rows = (np.arange(8) / 8).astype(np.float32).reshape(2, 2, 2)
LATENTS: Rows = np.array([[1.5], [2.5]], np.float32)
ERRORS: Rows = np.array([0.25, 4.0], np.float32)
HALF = "DATA_TYPE_FLOAT16"


class Answering:
    """A model, and the repository that has it. Every number that it gives is its own."""

    name, version = "fake", 3
    input, latent = Spec(row_shape=(2, 2), is_image=True), Spec(row_shape=(1,), is_image=False)

    def get(self, selector: pb.ModelSelector) -> Answering:
        return self

    def novelty(self, errors: Rows) -> Rows:
        return errors / np.float32(8)

    def _done(self, done: Done, *outputs: Rows) -> None:
        done(Result(outputs=outputs, queue_s=0.25, compute_s=0.5, batch_rows=7))

    def encode(self, rows: Array, call: Any, done: Done) -> None:
        self._done(done, LATENTS)

    def decode(self, latents: Array, call: Any, done: Done) -> None:
        self._done(done, ROWS)

    def reconstruct(self, rows: Array, call: Any, done: Done) -> None:
        self._done(done, ROWS, ERRORS)

    def denoise(self, rows: Array, call: Any, done: Done) -> None:
        self._done(done, ROWS, ERRORS)

    def interpolate_rows(self, start: Array, end: Array, path: Path, call: Any, done: Done) -> None:
        self._done(done, ROWS[:, None], LATENTS[:, None])


class FakeCall:
    caller = "test"
    grant = None
    observation = None
    deadline = float("inf")

    def __init__(self) -> None:
        self.message: Any = None

    def on_cancel(self, callback: Callable[[], None]) -> None: ...

    def answer(self, build: Callable[[], Message]) -> None:
        self.message = build()

    def fail(self, error: ServiceError) -> None:
        raise error


def test_a_request_whose_version_was_swapped_in_that_moment_is_handled_anew() -> None:
    seen: list[pb.EncodeRequest] = []

    def handle(request: pb.EncodeRequest, call: Any) -> None:
        seen.append(request)
        if len(seen) < 3:
            raise Retired
        call.answer(lambda: pb.EncodeResponse())

    call = FakeCall()
    perform(Method(parse=pb.EncodeRequest.FromString, handle=handle), b"", call)
    assert (len(seen), call.message) == (3, pb.EncodeResponse())
    seen.clear()
    stream = Stream({"encode": handle}, Metrics(CollectorRegistry()))
    stream.handle(pb.StreamRequest(id=7, encode=pb.EncodeRequest()), call)
    assert (len(seen), call.message) == (3, pb.StreamResponse(id=7, encode=pb.EncodeResponse()))


def ask(method: str, request: Message) -> Any:
    servicer = Servicer(Answering(), max_interpolation_points=9, metrics=Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    call = FakeCall()
    perform(servicer.methods()[method], request.SerializeToString(), call)
    return call.message


def sent(array: Rows) -> pb.Tensor:
    return pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=array.shape, data=array.tobytes())


def requests(dtype: Any) -> dict[str, Message]:
    ends = pb.TensorPair(start=sent(ROWS), end=sent(ROWS))
    return {
        "Encode": pb.EncodeRequest(rows=sent(ROWS), output_dtype=dtype),
        "Decode": pb.DecodeRequest(latents=sent(LATENTS), output_dtype=dtype),
        "Reconstruct": pb.ReconstructRequest(rows=sent(ROWS), output_dtype=dtype),
        "Denoise": pb.DenoiseRequest(rows=sent(ROWS), output_dtype=dtype),
        "Interpolate": pb.InterpolateRequest(rows=ends, steps=2, return_latents=True, output_dtype=dtype),
    }


def array(tensor: pb.Tensor) -> Any:
    dtype = {model_pb2.DATA_TYPE_FLOAT32: "<f4", model_pb2.DATA_TYPE_FLOAT16: "<f2"}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))


@pytest.mark.parametrize("method", requests(None))
def test_every_answer_says_who_gave_it_and_where_the_time_went(method: str) -> None:
    assert ask(method, requests(None)[method]).execution == pb.ExecutionInfo(
        model_name="fake", model_version=3, queue_seconds=0.25, compute_seconds=0.5, batch_rows=7
    )


@pytest.mark.parametrize("method", requests(None))
@pytest.mark.parametrize(("dtype", "wanted"), [(None, "f4"), ("DATA_TYPE_FLOAT32", "f4"), (HALF, "f2")])
def test_every_tensor_of_an_answer_has_the_type_that_was_asked_for(method: str, dtype: Any, wanted: str) -> None:
    message = ask(method, requests(dtype)[method])
    expected = {"rows": ROWS, "latents": LATENTS}
    if method == "Interpolate":
        expected = {name: value[:, None] for name, value in expected.items()}
    found: dict[str, Any] = {field.name: value for field, value in message.ListFields() if isinstance(value, pb.Tensor)}
    assert set(found) == {"Encode": {"latents"}, "Interpolate": {"rows", "latents"}}.get(method, {"rows"})
    for name, tensor in found.items():
        assert array(tensor).dtype == wanted
        np.testing.assert_array_equal(array(tensor), expected[name])


def test_scores_are_those_of_the_rows() -> None:
    reconstructed = ask("Reconstruct", requests(None)["Reconstruct"])
    assert list(reconstructed.reconstruction_errors) == [0.25, 4.0]
    assert list(reconstructed.novelties) == [0.25 / 8, 0.5]
    assert list(ask("Denoise", requests(None)["Denoise"]).distances) == [0.5, 2.0]
