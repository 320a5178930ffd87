"""The Open Inference Protocol over the wire: what the service's own API answers, and every kind of wrong request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import inference_messages
from tests import tiny
from tests.integration import inference
from tests.integration.inference import TIMEOUT_S, Arrays, Stub, arrays, message, request
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TINY, array, tensor

ROWS = tiny.rows(5)
LATENTS = tiny.encode(ROWS)
BYTES = (ROWS * 255).astype(np.uint8)
ENDS = {"start": ROWS[:2], "end": ROWS[2:4]}


@pytest.fixture
def client(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def native(stub: AutoencoderServiceStub, operation: str, dtype: str = "FLOAT32") -> Arrays:
    """What the service's own API answers."""
    wanted: Any = {"model": TINY, "output_dtype": f"DATA_TYPE_{dtype}"}
    if operation == "encode":
        return {"latents": array(stub.Encode(pb.EncodeRequest(rows=tensor(ROWS), **wanted)).latents)}
    if operation == "decode":
        return {"rows": array(stub.Decode(pb.DecodeRequest(latents=tensor(LATENTS), **wanted)).rows)}
    if operation == "reconstruct":
        r = stub.Reconstruct(pb.ReconstructRequest(rows=tensor(ROWS), **wanted))
        return {
            "reconstructions": array(r.rows),
            "reconstruction_errors": np.asarray(r.reconstruction_errors, np.float32),
            "novelties": np.asarray(r.novelties, np.float32),
        }
    if operation == "denoise":
        d = stub.Denoise(pb.DenoiseRequest(rows=tensor(ROWS), **wanted))
        return {"clean": array(d.rows), "distances": np.asarray(d.distances, np.float32)}
    ends = pb.TensorPair(start=tensor(ENDS["start"]), end=tensor(ENDS["end"]))
    i = stub.Interpolate(
        pb.InterpolateRequest(
            rows=ends, steps=4, method="INTERPOLATION_METHOD_SPHERICAL", return_latents=True, **wanted
        )
    )
    return {"rows": array(i.rows), "latents": array(i.latents)}


INPUTS: dict[str, Arrays] = {
    "encode": {"rows": ROWS},
    "decode": {"latents": LATENTS},
    "reconstruct": {"rows": ROWS},
    "denoise": {"rows": ROWS},
    "interpolate": ENDS,
}


def asking(operation: str, **fields: Any) -> Any:
    parameters = fields.pop("parameters", {})
    if operation == "interpolate":
        parameters = parameters | {"steps": 4, "method": "spherical"}
    return request(f"tiny.{operation}", INPUTS[operation], parameters=parameters, **fields)


@pytest.mark.parametrize("operation", INPUTS)
@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_answers_are_those_of_the_native_api(
    client: Stub, stub: AutoencoderServiceStub, operation: str, typed: bool
) -> None:
    response = client.ModelInfer(asking(operation, typed=typed, id="a-17"), timeout=TIMEOUT_S)
    assert (response.model_name, response.model_version, response.id) == (f"tiny.{operation}", "2", "a-17")
    assert bool(response.raw_output_contents) is not typed
    got, expected = arrays(response), native(stub, operation)
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("operation", INPUTS)
def test_answers_can_be_halves(client: Stub, stub: AutoencoderServiceStub, operation: str) -> None:
    response = client.ModelInfer(asking(operation, parameters={"output_datatype": "FP16"}), timeout=TIMEOUT_S)
    got, expected = arrays(response), native(stub, operation, "FLOAT16")
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        np.testing.assert_array_equal(got[name], values)


def test_a_typed_request_for_halves_is_answered_raw(client: Stub) -> None:
    response = client.ModelInfer(asking("encode", typed=True, parameters={"output_datatype": "FP16"}))
    assert arrays(response)["latents"].dtype == np.float16


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_bytes_are_scaled(client: Stub, stub: AutoencoderServiceStub, typed: bool) -> None:
    got = arrays(client.ModelInfer(request("tiny.encode", {"rows": BYTES}, typed=typed), timeout=TIMEOUT_S))
    expected = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(BYTES, 3)), timeout=TIMEOUT_S)
    np.testing.assert_array_equal(got["latents"], array(expected.latents))


