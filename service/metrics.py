"""Every metric of the service, in one place. Base units; labels from closed sets, never a request's own words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

RPC_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASE_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LOAD_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ERROR_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 1.0)

# A row whose reconstruction error is above this share of the validation rows' counts as novel.
NOVEL = 0.99


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.rpc_requests = BulkCounter(
            "autoencoder_rpc_requests", "RPCs that ended, by gRPC status", ("method", "code"), registry
        )
        self.rpc_duration = BulkHistogram(
            "autoencoder_rpc_duration_seconds",
            "Time from the first handler code of an RPC to its answer",
            ("method",),
            RPC_BUCKETS_S,
            registry,
        )
        self.rows = BulkCounter("autoencoder_rows", "Rows answered", ("model", "version", "operation"), registry)
        self.phase_duration = BulkHistogram(
            "autoencoder_phase_duration_seconds",
            "Where time goes: queue a request; assemble, compute and respond a batch",
            ("model", "operation", "phase"),
            PHASE_BUCKETS_S,
            registry,
        )
        self.batch_rows = BulkHistogram(
            "autoencoder_batch_rows", "Rows a batch, without padding", ("model",), ROW_BUCKETS, registry
        )
        self.batch_padding_rows = Counter(
            "autoencoder_batch_padding_rows",
            "Rows added to batches to reach a fixed size",
            ["model"],
            registry=registry,
        )
        self.queue_rows = Gauge("autoencoder_queue_rows", "Rows that wait", ["model", "version"], registry=registry)
        self.requests_in_flight = Gauge(
            "autoencoder_requests_in_flight", "RPCs that have begun and not ended", registry=registry
        )
        self.stream_messages = BulkCounter(
            "autoencoder_stream_messages",
            "Messages of streams that were answered, by gRPC status",
            ("code",),
            registry,
        )
        self.rejected_requests = Counter(
            "autoencoder_rejected_requests",
            "RPCs that were answered with an error, by reason",
            ["reason"],
            registry=registry,
        )
        self.transport_info = Gauge(
            "autoencoder_transport_info",
            "1 for the transport in use: threaded is the slower fall-back",
            ["transport"],
            registry=registry,
        )
        self.model_info = Gauge(
            "autoencoder_model_info",
            "1 for each model that is loaded",
            ["model", "version", "variant", "provider"],
            registry=registry,
        )
        self.model_load_duration = Histogram(
            "autoencoder_model_load_duration_seconds",
            "Time to verify, load and warm a model",
            ["model"],
            buckets=LOAD_BUCKETS_S,
            registry=registry,
        )
        self.model_ready = Gauge(
            "autoencoder_model_ready",
            "1 where the model serves, 0 where its package was refused",
            ["model", "version"],
            registry=registry,
        )
        self.store_calls = Counter(
            "autoencoder_store_calls",
            "Calls to object storage, by outcome: ok, or failed where it was not reached or refused",
            ["outcome"],
            registry=registry,
        )
        self.store_read_bytes = Counter(
            "autoencoder_store_read_bytes", "Bytes read from object storage", registry=registry
        )
        self.certificate_expiry = Gauge(
            "autoencoder_certificate_expiry_timestamp_seconds",
            "When the certificates in use expire, the first of each kind, in seconds since 1970",
            ["certificate"],
            registry=registry,
        )
        self.reconstruction_error = BulkHistogram(
            "autoencoder_reconstruction_error",
            "Mean squared difference between a row and what the model made of it",
            ("model", "operation"),
            ERROR_BUCKETS,
            registry,
        )
        self.novel_rows = Counter(
            "autoencoder_novel_rows",
            f"Rows whose reconstruction error is above {NOVEL:.0%} of the validation rows'",
            ["model", "operation"],
            registry=registry,
        )
        self.shadow_dropped_rows = Counter(
            "autoencoder_shadow_dropped_rows",
            "Rows of Encode that were drawn to be reconstructed too (--shadow-share), and were not",
            ["model"],
            registry=registry,
        )


# Values that wait to be sorted or summed: the library's own metrics cost microseconds a value, where an answer costs
# tens of them.
_MOST_PENDING = 1024


class BulkCounter(Collector):
    """A counter that takes values cheaply and adds them up many at a time."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        with self._lock:
            return self._series.setdefault(values, Count())

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            series = list(self._series.items())
        for values, one in series:
            family.add_metric(values, one.total())
        yield family


class Count:
    """The sum of one set of labels. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._pending: list[int] = []

    def inc(self, amount: int = 1) -> None:
        pending = self._pending
        pending.append(amount)
        if len(pending) >= _MOST_PENDING:
            self.total()

    def total(self) -> int:
        with self._lock:
            # Others may go on appending: what is taken is what is there now, and stays until it is counted.
            count = len(self._pending)
            self._total += sum(self._pending[:count])
            del self._pending[:count]
            return self._total


class BulkHistogram(Collector):
    """A histogram that takes values cheaply and sorts them into its buckets many at a time."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = np.asarray(buckets, np.float64)
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        with self._lock:
            return self._series.setdefault(values, Series(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(str, self._bounds.tolist()), "+Inf"]
        with self._lock:
            series = list(self._series.items())
        for values, one in series:
            counts, total = one.totals()
            family.add_metric(values, list(zip(bounds, np.cumsum(counts).tolist(), strict=True)), total)
        yield family


class Series:
    """The values of one set of labels. For any thread."""

    def __init__(self, bounds: npt.NDArray[np.float64]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0
        self._pending: list[float] = []

    def observe(self, value: float) -> None:
        pending = self._pending
        pending.append(value)
        if len(pending) >= _MOST_PENDING:
            self.totals()

    def observe_many(self, values: npt.NDArray[np.float32]) -> None:
        with self._lock:
            self._add(values)

    def totals(self) -> tuple[npt.NDArray[np.int64], float]:
        """How many values lie in each bucket, and their sum."""
        with self._lock:
            # Others may go on appending: what is taken is what is there now, and stays until it is counted.
            count = len(self._pending)
            self._add(np.asarray(self._pending[:count]))
            del self._pending[:count]
            return self._counts.copy(), self._total

    def _add(self, values: npt.NDArray[np.floating[Any]]) -> None:
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        # Rows of huge numbers have infinite errors; one of them must not make the sum infinite for ever.
        self._total += float(values[np.isfinite(values)].sum(dtype=np.float64))
