"""Traces, access log, drift and the log level of a real service."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import autoencoder_pb2_grpc
from hourglass import AsyncClient, Client
from tests import tiny
from tests.integration.serving import ServerProcess

WAIT_S = 60.0
ENCODE = "autoencoder.v1.AutoencoderService/Encode"


def test_a_clients_trace_goes_on_in_the_service(tiny_models: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
    from opentelemetry.sdk.trace import TracerProvider

    from tests.otlp import attributes, collecting

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    # One call is under a span, the other under none.
    with collecting() as collector:
        with ServerProcess(tiny_models, "--otel-endpoint", collector.endpoint) as server:
            with Client(server.address) as client:
                with tracer.start_as_current_span("mine") as mine:
                    client.encode("plain", tiny.rows(3))
                client.encode("plain", tiny.rows(1))

            async def merged() -> list[int]:
                async with AsyncClient(server.address, max_in_flight=1) as client:

                    async def one(number: int) -> int:
                        with tracer.start_as_current_span(str(number)) as span:
                            await client.encode("tiny", tiny.rows(250, seed=number))
                            return span.get_span_context().span_id

                    return await asyncio.gather(*(one(number) for number in range(3)))

            parents = asyncio.run(merged())
            stub = autoencoder_pb2_grpc.AutoencoderServiceStub(server.channel())
            with pytest.raises(grpc.RpcError):
                stub.Encode(pb.EncodeRequest(), timeout=WAIT_S)
            message = pb.StreamRequest(id=7, encode=pb.EncodeRequest())
            (answer,) = stub.Stream(iter([message]), timeout=WAIT_S)
            assert answer.error.code
        assert server.process.returncode == 0
    plain, alone = (span for span in collector.named(ENCODE) if attributes(span).get("hourglass.model") == "plain")
    context = mine.get_span_context()
    assert (int.from_bytes(plain.trace_id), int.from_bytes(plain.parent_span_id)) == (context.trace_id, context.span_id)
    assert not alone.parent_span_id
    assert attributes(plain)["hourglass.rows"] == 3
    batch, wait = (
        next(span for span in collector.named(name) if span.parent_span_id == plain.span_id)
        for name in ("batch", "wait")
    )
    assert plain.start_time_unix_nano <= wait.start_time_unix_nano <= batch.end_time_unix_nano
    assert batch.end_time_unix_nano <= plain.end_time_unix_nano
    tinies = [span for span in collector.named(ENCODE) if attributes(span).get("hourglass.model") == "tiny"]
    # 250 rows each: no two share a message, and each has the trace of its own call.
    assert {int.from_bytes(span.parent_span_id) for span in tinies} == set(parents)
    (stream,) = collector.named("autoencoder.v1.AutoencoderService/Stream")
    (item,) = collector.named("autoencoder.v1.AutoencoderService/Stream/encode")
    assert item.parent_span_id == stream.span_id
    assert attributes(item)["hourglass.request_id"] == attributes(stream)["hourglass.request_id"] + "/7"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigusr1_turns_the_access_log_on_and_off(tiny_models: Path, workers: str) -> None:
    with ServerProcess(tiny_models, "--workers", workers) as server, Client(server.address) as client:
        client.encode("tiny", tiny.rows(1))
        assert not calls(server)
        processes = 1 if workers == "1" else 3
        server.process.send_signal(signal.SIGUSR1)
        assert server.wait_for("log level changed", count=processes)["log_level"] == "debug"
        client.encode("tiny", tiny.rows(2))
        line = server.wait_for("call")
        assert (line["level"], line["method"], line["rows"], line["status"]) == ("debug", f"/{ENCODE}", 2, "OK")
        server.process.send_signal(signal.SIGUSR1)
        assert server.wait_for("log level changed", count=2 * processes)["log_level"] == "info"
        client.encode("tiny", tiny.rows(1))
    assert server.process.returncode == 0
    assert len(calls(server)) == 1


def calls(server: ServerProcess) -> list[dict[str, Any]]:
    return [event for event in server.events if event["event"] == "call"]


def test_what_is_encoded_is_measured_and_all_of_it_is_accounted_for(tiny_models: Path) -> None:
    """Black rows are what the model can do; those in the scale of pixels, where it was made for 0 to 1, are novel."""
    with ServerProcess(tiny_models, "--shadow-share", "1") as server, Client(server.address) as client:

        def encode(scale: float, count: int) -> tuple[float, float]:
            """The rows measured in all and the novel ones, when all `count` are accounted for."""
            for number in range(10):
                client.encode("tiny", tiny.rows(4, seed=number) * scale)
            until = time.monotonic() + WAIT_S
            while time.monotonic() < until:
                measured = server.metric(f"autoencoder_reconstruction_error_count{series}")
                if measured + server.metric('autoencoder_shadow_dropped_rows_total{model="tiny"}') == count:
                    return measured, server.metric(f"autoencoder_novel_rows_total{series}")
            raise AssertionError("rows are neither measured nor dropped")

        series = '{model="tiny",operation="encode"}'
        measured, novel = encode(0, 40)
        assert measured >= 4
        assert novel == 0
        measured_then, novel = encode(100, 80)
        assert novel == measured_then - measured >= 4
