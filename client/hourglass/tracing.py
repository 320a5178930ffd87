"""The caller's trace, handed on: only where the program that calls has loaded OpenTelemetry itself."""

from __future__ import annotations

import sys
from importlib import import_module

Metadata = tuple[tuple[str, str], ...]


def with_trace(metadata: Metadata) -> Metadata:
    """`metadata` with what says under which span a call is made: `traceparent` (W3C), or what OTEL_PROPAGATORS says."""
    if "opentelemetry.trace" not in sys.modules:
        return metadata
    carrier: dict[str, str] = {}
    import_module("opentelemetry.propagate").inject(carrier)
    return (*metadata, *carrier.items())