def test_halves_go_in(client: Stub, stub: AutoencoderServiceStub) -> None:
    halves = ROWS.astype(np.float16)
    got = arrays(client.ModelInfer(request("tiny.encode", {"rows": halves}), timeout=TIMEOUT_S))
    expected = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(halves, 2)), timeout=TIMEOUT_S)
    np.testing.assert_array_equal(got["latents"], array(expected.latents))


def test_only_the_outputs_that_are_asked_for_come_in_that_order(client: Stub) -> None:
    response = client.ModelInfer(asking("reconstruct", outputs=("novelties", "reconstructions")), timeout=TIMEOUT_S)
    got = arrays(response)
    assert list(got) == ["novelties", "reconstructions"]
    np.testing.assert_allclose(got["reconstructions"], tiny.decode(LATENTS), rtol=1e-4)


def test_interpolation_takes_latents_and_weights(client: Stub) -> None:
    weights = np.array([-1.0, 0.5, 2.0], np.float32)
    ends = {"end_latents": np.ones((1, 3), np.float32), "start_latents": np.zeros((1, 3), np.float32)}
    got = arrays(client.ModelInfer(request("tiny.interpolate", {"weights": weights} | ends), timeout=TIMEOUT_S))
    np.testing.assert_allclose(got["latents"][0], weights[:, None] * np.ones((1, 3)))


def test_a_version_can_be_asked_for(client: Stub) -> None:
    assert client.ModelInfer(asking("encode", model_version="1"), timeout=TIMEOUT_S).model_version == "1"


def without(model: str, **changes: Any) -> Any:
    made = request(model, {"rows": ROWS})
    for name, value in changes.items():
        made.ClearField(name)
        getattr(made, name).extend(value)
    return made


def changed(change: Callable[[Any], object], *, typed: bool = False) -> Any:
    made = request("tiny.encode", {"rows": ROWS}, typed=typed)
    change(made)
    return made


