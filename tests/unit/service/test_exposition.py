"""The metrics of several processes, added up from their texts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.exposition import Total
from service.metrics import Metrics


def process(ok: int, *, ready: int = 1, queued: int = 0, duration_s: float = 0.02) -> str:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.rpc_requests.labels("Encode", "OK").inc(ok)
    metrics.rpc_duration.labels("Encode").observe(duration_s)
    metrics.queue_rows.labels("tiny", "1").set(queued)
    metrics.model_ready.labels("tiny", "1").set(ready)
    metrics.model_info.labels("tiny", "1", "conv", "CPU").set(1)
    return generate_latest(registry).decode()


class Shown(Collector):
    def __init__(self, total: Total, *texts: str) -> None:
        self._metrics = total.of(texts)

    def collect(self) -> list[Metric]:
        return self._metrics


def shown(total: Total, *texts: str) -> CollectorRegistry:
    """What a scrape of these processes reads."""
    registry = CollectorRegistry()
    registry.register(Shown(total, *texts))
    generate_latest(registry)
    return registry


def test_counters_histograms_and_gauges_are_added_and_facts_are_not() -> None:
    registry = shown(Total(), process(3, queued=4), process(5, queued=1, ready=0, duration_s=7.0))
    value = registry.get_sample_value
    labels = {"method": "Encode"}
    assert value("autoencoder_rpc_requests_total", labels | {"code": "OK"}) == 8
    assert value("autoencoder_rpc_duration_seconds_count", labels) == 2
    assert value("autoencoder_rpc_duration_seconds_sum", labels) == 7.02
    assert value("autoencoder_rpc_duration_seconds_bucket", labels | {"le": "0.025"}) == 1
    assert value("autoencoder_rpc_duration_seconds_bucket", labels | {"le": "+Inf"}) == 2
    assert value("autoencoder_queue_rows", {"model": "tiny", "version": "1"}) == 5
    facts = {"model": "tiny", "version": "1", "variant": "conv", "provider": "CPU"}
    assert value("autoencoder_model_info", facts) == 1
    assert value("autoencoder_model_ready", {"model": "tiny", "version": "1"}) == 0, "ready where all are"


def test_what_a_dead_process_counted_stays_and_what_it_held_does_not() -> None:
    total = Total()
    total.keep(process(10, queued=7))
    registry = shown(total, process(1, queued=2))
    assert registry.get_sample_value("autoencoder_rpc_requests_total", {"method": "Encode", "code": "OK"}) == 11
    assert registry.get_sample_value("autoencoder_queue_rows", {"model": "tiny", "version": "1"}) == 2
    again = shown(total, process(1))
    assert again.get_sample_value("autoencoder_rpc_requests_total", {"method": "Encode", "code": "OK"}) == 11
