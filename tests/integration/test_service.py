"""The service over the wire: right answers, and every kind of wrong request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import paths
from tests import tiny
from tests.integration.serving import ServerProcess

TIMEOUT_S = 30.0
TINY = pb.ModelSelector(name="tiny")
FLOAT32 = model_pb2.DATA_TYPE_FLOAT32


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def tensor(array: npt.NDArray[Any], dtype: int = FLOAT32) -> pb.Tensor:
    return pb.Tensor(dtype=model_pb2.DataType.Name(dtype), shape=array.shape, data=array.tobytes())


def array(sent: pb.Tensor) -> npt.NDArray[Any]:
    dtype = {1: "<f4", 2: "<f2"}[sent.dtype]
    return np.frombuffer(sent.data, dtype).reshape(tuple(sent.shape))


def test_encode(stub: AutoencoderServiceStub) -> None:
    rows = tiny.rows(5)
    response = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
    assert_close(array(response.latents), tiny.encode(rows))
    execution = response.execution
    assert (execution.model_name, execution.model_version) == ("tiny", 2), "the latest version answers"
    assert execution.batch_rows >= 5
    assert execution.compute_seconds > 0


def test_decode(stub: AutoencoderServiceStub) -> None:
    latents = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    response = stub.Decode(pb.DecodeRequest(model=TINY, latents=tensor(latents)), timeout=TIMEOUT_S)
    assert_close(array(response.rows), tiny.decode(latents))


def test_reconstruct_says_how_well_and_how_novel(stub: AutoencoderServiceStub) -> None:
    rows = tiny.rows(6)
    response = stub.Reconstruct(pb.ReconstructRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
    expected = tiny.decode(tiny.encode(rows))
    assert_close(array(response.rows), expected)
    errors = ((expected - rows) ** 2).mean(axis=(1, 2))
    assert_close(response.reconstruction_errors, errors)
    # the quantiles of the package are evenly spaced from 0 to 2
    np.testing.assert_allclose(response.novelties, np.clip(errors / 2, 0, 1), rtol=1e-3)


def test_denoise_says_how_far_rows_moved(stub: AutoencoderServiceStub) -> None:
    rows = tiny.rows(3)
    response = stub.Denoise(pb.DenoiseRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
    expected = tiny.decode(tiny.encode(rows))
    assert_close(array(response.rows), expected)
    assert_close(response.distances, np.sqrt(((expected - rows) ** 2).mean(axis=(1, 2))))


@pytest.mark.parametrize("method", ["LINEAR", "SPHERICAL"])
def test_interpolate_between_rows(stub: AutoencoderServiceStub, method: str) -> None:
    start, end = tiny.rows(2, seed=1), tiny.rows(2, seed=2)
    response = stub.Interpolate(
        pb.InterpolateRequest(
            model=TINY,
            rows=pb.TensorPair(start=tensor(start), end=tensor(end)),
            steps=5,
            method=f"INTERPOLATION_METHOD_{method}",
            return_latents=True,
        ),
        timeout=TIMEOUT_S,
    )
    walk = getattr(paths, method.lower())
    latents = walk(tiny.encode(start), tiny.encode(end), np.linspace(0, 1, 5, dtype=np.float32))
    assert_close(array(response.latents), latents)
    expected = tiny.decode(latents.reshape(10, 3)).reshape(2, 5, 4, 4)
    assert_close(array(response.rows), expected)


def test_interpolate_between_latents_at_given_weights(stub: AutoencoderServiceStub) -> None:
    start, end = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    response = stub.Interpolate(
        pb.InterpolateRequest(
            model=TINY,
            latents=pb.TensorPair(start=tensor(start), end=tensor(end)),
            weights=pb.Weights(values=[-1.0, 0.5, 2.0]),
        ),
        timeout=TIMEOUT_S,
    )
    latents = np.array([[-1.0], [0.5], [2.0]], np.float32) * np.ones((1, 3), np.float32)
    assert_close(array(response.rows)[0], tiny.decode(latents))
    assert not response.HasField("latents")


def test_uint8_and_float16_go_in_and_float16_comes_out(stub: AutoencoderServiceStub) -> None:
    bytes_: npt.NDArray[Any] = np.random.default_rng(3).integers(0, 256, (4, 4, 4), np.uint8)
    request = pb.EncodeRequest(model=TINY, rows=tensor(bytes_, 3), output_dtype="DATA_TYPE_FLOAT16")
    response = stub.Encode(request, timeout=TIMEOUT_S)
    assert response.latents.dtype == model_pb2.DATA_TYPE_FLOAT16
    scaled = (bytes_ / 255).astype(np.float32)
    np.testing.assert_allclose(array(response.latents), np.asarray(tiny.encode(scaled)), atol=2e-3)
    halves = tiny.rows(4).astype(np.float16)
    response = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(halves, 2)), timeout=TIMEOUT_S)
    assert_close(array(response.latents), tiny.encode(halves.astype(np.float32)))


def test_a_version_can_be_asked_for(stub: AutoencoderServiceStub) -> None:
    selector = pb.ModelSelector(name="tiny", version="1")
    response = stub.Encode(pb.EncodeRequest(model=selector, rows=tensor(tiny.rows(1))), timeout=TIMEOUT_S)
    assert response.execution.model_version == 1


def test_models_are_listed_with_how_they_are_loaded(stub: AutoencoderServiceStub) -> None:
    models = stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
    assert [(model.name, model.version) for model in models] == [("plain", 1), ("tiny", 2), ("tiny", 1)]
    card = stub.GetModel(pb.GetModelRequest(model=TINY), timeout=TIMEOUT_S).model
    assert card == models[1]
    assert card.runtime.provider == "CPUExecutionProvider"
    assert card.runtime.load_seconds > 0
    assert {file.name for file in card.files} == {"encoder.onnx", "decoder.onnx", "golden.npz"}


def test_rows_of_many_callers_are_never_mixed_up(server: ServerProcess) -> None:
    def call(seed: int) -> None:
        with server.channel() as channel:
            stub = AutoencoderServiceStub(channel)
            for step in range(20):
                rows = tiny.rows(1 + (seed + step) % 7, seed=seed * 1000 + step)
                response = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
                assert_close(array(response.latents), tiny.encode(rows))

    before = server.metric('autoencoder_batch_rows_count{model="tiny"}')
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(16)))
    batches = server.metric('autoencoder_batch_rows_count{model="tiny"}') - before
    assert batches < 16 * 20, "requests that came together were run together"


def rows_request(rows: pb.Tensor, **fields: Any) -> pb.EncodeRequest:
    return pb.EncodeRequest(**({"model": TINY, "rows": rows} | fields))


def path_request(**fields: Any) -> pb.InterpolateRequest:
    ends = pb.TensorPair(start=tensor(tiny.rows(1)), end=tensor(tiny.rows(1)))
    return pb.InterpolateRequest(**({"model": TINY, "rows": ends} | fields))


def unknown_enum(message: Any, field: str) -> Any:
    setattr(message, field, 77)
    return message


GOOD = tiny.rows(2)
WRONG: list[tuple[str, Callable[[], Any], str, str]] = [
    ("Encode", lambda: rows_request(tensor(GOOD, 0)), "INVALID_ARGUMENT", "rows.dtype: must be"),
    ("Encode", lambda: rows_request(unknown_enum(tensor(GOOD), "dtype")), "INVALID_ARGUMENT", "unknown number 77"),
    ("Encode", lambda: rows_request(tensor(GOOD), output_dtype="DATA_TYPE_UINT8"), "INVALID_ARGUMENT", "output_dtype"),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD.reshape(2, 16))),
        "INVALID_ARGUMENT",
        "must be [rows, 4, 4]; got [2, 16]",
    ),
    ("Encode", lambda: rows_request(tensor(GOOD[:0])), "INVALID_ARGUMENT", "at least one row; got 0"),
    ("Encode", lambda: pb.EncodeRequest(model=TINY), "INVALID_ARGUMENT", "rows.dtype"),
    (
        "Encode",
        lambda: rows_request(pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[2, 4, 4], data=b"1234")),
        "INVALID_ARGUMENT",
        "has 128 bytes; got 4",
    ),
    (
        "Encode",
        lambda: rows_request(pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[-2, 4, 4], data=GOOD.tobytes())),
        "INVALID_ARGUMENT",
        "got -2",
    ),
    (
        "Encode",
        lambda: rows_request(pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[2**62, 4, 4], data=GOOD.tobytes())),
        "INVALID_ARGUMENT",
        "got 128",
    ),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD * np.float32(np.nan))),
        "INVALID_ARGUMENT",
        "row 0 holds NaN or infinity",
    ),
    (
        "Denoise",
        lambda: pb.DenoiseRequest(model=TINY, rows=tensor(GOOD * np.float32(np.inf))),
        "INVALID_ARGUMENT",
        "NaN",
    ),
    (
        "Decode",
        lambda: pb.DecodeRequest(model=TINY, latents=tensor(GOOD)),
        "INVALID_ARGUMENT",
        "latents.shape: must be [rows, 3]",
    ),
    (
        "Decode",
        lambda: pb.DecodeRequest(model=TINY, latents=tensor(np.zeros((1, 3), "u1"), 3)),
        "INVALID_ARGUMENT",
        "UINT8 is only",
    ),
    ("Encode", lambda: rows_request(tensor(GOOD), model=None), "INVALID_ARGUMENT", "model.name: must be given"),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD), model=pb.ModelSelector(name="tiny", version="Newest")),
        "INVALID_ARGUMENT",
        "'Newest'",
    ),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD), model=pb.ModelSelector(name="tiny", version="newest")),
        "NOT_FOUND",
        "tiny has no label 'newest'; it has none",
    ),
    ("Encode", lambda: rows_request(tensor(GOOD), model=pb.ModelSelector(name="none")), "NOT_FOUND", "no model 'none'"),
    ("GetModel", lambda: pb.GetModelRequest(model=pb.ModelSelector(name="x" * 9999)), "NOT_FOUND", "no model 'xxx"),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD), model=pb.ModelSelector(name="tiny", version="7")),
        "NOT_FOUND",
        "tiny has no version 7; it has 1, 2",
    ),
    (
        "Encode",
        lambda: rows_request(tensor(GOOD), model=pb.ModelSelector(name="tiny", version="9" * 40)),
        "NOT_FOUND",
        "no version 999",
    ),
    (
        "Denoise",
        lambda: pb.DenoiseRequest(model=pb.ModelSelector(name="plain"), rows=tensor(GOOD)),
        "FAILED_PRECONDITION",
        "plain version 1 has no denoise; it has decode, encode, interpolate, reconstruct",
    ),
    ("Interpolate", lambda: path_request(steps=1), "INVALID_ARGUMENT", "steps: from 2 to"),
    ("Interpolate", lambda: path_request(steps=0), "INVALID_ARGUMENT", "got 0"),
    (
        "Interpolate",
        lambda: path_request(steps=1_000_000),
        "INVALID_ARGUMENT",
        "--max-interpolation-points=1000 points; got 1000000",
    ),
    ("Interpolate", lambda: path_request(), "INVALID_ARGUMENT", "steps or weights"),
    ("Interpolate", lambda: path_request(weights=pb.Weights()), "INVALID_ARGUMENT", "got 0"),
    ("Interpolate", lambda: path_request(weights=pb.Weights(values=[9.0])), "INVALID_ARGUMENT", "from -1 to 2; got 9"),
    ("Interpolate", lambda: path_request(weights=pb.Weights(values=[np.nan])), "INVALID_ARGUMENT", "got nan"),
    (
        "Interpolate",
        lambda: path_request(weights=pb.Weights(values=[-0.5]), method="INTERPOLATION_METHOD_SPHERICAL"),
        "INVALID_ARGUMENT",
        "from 0 to 1; got -0.5",
    ),
    ("Interpolate", lambda: unknown_enum(path_request(steps=3), "method"), "INVALID_ARGUMENT", "got number 77"),
    ("Interpolate", lambda: pb.InterpolateRequest(model=TINY, steps=3), "INVALID_ARGUMENT", "rows or latents"),
    (
        "Interpolate",
        lambda: path_request(rows=pb.TensorPair(start=tensor(tiny.rows(1)), end=tensor(tiny.rows(2))), steps=3),
        "INVALID_ARGUMENT",
        "start has 1 rows and end has 2",
    ),
    (
        "Interpolate",
        lambda: path_request(rows=pb.TensorPair(start=tensor(tiny.rows(3)), end=tensor(tiny.rows(3))), steps=1000),
        "RESOURCE_EXHAUSTED",
        "3 pairs with 1000 points each are more rows than --max-queue-rows=2000",
    ),
    (
        "Decode",
        lambda: pb.DecodeRequest(model=TINY, latents=tensor(np.zeros((2001, 3), np.float32))),
        "RESOURCE_EXHAUSTED",
        "2001 rows in one request are more than --max-queue-rows=2000",
    ),
]


@pytest.mark.parametrize(("method", "request_", "code", "says"), WRONG, ids=[f"{w[0]}-{w[3][:30]}" for w in WRONG])
def test_a_wrong_request_ends_in_its_status_and_names_the_rule(
    stub: AutoencoderServiceStub, method: str, request_: Callable[[], Any], code: str, says: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_(), timeout=TIMEOUT_S)
    error: Any = caught.value
    assert (error.code().name, says in error.details()) == (code, True), error.details()
    assert len(error.details()) < 500
    rich = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert info.domain == "hourglass"
    assert info.reason.isupper()
    still_serves(stub)


def still_serves(stub: AutoencoderServiceStub) -> None:
    rows = tiny.rows(3)
    response = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
    assert_close(array(response.latents), tiny.encode(rows))


@pytest.mark.parametrize("garbage", [b"\xff" * 40, b"\x0a\xff", b"\x08", bytes(range(256))])
def test_garbage_is_an_invalid_argument(channel: grpc.Channel, stub: AutoencoderServiceStub, garbage: bytes) -> None:
    call: Any = channel.unary_unary("/autoencoder.v1.AutoencoderService/Encode")
    with pytest.raises(grpc.RpcError) as caught:
        call(garbage, timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    still_serves(stub)


def test_a_message_over_the_limit_is_refused(stub: AutoencoderServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(tiny.rows(2000))), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    still_serves(stub)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel, stub: AutoencoderServiceStub) -> None:
    call: Any = channel.unary_unary("/autoencoder.v1.AutoencoderService/Train")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_of_a_millisecond_harms_nobody(server: ServerProcess, stub: AutoencoderServiceStub) -> None:
    codes = set()
    for _ in range(50):
        try:
            stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(tiny.rows(200))), timeout=0.001)
        except grpc.RpcError as error:
            codes.add(error.code().name)
    assert codes <= {"DEADLINE_EXCEEDED"}
    still_serves(stub)
    assert drained(server)


def test_clients_that_go_away_in_mid_request_harm_nobody(server: ServerProcess, stub: AutoencoderServiceStub) -> None:
    request = pb.EncodeRequest(model=TINY, rows=tensor(tiny.rows(200)))
    for number in range(30):
        with server.channel() as channel:
            futures = [AutoencoderServiceStub(channel).Encode.future(request, timeout=TIMEOUT_S) for _ in range(4)]
            if number % 2:
                futures[0].result()
    still_serves(stub)
    assert drained(server)


def drained(server: ServerProcess) -> bool:
    """Whether the service comes to have no call and no rows in hand."""
    for _ in range(200):
        if server.metric("autoencoder_requests_in_flight") == 0 and server.metric("autoencoder_queue_rows") == 0:
            return True
        threading.Event().wait(0.05)
    return False


def test_health_knows_the_service_and_every_model(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", "autoencoder.v1.AutoencoderService", "tiny", "plain"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_describes_them(channel: grpc.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="autoencoder.v1.AutoencoderService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT_S)
    assert {service.name for service in listed.list_services_response.service} == {
        "autoencoder.v1.AutoencoderService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    assert described.file_descriptor_response.file_descriptor_proto


def test_callers_that_say_nothing_do_not_hold_up_health_and_reflection(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    listed = reflection_pb2.ServerReflectionRequest(list_services="")
    over = threading.Event()

    def first_then_nothing(*first: Any) -> Iterator[Any]:
        yield from first
        over.wait()

    silent: Any = channel.stream_unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest.SerializeToString)
    streams = [reflection.ServerReflectionInfo(first_then_nothing(listed)) for _ in range(64)]
    calls = [silent.future(first_then_nothing()) for _ in range(64)]
    try:
        for stream in streams:
            assert next(stream).list_services_response.service
        for _ in range(20):
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == 1
        assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)).status == 1
    finally:
        over.set()
        for call in (*streams, *calls):
            call.cancel()
    assert "health" not in server.get("/metrics")[1], "they are not among the service's own calls"


def test_metrics_count_what_happened(server: ServerProcess, stub: AutoencoderServiceStub) -> None:
    method = "/autoencoder.v1.AutoencoderService/Reconstruct"
    watched = {
        f'autoencoder_rpc_requests_total{{code="OK",method="{method}"}}': 1,
        f'autoencoder_rpc_requests_total{{code="NOT_FOUND",method="{method}"}}': 1,
        'autoencoder_rejected_requests_total{reason="NO_SUCH_MODEL"}': 1,
        'autoencoder_rows_total{model="tiny",operation="reconstruct",version="2"}': 7,
        'autoencoder_reconstruction_error_count{model="tiny",operation="reconstruct"}': 7,
        'autoencoder_novel_rows_total{model="tiny",operation="reconstruct"}': 7,
        f'autoencoder_rpc_duration_seconds_count{{method="{method}"}}': 2,
        'autoencoder_phase_duration_seconds_count{model="tiny",operation="reconstruct",phase="compute"}': 1,
    }
    before = {name: server.metric(name) for name in watched}
    far = tensor(tiny.rows(7) * 100)
    stub.Reconstruct(pb.ReconstructRequest(model=TINY, rows=far), timeout=TIMEOUT_S)
    with pytest.raises(grpc.RpcError):
        stub.Reconstruct(pb.ReconstructRequest(model=pb.ModelSelector(name="no"), rows=far), timeout=TIMEOUT_S)
    assert {name: server.metric(name) - before[name] for name in watched} == watched
    info = 'autoencoder_model_info{model="tiny",provider="CPUExecutionProvider",variant="linear",version="2"}'
    assert server.metric(info) == 1
    assert server.metric('autoencoder_model_ready{model="plain",version="1"}') == 1


def test_huge_numbers_are_answered_and_spoil_no_metric(server: ServerProcess, stub: AutoencoderServiceStub) -> None:
    rows = tensor(np.full((2, 4, 4), 3e38, np.float32))
    stub.Reconstruct(pb.ReconstructRequest(model=TINY, rows=rows), timeout=TIMEOUT_S)
    latents = tensor(np.full((1, 3), 3e38, np.float32))
    stub.Interpolate(
        pb.InterpolateRequest(
            model=TINY, latents=pb.TensorPair(start=latents, end=latents), weights=pb.Weights(values=[-1.0, 2.0])
        ),
        timeout=TIMEOUT_S,
    )
    total = server.metric('autoencoder_reconstruction_error_sum{model="tiny",operation="reconstruct"}')
    assert np.isfinite(total)
    still_serves(stub)


def test_the_http_port_answers_probes(server: ServerProcess) -> None:
    assert server.get("/healthz") == (200, "alive\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/elsewhere")[0] == 404