BAD: dict[str, tuple[Any, str, str]] = {
    "no name": (request("", {}), "INVALID_ARGUMENT", "model name: must be given"),
    "no operation": (request("tiny", {"rows": ROWS}), "NOT_FOUND", "MODEL.OPERATION"),
    "unknown operation": (request("tiny.train", {"rows": ROWS}), "NOT_FOUND", "there is no model 'tiny.train'"),
    "unknown model": (request("huge.encode", {"rows": ROWS}), "NOT_FOUND", "there is no model 'huge'"),
    "unknown version": (request("tiny.encode", {"rows": ROWS}, model_version="9"), "NOT_FOUND", "no version 9"),
    "no such operation": (request("plain.denoise", {"rows": ROWS}), "FAILED_PRECONDITION", "plain version 1 has no"),
    "unknown input": (request("tiny.encode", {"x": ROWS}), "INVALID_ARGUMENT", "must be of rows; got 'x'"),
    "input missing": (without("tiny.encode", inputs=[], raw_input_contents=[]), "INVALID_ARGUMENT", "rows is missing"),
    "input twice": (
        changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b""))),
        "INVALID_ARGUMENT",
        "inputs[rows]: is there twice",
    ),
    "unknown output": (asking("encode", outputs=("rows",)), "INVALID_ARGUMENT", "must be of latents; got 'rows'"),
    "unknown datatype": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "FP64")),
        "INVALID_ARGUMENT",
        "inputs[rows].datatype: must be FP32, FP16, UINT8; got 'FP64'",
    ),
    "bytes for latents": (
        request("tiny.decode", {"latents": np.zeros((1, 3), np.uint8)}),
        "INVALID_ARGUMENT",
        "inputs[latents]: UINT8 is only for rows of images",
    ),
    "shape": (request("tiny.encode", {"rows": ROWS[:, 0]}), "INVALID_ARGUMENT", "must be [rows, 4, 4]; got [5, 4]"),
    "raw length": (
        changed(lambda r: r.raw_input_contents.__setitem__(0, b"1234")),
        "INVALID_ARGUMENT",
        "FP32 of shape [5, 4, 4] has 320 bytes; got 4",
    ),
    "raw count": (
        changed(lambda r: r.raw_input_contents.append(b"")),
        "INVALID_ARGUMENT",
        "raw_input_contents: one entry for each of 1 inputs; got 2",
    ),
    "raw and typed": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.append(1.0)),
        "INVALID_ARGUMENT",
        "inputs[rows].contents: must be absent beside raw_input_contents",
    ),
    "typed length": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.append(1.0), typed=True),
        "INVALID_ARGUMENT",
        "shape [5, 4, 4] has 80 elements; got 81",
    ),
    "typed in the wrong field": (
        changed(lambda r: r.inputs[0].contents.int_contents.append(1), typed=True),
        "INVALID_ARGUMENT",
        "FP32 is in fp32_contents; got int_contents",
    ),
    "typed halves": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "FP16"), typed=True),
        "INVALID_ARGUMENT",
        "FP16 comes in raw_input_contents only",
    ),
    "typed byte": (
        request("tiny.encode", {"rows": BYTES}, typed=True),
        "INVALID_ARGUMENT",
        "UINT8 is from 0 to 255; got 256",
    ),
    "not finite": (
        request("tiny.encode", {"rows": np.full((1, 4, 4), np.nan, np.float32)}),
        "INVALID_ARGUMENT",
        "inputs[rows].data: row 0 holds NaN",
    ),
    "unknown parameter": (asking("encode", parameters={"steps": 3}), "INVALID_ARGUMENT", "got 'steps'"),
    "parameter of a wrong kind": (
        asking("encode", parameters={"output_datatype": 16}),
        "INVALID_ARGUMENT",
        "parameters[output_datatype]: must be string_param; got int64_param",
    ),
    "datatype of the answer": (
        asking("encode", parameters={"output_datatype": "INT8"}),
        "INVALID_ARGUMENT",
        "must be FP32 or FP16; got 'INT8'",
    ),
    "timeout": (asking("encode", parameters={"timeout": -1}), "INVALID_ARGUMENT", "must be at least 0; got -1"),
    "shared memory": (
        changed(lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "x")),
        "INVALID_ARGUMENT",
        "inputs[rows].parameters: 'shared_memory_region' is not known",
    ),
    "classification": (
        changed(lambda r: setattr(r.outputs.add(name="latents").parameters["classification"], "int64_param", 3)),
        "INVALID_ARGUMENT",
        "outputs[latents].parameters: 'classification' is not known",
    ),
    "no points": (request("tiny.interpolate", ENDS), "INVALID_ARGUMENT", "steps or weights"),
    "method": (
        request("tiny.interpolate", ENDS, parameters={"steps": 3, "method": "cubic"}),
        "INVALID_ARGUMENT",
        "method: must be linear or spherical; got 'cubic'",
    ),
    "one end": (
        request("tiny.interpolate", {"start": ROWS}, parameters={"steps": 3}),
        "INVALID_ARGUMENT",
        "start and end, or start_latents and end_latents",
    ),
    "uneven ends": (
        request("tiny.interpolate", {"start": ROWS, "end": ROWS[:2]}, parameters={"steps": 3}),
        "INVALID_ARGUMENT",
        "start has 5 rows and end has 2",
    ),
    "steps and weights": (
        request("tiny.interpolate", ENDS | {"weights": np.zeros(1, np.float32)}, parameters={"steps": 3}),
        "INVALID_ARGUMENT",
        "steps and weights",
    ),
    "too many rows": (
        request("tiny.decode", {"latents": np.zeros((2001, 3), np.float32)}),
        "RESOURCE_EXHAUSTED",
        "2001",
    ),
}
BAD["typed byte"][0].inputs[0].contents.uint_contents[0] = 256


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_request_is_told_the_rule_and_the_value(client: Stub, case: str) -> None:
    wrong, code, text = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        client.ModelInfer(wrong, timeout=TIMEOUT_S)
    error: Any = caught.value
    assert error.code().name == code
    assert text in error.details()
    rich = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.domain, bool(info.reason)) == ("hourglass", True)


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary(f"/{inference_messages.SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_parameters_that_clients_of_triton_send_are_taken(client: Stub) -> None:
    parameters = {"priority": 1, "sequence_id": 3, "sequence_start": True, "timeout": 20_000_000}
    with_them = client.ModelInfer(asking("encode", parameters=parameters), timeout=TIMEOUT_S)
    without = client.ModelInfer(asking("encode"), timeout=TIMEOUT_S)
    assert np.array_equal(arrays(with_them)["latents"], arrays(without)["latents"])


@pytest.fixture(params=["completion-queue", "threaded"])
def slow(request: pytest.FixtureRequest, tiny_models: Path) -> Iterator[ServerProcess]:
    """A server that runs one row at a time."""
    with ServerProcess(tiny_models, "--max-batch-rows", "1", "--transport", request.param) as server:
        yield server


def test_a_stream_answers_each_request_with_a_result_or_an_error(slow: ServerProcess) -> None:
    final = {"triton_enable_empty_final_response": True}
    requests = [
        request("tiny.encode", {"rows": tiny.rows(1000)}, id="bulk"),
        request("tiny.encode", {"rows": ROWS}, id="late", parameters={"timeout": 1}),
        request("tiny.encode", {"rows": ROWS}, id="good", parameters=final),
        request("huge.encode", {"rows": ROWS}, id="bad"),
    ]
    with slow.channel() as channel:
        answers = {
            answer.infer_response.id: answer
            for answer in Stub(channel).ModelStreamInfer(iter(requests), timeout=TIMEOUT_S)
        }
        wanted = message("ModelStatisticsRequest")(name="tiny.encode", version="2")
        (counted,) = Stub(channel).ModelStatistics(wanted, timeout=TIMEOUT_S).model_stats
    assert (counted.inference_stats.success.count, counted.inference_stats.fail.count) == (2, 1)
    assert counted.inference_count == counted.execution_count == 1005, "one row at a time"
    assert set(answers) == {"bulk", "late", "good", "bad"}
    assert answers["bad"].error_message == "there is no model 'huge'"
    assert "the deadline cannot be met" in answers["late"].error_message
    assert not answers["good"].error_message
    np.testing.assert_allclose(arrays(answers["good"].infer_response)["latents"], LATENTS, rtol=1e-4)
    assert answers["good"].infer_response.parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in answers["bulk"].infer_response.parameters
    assert slow.metric('autoencoder_stream_messages_total{code="OK"}') == 2
    assert slow.metric('autoencoder_stream_messages_total{code="DEADLINE_EXCEEDED"}') == 1


def test_models_are_described(client: Stub) -> None:
    metadata = client.ModelMetadata(message("ModelMetadataRequest")(name="tiny.reconstruct"), timeout=TIMEOUT_S)
    assert (metadata.name, list(metadata.versions), metadata.platform) == (
        "tiny.reconstruct",
        ["2", "1"],
        "onnxruntime_onnx",
    )
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("rows", "FP32", [-1, 4, 4])]
    assert {each.name: list(each.shape) for each in metadata.outputs} == {
        "reconstructions": [-1, 4, 4],
        "reconstruction_errors": [-1],
        "novelties": [-1],
    }
    config = client.ModelConfig(message("ModelConfigRequest")(name="tiny.encode"), timeout=TIMEOUT_S).config
    assert (config.name, config.max_batch_size, config.backend) == ("tiny.encode", 256, "onnxruntime")
    assert config.HasField("dynamic_batching")
    assert [(each.name, list(each.dims)) for each in config.input] == [("rows", [4, 4])]
    assert [(each.name, list(each.dims)) for each in config.output] == [("latents", [3])]


