"""an RPC's number and the bytes of its answer -> what the client's call returns, or one of its own errors

What gRPC itself makes of bytes that are no message is not fuzzed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from autoencoder.v1 import admin_pb2, model_pb2
from autoencoder.v1 import autoencoder_pb2 as pb
from hourglass import admin, errors, jobs, status_details
from hourglass.jobs import Call, Job, Limits, Part
from hourglass.results import ModelCard
from tests import tiny
from tests.fuzz.targets.requests import tensor

ROWS = tiny.rows(3)


def _call() -> Call:
    return Call(limits=Limits(max_message_rows=2), model="tiny", version=None, dtype=None, on_execution=None)


# Jobs of so many of the rows, two in a message; with the field of the answer that is the result's first array.
CALLS: dict[str, tuple[Callable[[int], Job[Any]], str]] = {
    "Encode": (lambda count: jobs.encode(_call(), ROWS[:count]), "latents"),
    "Decode": (lambda count: jobs.decode(_call(), tiny.encode(ROWS[:count])), "rows"),
    "Reconstruct": (lambda count: jobs.reconstruct(_call(), ROWS[:count]), "rows"),
    "Denoise": (lambda count: jobs.denoise(_call(), ROWS[:count]), "rows"),
    "Interpolate": (
        lambda count: jobs.interpolate(
            _call(), ROWS[:count], ROWS[:count], steps=None, weights=[0.5], method="linear", latents=False,
            return_latents=True,
        ),
        "rows",
    ),
}  # fmt: skip
CARD, CARDS, VERSIONS, STATUS = "GetModel", "ListModels", "ListModelVersions", "status"
KINDS = (*CALLS, CARD, CARDS, VERSIONS, STATUS)
_RESPONSES = {kind: getattr(admin_pb2 if kind == VERSIONS else pb, f"{kind}Response") for kind in KINDS[:-1]}


class Failed(grpc.RpcError):
    """An RPC that failed as the server said."""

    def __init__(self, details: bytes) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return "full"

    def trailing_metadata(self) -> Any:
        return ((status_details.METADATA_KEY, self._details),)


def one(data: bytes) -> None:
    kind, content = KINDS[data[0] % len(KINDS) if data else 0], data[1:]
    if kind == STATUS:
        error = errors.from_rpc(Failed(content), address="here")
        if isinstance(error, errors.Overloaded) and error.retry_after_s is not None:
            # One can wait for so long.
            assert 0 <= error.retry_after_s <= threading.TIMEOUT_MAX, error.retry_after_s
        return
    try:
        response = _RESPONSES[kind].FromString(content)
    except DecodeError:
        return
    if kind in CALLS:
        _check(kind, response)
    elif kind == VERSIONS:
        found = admin.versions_of(response)
        assert [each.version for each in found] == [each.version for each in response.versions]
    else:
        for model in response.models if kind == CARDS else [response.model]:
            card = ModelCard.of(model)
            assert (card.name, card.version, card.message) == (model.name, model.version, model)
            assert len(card.operations) == len(model.operations)


def _check(kind: str, response: Any) -> None:
    """What becomes of the answer to two rows; then it comes again, as the answer to one."""
    job_of, field = CALLS[kind]
    two, three = job_of(2), job_of(3)
    (part,) = two.parts()
    if not _accepts(two, part, response):
        return
    sent = getattr(response, field)
    expected = np.frombuffer(sent.data, "<f2" if sent.dtype == model_pb2.DATA_TYPE_FLOAT16 else "<f4")
    first, *others = _arrays(two.finish())
    np.testing.assert_array_equal(first, expected.reshape(sent.shape))
    assert all(len(array) == 2 for array in others)
    whole, rest = three.parts()
    assert _accepts(three, whole, response)
    assert not _accepts(three, rest, response), "two rows are the answer to one"
    # In a message that two calls share, the second row.
    own = job_of(1)
    (part,) = own.parts()
    own.accept(part, response, start=1, total=2)
    np.testing.assert_array_equal(_arrays(own.finish())[0], first[1:])


def _accepts(job: Job[Any], part: Part, response: Any) -> bool:
    try:
        job.accept(part, response)
    except errors.Internal as error:
        assert error.reason == "BAD_ANSWER"
        assert len(error.text) < 1024, f"{len(error.text)} characters of text"
        return False
    return True


def _arrays(result: Any) -> list[Any]:
    if isinstance(result, np.ndarray):
        return [result]
    return [value for value in vars(result).values() if isinstance(value, np.ndarray)]


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    yield one


def seeds() -> dict[str, bytes]:
    rows, latents = tensor(ROWS[:2]), tensor(tiny.encode(ROWS[:2]))
    half = pb.Tensor(dtype="DATA_TYPE_FLOAT16", shape=(2, 3), data=bytes(12))
    who = pb.ExecutionInfo(model_name="tiny", model_version=1, queue_seconds=0.5, compute_seconds=0.25, batch_rows=2)
    points, inner = tensor(ROWS[:2, None]), tensor(tiny.encode(ROWS[:2])[:, None])
    model = tiny.manifest()
    model.runtime.max_batch_rows = 64
    full = status_pb2.Status(code=8, message="full")
    full.details.add().Pack(error_details_pb2.ErrorInfo(domain="hourglass", reason="QUEUE_FULL", metadata={"a": "b"}))
    late = status_pb2.Status()
    for status, seconds in ((full, 2), (late, 2**62)):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = seconds
        status.details.add().Pack(retry)

    def encoded(shape: list[int], data: bytes = b"") -> pb.EncodeResponse:
        return pb.EncodeResponse(latents=pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=shape, data=data))

    version = admin_pb2.ModelVersion(name="tiny", version=1, state="MODEL_STATE_READY", labels=["stable"])
    made: dict[str, tuple[str, Any]] = {
        "encode": ("Encode", pb.EncodeResponse(latents=latents, execution=who)),
        "half": ("Encode", pb.EncodeResponse(latents=half, execution=who)),
        "decode": ("Decode", pb.DecodeResponse(rows=rows, execution=who)),
        "reconstruct": (
            "Reconstruct",
            pb.ReconstructResponse(rows=rows, reconstruction_errors=[0.5, 1], novelties=[0, 1], execution=who),
        ),
        "denoise": ("Denoise", pb.DenoiseResponse(rows=rows, distances=[0.5, 1], execution=who)),
        "interpolate": ("Interpolate", pb.InterpolateResponse(rows=points, latents=inner, execution=who)),
        "no_rows_of_many": ("Encode", encoded([0, 2**40])),
        "many_without_elements": ("Encode", encoded([2, 0, 2**62, 2**62])),
        "many_dimensions": ("Encode", encoded([2] + [1] * 300, bytes(8))),
        "too_many_dimensions": ("Encode", encoded([2**62] * 300)),
        "card": (CARD, pb.GetModelResponse(model=model)),
        "cards": (CARDS, pb.ListModelsResponse(models=[model, model])),
        "versions": (VERSIONS, admin_pb2.ListModelVersionsResponse(versions=[version])),
        "status": (STATUS, full),
        "late": (STATUS, late),
    }
    return {
        name: bytes([KINDS.index(kind)]) + message.SerializeToString(deterministic=True)
        for name, (kind, message) in made.items()
    }
