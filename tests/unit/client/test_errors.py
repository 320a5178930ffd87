"""Every failure comes as one of the client's own errors."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import hypothesis
import numpy as np
import pytest
from google.rpc import error_details_pb2
from hypothesis import strategies

import hourglass
from autoencoder.v1 import autoencoder_pb2 as pb
from hourglass import errors, status_details
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, fail, rich_status, serving

ROWS = np.ones((2, 2, 3), np.float32)
Code = grpc.StatusCode
EXPECTED = {
    Code.INVALID_ARGUMENT: hourglass.InvalidArgument,
    Code.OUT_OF_RANGE: hourglass.InvalidArgument,
    Code.NOT_FOUND: hourglass.NotFound,
    Code.FAILED_PRECONDITION: hourglass.Unsupported,
    Code.UNIMPLEMENTED: hourglass.Unsupported,
    Code.RESOURCE_EXHAUSTED: hourglass.TooLarge,
    Code.UNAVAILABLE: hourglass.Unavailable,
    Code.DEADLINE_EXCEEDED: hourglass.DeadlineExceeded,
    Code.UNAUTHENTICATED: hourglass.Unauthenticated,
    Code.PERMISSION_DENIED: hourglass.PermissionDenied,
    Code.CANCELLED: hourglass.Cancelled,
    Code.INTERNAL: hourglass.Internal,
    Code.UNKNOWN: hourglass.Internal,
    Code.DATA_LOSS: hourglass.Internal,
    Code.ABORTED: hourglass.Internal,
    Code.ALREADY_EXISTS: hourglass.Internal,
}


def caught_from(connect: Connect, hook: Any, **options: Any) -> hourglass.HourglassError:
    with serving(FakeService(hook=hook)) as address, pytest.raises(hourglass.HourglassError) as caught:
        connect(address, attempts=1, **options).encode("tiny", ROWS)
    return caught.value


def test_every_status_has_an_error() -> None:
    assert set(EXPECTED) == set(grpc.StatusCode) - {Code.OK}


@pytest.mark.parametrize("code", EXPECTED)
@pytest.mark.parametrize("message_rows", [1, 256])
def test_a_status_of_the_service_comes_as_its_error(connect: Connect, code: grpc.StatusCode, message_rows: int) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        fail(context, code, "SOME_REASON", "the rule and the value", model="tiny", error_id="12")

    error = caught_from(connect, hook, max_message_rows=message_rows)
    assert type(error) is EXPECTED[code]
    where = " (in the message of the rows 0 to 0)"
    told = type(error) is hourglass.InvalidArgument and message_rows == 1
    assert error.text.replace("1 to 1", "0 to 0") == "the rule and the value" + (where if told else "")
    assert error.reason == "SOME_REASON"
    assert error.metadata == {"model": "tiny", "error_id": "12"}
    assert isinstance(error.__cause__, grpc.RpcError)


def test_every_error_is_exported_and_stands_in_the_tree_of_the_docstring() -> None:
    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, hourglass.HourglassError)
    }
    assert own <= set(hourglass.__all__)
    assert own == set(re.findall(r"^(?:[├└]── )?(\w+)", (errors.__doc__ or "").partition("\n\n")[2], re.MULTILINE))


def test_overload_says_when_to_try_again(connect: Connect) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        fail(context, Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full", retry_after_s=1.25)

    error = caught_from(connect, hook)
    assert isinstance(error, hourglass.Overloaded)
    assert error.retry_after_s == pytest.approx(1.25)


def test_overload_without_details_is_overload(connect: Connect) -> None:
    error = caught_from(connect, lambda _m, _r, context: context.abort(Code.RESOURCE_EXHAUSTED, "slow down"))
    assert isinstance(error, hourglass.Overloaded)
    assert error.retry_after_s is None


def test_a_message_over_the_servers_limit_is_too_large(connect: Connect) -> None:
    with serving(FakeService(), options=[("grpc.max_receive_message_length", 1000)]) as address:
        with pytest.raises(hourglass.TooLarge, match="larger than max"):
            connect(address).encode("tiny", np.zeros((100, 2, 3), np.float32))
        connect(address, max_message_bytes=500).encode("tiny", np.zeros((100, 2, 3), np.float32))


def test_an_error_without_details_names_the_server_and_the_status(connect: Connect) -> None:
    error = caught_from(connect, lambda _m, _r, context: context.abort(Code.NOT_FOUND, "gone"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+: gone \(NOT_FOUND\)", str(error))
    assert (error.reason, error.metadata) == ("", {})


def test_the_reason_of_another_domain_is_not_ours(connect: Connect) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        fail(context, Code.PERMISSION_DENIED, "QUOTA", "no", domain="googleapis.com")

    assert caught_from(connect, hook).reason == ""


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", rich_status()[:-1], b"\x1a\x05\x0a\x7fabc"])
def test_garbage_in_the_details_does_no_harm(connect: Connect, garbage: bytes) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", garbage),))
        context.abort(Code.INVALID_ARGUMENT, "the rule")

    error = caught_from(connect, hook)
    assert isinstance(error, hourglass.InvalidArgument)
    assert "the rule" in str(error)


@hypothesis.given(strategies.binary(max_size=200))
def test_any_bytes_are_details_or_none(value: bytes) -> None:
    assert isinstance(status_details.parse([("grpc-status-details-bin", value)]), status_details.Details)


@hypothesis.given(
    reason=strategies.text(max_size=20),
    metadata=strategies.dictionaries(strategies.text(max_size=5), strategies.text(max_size=5), max_size=3),
    cut=strategies.integers(0, 100),
)
def test_details_are_those_of_googles_own_messages(reason: str, metadata: dict[str, str], cut: int) -> None:
    info = error_details_pb2.ErrorInfo(domain="hourglass", reason=reason, metadata=metadata)
    value = rich_status(error_details_pb2.BadRequest(), info)
    parsed = status_details.parse([("other", "x"), ("grpc-status-details-bin", value)])
    assert (parsed.reason, parsed.metadata, parsed.retry_after_s) == (reason, metadata, None)
    assert isinstance(status_details.parse([("grpc-status-details-bin", value[: -cut - 1])]), status_details.Details)


@pytest.mark.parametrize(("seconds", "waited"), [(2, 2.0), (-5, 0.0), (2**62, 86400.0)])
def test_no_server_makes_one_wait_for_more_than_a_day(seconds: int, waited: float) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = seconds
    assert status_details.parse([("grpc-status-details-bin", rich_status(retry))]).retry_after_s == waited


def test_a_server_without_the_service_is_named(connect: Connect) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(hourglass.Unsupported, match=rf"127.0.0.1:{port}: .*UNIMPLEMENTED"):
        connect(f"127.0.0.1:{port}").models()
    server.stop(None).wait()


BAD_ANSWERS = [
    pb.EncodeResponse(),
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[2, 2], data=b"123")),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[1, 2], data=bytes(8))),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, data=bytes(4))),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[-2, -2], data=bytes(16))),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=3, shape=[2, 2], data=bytes(4))),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=77, shape=[2, 2], data=bytes(4))),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[0, 2**40])),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[2, 0, 2**62, 2**62])),  # type: ignore[arg-type]
    pb.EncodeResponse(latents=pb.Tensor(dtype=1, shape=[2] + [1] * 300, data=bytes(8))),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_an_answer_that_breaks_the_contract_is_an_error(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, answer: pb.EncodeResponse
) -> None:
    monkeypatch.setattr(FakeService, "Encode", lambda *_: answer)
    error = caught_from(connect, None)
    assert isinstance(error, hourglass.Internal)
    assert error.reason == "BAD_ANSWER"
    assert len(str(error)) < 1024


def test_bytes_that_are_no_answer_are_an_error(connect: Connect) -> None:
    handlers: dict[str, Any] = {
        "Encode": grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"\xff\xff\xff\xff")
    }
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("autoencoder.v1.AutoencoderService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(hourglass.Internal):
        connect(f"127.0.0.1:{port}").encode("tiny", ROWS)
    server.stop(None).wait()


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_says_why_it_cannot_go_to_another_process(take: Callable[[object], object]) -> None:
    words = "holds connections and cannot be pickled or copied; make one in each process"
    with hourglass.Client("127.0.0.1:1") as client, pytest.raises(TypeError, match=f"Client {words}"):
        take(client)
    with hourglass.AdminClient("127.0.0.1:1") as admin, pytest.raises(TypeError, match=f"AdminClient {words}"):
        take(admin)