@pytest.mark.parametrize("operation", INPUTS)
def test_the_described_shapes_are_those_of_the_answers(client: Stub, operation: str) -> None:
    metadata = client.ModelMetadata(message("ModelMetadataRequest")(name=f"tiny.{operation}"), timeout=TIMEOUT_S)
    answer = client.ModelInfer(asking(operation), timeout=TIMEOUT_S)
    assert [each.name for each in answer.outputs] == [each.name for each in metadata.outputs]
    for output, described in zip(answer.outputs, metadata.outputs, strict=True):
        assert len(output.shape) == len(described.shape)
        assert all(wanted in (-1, got) for got, wanted in zip(output.shape, described.shape, strict=True))


def test_what_can_be_asked(client: Stub) -> None:
    assert client.ServerLive(message("ServerLiveRequest")(), timeout=TIMEOUT_S).live
    assert client.ServerReady(message("ServerReadyRequest")(), timeout=TIMEOUT_S).ready
    about = client.ServerMetadata(message("ServerMetadataRequest")(), timeout=TIMEOUT_S)
    assert (about.name, bool(about.version)) == ("hourglass", True)
    ready = {
        (name, version): client.ModelReady(
            message("ModelReadyRequest")(name=name, version=version), timeout=TIMEOUT_S
        ).ready
        for name, version in [("tiny.encode", ""), ("tiny.encode", "9"), ("huge.encode", ""), ("plain.denoise", "")]
    }
    assert list(ready.values()) == [True, False, False, False]
    index = client.RepositoryIndex(message("RepositoryIndexRequest")(), timeout=TIMEOUT_S).models
    assert len(index) == 4 + 5 + 5
    assert ("plain.denoise", "1") not in {(model.name, model.version) for model in index}
    assert {model.state for model in index} == {"READY"}


