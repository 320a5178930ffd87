"""Traces by OpenTelemetry, which is an extra: imported only where an endpoint was given.

A request's span has two beneath it for each batch that had rows of it: `wait` in the queue, and `batch`. One of the
requests of a batch, the first, holds its span: it is linked to the spans of the others, and theirs to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from service.observation import Metadata, Observation, Trace, TracedPart

# As the conventions for RPCs have it: what is the server's fault.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class OpenTelemetryTracer:
    """An `observation.Tracer` that sends to `endpoint`, http://host:port or https://host:port, by OTLP over gRPC.

    What the endpoint does not say (headers, sampler, service name, time-outs) is read by the SDK from the OTEL_*
    variables. Spans are sent by a thread, and dropped where they come faster than they are taken.
    """

    def __init__(self, endpoint: str) -> None:
        named = Resource({"service.name": "hourglass"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=Resource.create().merge(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("hourglass.service")

    def begin(self, method: str, metadata: Metadata) -> Trace | None:
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return _begin(self._tracer, method[1:], propagate.extract(carrier), SpanKind.SERVER)

    def stop(self) -> None:
        self._provider.shutdown()


def _begin(tracer: trace.Tracer, name: str, context: Context, kind: SpanKind) -> _Trace | None:
    span = tracer.start_span(name, context, kind)
    return _Trace(tracer, name, span) if span.is_recording() else None


class _Trace:
    """An `observation.Trace`."""

    def __init__(self, tracer: trace.Tracer, name: str, span: Span) -> None:
        self._tracer = tracer
        self._name = name
        self._span = span
        self._context = trace.set_span_in_context(span, Context())

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def message(self, name: str) -> Trace | None:
        return _begin(self._tracer, name.removeprefix("/"), self._context, SpanKind.SERVER)

    def ran(self, parts: Sequence[TracedPart], *, operation: str, row_count: int, began: float, ended: float) -> None:
        # From the monotonic clock to nanoseconds since 1970.
        offset_ns = time.time_ns() - time.monotonic_ns()
        attributes: dict[str, str | int] = {"hourglass.operation": operation, "hourglass.batch_rows": row_count}
        others = [Link(part.trace._span.get_span_context()) for part in parts[1:] if isinstance(part.trace, _Trace)]
        shared: Span | None = None
        for part in parts:
            if not isinstance(part.trace, _Trace):
                continue
            if part.admitted_at is not None:
                wait = self._tracer.start_span(
                    "wait", part.trace._context, start_time=int(part.admitted_at * 1e9) + offset_ns
                )
                wait.end(int(part.begun_at * 1e9) + offset_ns)
            span = self._tracer.start_span(
                "batch",
                part.trace._context,
                attributes=attributes,
                links=others if shared is None else [Link(shared.get_span_context())],
                start_time=int(began * 1e9) + offset_ns,
            )
            span.end(int(ended * 1e9) + offset_ns)
            shared = shared or span

    def end(self, observation: Observation, code: str) -> None:
        span = self._span
        service, _, method = self._name.partition("/")
        span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": grpc.StatusCode[code].value[0],
                "client.address": observation.caller,
                "hourglass.request_id": observation.request_id,
            }
        )
        if observation.model:
            span.set_attributes(
                {
                    "hourglass.model": observation.model,
                    "hourglass.version": observation.version,
                    "hourglass.rows": observation.rows,
                }
            )
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR)
        span.end()
