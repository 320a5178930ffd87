"""Starting, refusing, draining and stopping."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import numpy_helper

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import packages
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TINY, array, assert_close, tensor

TIMEOUT_S = 30.0


def test_bad_packages_are_refused_with_the_reason_while_the_others_serve(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (tiny.write(tmp_path, "truncated") / "encoder.onnx").write_bytes(b"\x08\x09")
    wrong_hash = tiny.write(tmp_path, "wrong-hash") / "decoder.onnx"
    wrong_hash.write_bytes(bytes(len(wrong_hash.read_bytes())))
    tiny.write(tmp_path, "unlisted").joinpath("model.json").unlink()
    rows = tiny.rows(2)
    wrong = tiny.npz(rows=rows, latents=tiny.encode(rows) + np.float32(1), reconstructions=rows)
    packages.write(tmp_path, tiny.manifest("wrong-golden"), tiny.files() | {packages.GOLDEN: wrong})
    outside = tiny.encoder()
    outside.graph.initializer[1].data_location = onnx.TensorProto.EXTERNAL
    outside.graph.initializer[1].external_data.add(key="location", value="/etc/passwd")
    write_unchecked(tmp_path, "outside", packages.ENCODER, outside.SerializeToString())
    unrunnable = tiny.decoder()
    unrunnable.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.array([-1, 5, 5], np.int64), "out_shape"))
    write_unchecked(tmp_path, "unrunnable", packages.DECODER, unrunnable.SerializeToString())
    with ServerProcess(tmp_path) as server, server.channel() as channel:
        refused = {
            event["model"]: (event["file"], event["rule"])
            for event in server.events
            if event["event"] == "model refused"
        }
        assert set(refused) == {"truncated", "wrong-hash", "unlisted", "wrong-golden", "outside", "unrunnable"}
        assert refused["truncated"] == ("encoder.onnx", refused["truncated"][1])
        assert refused["truncated"][1].startswith("has 2 bytes, the manifest says")
        assert refused["wrong-hash"][0] == "decoder.onnx"
        assert "sha256" in refused["wrong-hash"][1]
        assert refused["unlisted"][0] == "model.json"
        assert refused["wrong-golden"][0] == "encoder.onnx"
        assert "golden rows differ from golden.npz by 1" in refused["wrong-golden"][1]
        assert refused["outside"] == (
            "encoder.onnx", "keeps the weights 'weights' in another file; they must be inside",
        )  # fmt: skip
        assert "cannot be run" in refused["unrunnable"][1]
        stub = AutoencoderServiceStub(channel)
        assert [model.name for model in stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models] == ["tiny"]
        assert server.metric('autoencoder_model_ready{model="truncated",version="1"}') == 0
        assert 'model_ready{model="truncated"' in server.get("/metrics")[1]


def write_unchecked(models: Path, name: str, file: str, content: bytes) -> None:
    """A package with other content in one of its files, and a manifest that agrees with it."""
    package = tiny.write(models, name)
    manifest = json.loads((package / packages.MANIFEST).read_text())
    for entry in manifest["files"]:
        if entry["name"] == file:
            entry.update(sha256=hashlib.sha256(content).hexdigest(), sizeBytes=str(len(content)))
    (package / packages.MANIFEST).write_text(json.dumps(manifest))
    (package / file).write_bytes(content)


@pytest.mark.parametrize("case", ["none", "nowhere", "port", "http"])
def test_a_start_that_cannot_be_is_one_clear_line_and_a_code(case: str, tmp_path: Path, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        models, arguments, says = {
            "none": (tmp_path, [], "no package there can be served"),
            "nowhere": (tmp_path / "nowhere", [], "is not a directory"),
            "port": (tiny_models, ["--port", port], f"--port {port} on 127.0.0.1: Address already in use"),
            "http": (tiny_models, ["--http-port", port], f"--http-port {port} on 127.0.0.1: Address already in use"),
        }[case]
        process = ServerProcess(models, *arguments, ready=False)
        assert process.wait() == 1
        assert says in process.wait_for("cannot start")["reason"]
        process.stop()


def test_a_stop_drains_in_order(tiny_models: Path) -> None:
    with ServerProcess(tiny_models, "--lame-duck-s", "60") as server, server.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="tiny"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        # a lame duck still serves
        rows = tiny.rows(2)
        response = AutoencoderServiceStub(channel).Encode(
            pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S
        )
        assert_close(array(response.latents), tiny.encode(rows))
        watch.cancel()
        # the second signal cuts the delay short
        server.terminate()
        assert server.wait() == 0
        assert [event["event"] for event in server.events][-2:] == ["draining", "stopped"]


@pytest.mark.parametrize(
    "arguments",
    [("--transport", "completion-queue"), ("--transport", "threaded", "--handler-threads", "16"), ("--workers", "2")],
    ids=lambda arguments: "-".join(arguments).strip("-"),
)
def test_no_request_in_flight_is_lost_when_the_service_is_stopped_under_load(
    tiny_models: Path, arguments: tuple[str, ...]
) -> None:
    """Callers go on until the service refuses them. Every call that it took has its right answer; the one that it did
    not take is UNAVAILABLE, which a client may send elsewhere."""
    callers = 40  # more than the service has threads
    busy = threading.Barrier(callers + 1)

    def call(seed: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        with server.channel() as channel:
            stub = AutoencoderServiceStub(channel)
            for step in range(1_000_000):
                rows = tiny.rows(1 + step % 40, seed=seed * 1_000_000 + step)
                try:
                    response = stub.Encode(pb.EncodeRequest(model=TINY, rows=tensor(rows)), timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    outcomes[f"{error.code().name}: {error.details()}"] += 1
                    return outcomes
                assert_close(array(response.latents), tiny.encode(rows))
                outcomes["answered"] += 1
                if step == 20:
                    busy.wait(TIMEOUT_S)
        return outcomes

    with ServerProcess(tiny_models, *arguments) as server, ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call, seed) for seed in range(callers)]
        busy.wait(TIMEOUT_S)
        server.terminate()
        outcomes = sum((future.result() for future in futures), Counter())
        assert server.wait() == 0
    answered = outcomes.pop("answered")
    assert answered >= 21 * callers
    assert all(outcome.startswith("UNAVAILABLE") for outcome in outcomes), outcomes
    assert sum(outcomes.values()) == callers


def test_overload_is_refused_at_once_and_says_when_to_come_back(tiny_models: Path) -> None:
    """Batches of one row and a queue of 256: many requests of 200 rows cannot all wait."""
    limits = ("--max-batch-rows", "1", "--max-queue-rows", "256")
    with ServerProcess(tiny_models, *limits) as server, server.channel() as channel:
        stub = AutoencoderServiceStub(channel)
        rows = tiny.rows(200)
        request = pb.EncodeRequest(model=TINY, rows=tensor(rows))
        futures = [stub.Encode.future(request, timeout=TIMEOUT_S) for _ in range(60)]
        answered = 0
        refused: list[Any] = []
        for future in futures:
            try:
                assert_close(array(future.result().latents), tiny.encode(rows))
                answered += 1
            except grpc.RpcError as error:
                refused.append(error)
        assert answered >= 1
        assert refused
        for refusal in refused:
            assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "--max-queue-rows=256" in (refusal.details() or "")
            rich = status_pb2.Status.FromString(dict(refusal.trailing_metadata())["grpc-status-details-bin"])
            retry = error_details_pb2.RetryInfo()
            assert rich.details[1].Unpack(retry)
            assert retry.retry_delay.ToMilliseconds() > 0
        assert server.metric('autoencoder_rejected_requests_total{reason="QUEUE_FULL"}') == len(refused)
        assert_close(array(stub.Encode(request, timeout=TIMEOUT_S).latents), tiny.encode(rows))