def test_a_server_that_loads_is_live_and_not_ready(tmp_path: Path) -> None:
    """Without a package there is nothing to be ready with: the protocol is asked without a server around it."""
    from prometheus_client import CollectorRegistry

    from service.inference_protocol import InferenceProtocol
    from service.metrics import Metrics
    from tests.unit.service.test_servicer import FakeCall

    protocol = InferenceProtocol(
        None,  # type: ignore[arg-type]
        max_interpolation_points=2,
        metrics=Metrics(CollectorRegistry()),
        ready=lambda: False,
    )
    call = FakeCall()
    protocol.server_ready(inference_messages.ReadyRequest(), call)
    assert call.message.ready is False
    protocol.server_live(inference_messages.LiveRequest(), call)
    assert call.message.live is True


def test_statistics_count_the_callers_of_both_apis(server: ServerProcess) -> None:
    wanted = message("ModelStatisticsRequest")(name="tiny.denoise", version="1")
    with server.channel() as channel:
        client, stub = Stub(channel), AutoencoderServiceStub(channel)
        (before,) = client.ModelStatistics(wanted, timeout=TIMEOUT_S).model_stats
        counted = server.metric('autoencoder_rows_total{model="tiny",operation="denoise",version="1"}')
        client.ModelInfer(request("tiny.denoise", {"rows": ROWS}, model_version="1"), timeout=TIMEOUT_S)
        version = pb.ModelSelector(name="tiny", version="1")
        stub.Denoise(pb.DenoiseRequest(model=version, rows=tensor(ROWS[:2])), timeout=TIMEOUT_S)
        (after,) = client.ModelStatistics(wanted, timeout=TIMEOUT_S).model_stats
        everything = client.ModelStatistics(message("ModelStatisticsRequest")(), timeout=TIMEOUT_S).model_stats
        with pytest.raises(grpc.RpcError) as caught:
            client.ModelStatistics(message("ModelStatisticsRequest")(name="huge.encode"), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 2
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.inference_stats.success.ns >= after.inference_stats.compute_infer.ns > 0
    assert after.last_inference > 1_600_000_000_000
    assert len(everything) == 14
    assert server.metric('autoencoder_rows_total{model="tiny",operation="denoise",version="1"}') - counted == 7
    method = "/inference.GRPCInferenceService/ModelInfer"
    assert server.metric(f'autoencoder_rpc_requests_total{{code="OK",method="{method}"}}') > 0


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_models_cannot_be_loaded_here(client: Stub, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(client, method)(message(f"{method}Request")(model_name="tiny"), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "not on this port" in (caught.value.details() or "")


def test_reflection_and_health_know_both_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"autoencoder.v1.AutoencoderService", inference_messages.SERVICE} <= set(database.get_services())
    for symbol in (
        inference_messages.SERVICE,
        "inference.ModelConfig",
        "autoencoder.v1.Model",
        "grpc.health.v1.Health",
    ):
        assert database.FindFileContainingSymbol(symbol).name
    health: Any = health_pb2_grpc.HealthStub(channel)
    status = health.Check(health_pb2.HealthCheckRequest(service=inference_messages.SERVICE), timeout=TIMEOUT_S).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_every_rpc_of_the_protocol_is_served(client: Stub) -> None:
    from prometheus_client import CollectorRegistry

    from service.inference_protocol import InferenceProtocol
    from service.metrics import Metrics

    protocol = InferenceProtocol(
        None,  # type: ignore[arg-type]
        max_interpolation_points=2,
        metrics=Metrics(CollectorRegistry()),
        ready=lambda: True,
    )
    described = inference.POOL.FindServiceByName(inference_messages.SERVICE)
    methods = protocol.methods()
    assert set(methods) == {method.name for method in described.methods}
    for method in described.methods:
        assert type(methods[method.name].parse(b"")).DESCRIPTOR.full_name == method.input_type.full_name
