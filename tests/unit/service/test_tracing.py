"""Spans of requests that share a batch, sent to a real collector."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")

from opentelemetry.trace import StatusCode

from service import server
from service.errors import StartError
from service.observation import Observer
from service.settings import Settings
from service.tracing import OpenTelemetryTracer
from tests.otlp import Collector, attributes, collecting
from tests.unit.service.test_dispatcher import WAIT_S, Harness

METHOD = "/autoencoder.v1.AutoencoderService/Encode"
CALLER = ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c")
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def trace_three() -> Collector:
    """A batch of one row, held; meanwhile three requests, which share the next batch."""
    harness = Harness()
    with collecting() as collector:
        tracer = OpenTelemetryTracer(collector.endpoint)
        observer = Observer(tracer=tracer)
        harness.submit(0.0)
        assert harness.program.entered.acquire(timeout=WAIT_S)
        pending = []
        for number in range(3):
            metadata = [("traceparent", CALLER[0])] if number == 0 else []
            observation = observer.begin(METHOD, metadata, "ipv4:10.0.0.1:5", stream=False)
            assert observation is not None
            job, future = harness.prepared(float(number))
            job.trace = observation.trace
            harness.dispatcher.submit(job)
            pending.append((observation, future))
        harness.program.may_go.set()
        for observation, future in pending:
            future.result(WAIT_S)
            observation.asks("digits", 3, 1)
            observation.end("INTERNAL" if observation is pending[2][0] else "OK", 0.1)
        harness.dispatcher.close()
        observer.stop()
    return collector


def test_requests_that_shared_a_batch_are_linked() -> None:
    collector = trace_three()
    assert collector.services == {"hourglass"}
    first, second, third = collector.named(METHOD[1:])
    assert first.trace_id.hex() == CALLER[1]
    assert first.parent_span_id.hex() == "b7ad6b7169203331"
    assert len({span.trace_id for span in (first, second, third)}) == 3
    assert (
        attributes(first).items()
        >= {
            "rpc.system": "grpc",
            "rpc.service": "autoencoder.v1.AutoencoderService",
            "rpc.method": "Encode",
            "rpc.grpc.status_code": 0,
            "client.address": "10.0.0.1",
            "hourglass.model": "digits",
            "hourglass.version": 3,
            "hourglass.rows": 1,
        }.items()
    )
    assert attributes(third)["rpc.grpc.status_code"] == 13
    assert [span.status.code for span in (first, third)] == [StatusCode.UNSET.value, StatusCode.ERROR.value]
    batches = collector.named("batch")
    assert [batch.parent_span_id for batch in batches] == [span.span_id for span in (first, second, third)]
    assert [link.span_id for link in batches[0].links] == [second.span_id, third.span_id]
    for batch in batches[1:]:
        assert [link.span_id for link in batch.links] == [batches[0].span_id]
    assert attributes(batches[0]) == {"hourglass.operation": "double", "hourglass.batch_rows": 3}
    waits = collector.named("wait")
    assert [wait.parent_span_id for wait in waits] == [span.span_id for span in (first, second, third)]
    for wait, batch in zip(waits, batches, strict=True):
        assert wait.start_time_unix_nano < wait.end_time_unix_nano <= batch.start_time_unix_nano
        assert batch.start_time_unix_nano <= batch.end_time_unix_nano
    assert abs(waits[0].start_time_unix_nano - first.start_time_unix_nano) < WAIT_S * 1e9


def test_what_its_caller_does_not_sample_is_not_observed() -> None:
    with collecting() as collector:
        observer = Observer(tracer=OpenTelemetryTracer(collector.endpoint))
        assert observer.begin(METHOD, [("traceparent", UNSAMPLED)], "unix:", stream=False) is None
        observer.stop()
    assert not collector.spans


def test_a_service_without_the_extra_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.tracing", None)
    assert server._tracer(Settings()) is None
    with pytest.raises(StartError, match=r"--otel-endpoint: needs the extra otel"):
        server._tracer(Settings(otel_endpoint="http://127.0.0.1:4317"))


def test_without_an_endpoint_opentelemetry_is_not_loaded() -> None:
    program = "import service.server, hourglass, sys; print('opentelemetry' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"
