"""The counter and the histogram that take many values."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from service.metrics import BulkCounter, BulkHistogram

BUCKETS = (0.5, 1.0, 2.0)


def test_it_counts_as_the_library_does() -> None:
    registry, theirs = CollectorRegistry(), CollectorRegistry()
    ours = BulkHistogram("ours", "Ours", ("name",), BUCKETS, registry)
    library = Histogram("ours", "Theirs", ["name"], buckets=BUCKETS, registry=theirs)
    values = np.random.default_rng(0).uniform(0, 3, 5000).astype(np.float32)
    values[:3] = BUCKETS  # a bucket holds its upper bound
    for value in values.tolist():
        ours.labels("a").observe(value)
        library.labels("a").observe(value)
    ours.labels("b").observe_many(values)
    for suffix, more in [("bucket", {"le": str(bound)}) for bound in (*BUCKETS, "+Inf")] + [("count", {})]:
        wanted = theirs.get_sample_value(f"ours_{suffix}", {"name": "a"} | more)
        assert registry.get_sample_value(f"ours_{suffix}", {"name": "a"} | more) == wanted
        assert registry.get_sample_value(f"ours_{suffix}", {"name": "b"} | more) == wanted
    total = theirs.get_sample_value("ours_sum", {"name": "a"})
    assert total is not None
    assert registry.get_sample_value("ours_sum", {"name": "a"}) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("kind", ["histogram", "counter"])
def test_no_value_is_lost_between_threads_and_scrapes(kind: str) -> None:
    registry = CollectorRegistry()
    if kind == "histogram":
        name, add = "ours_count", partial(BulkHistogram("ours", "Ours", (), BUCKETS, registry).labels().observe, 0.1)
    else:
        name, add = "ours_total", partial(BulkCounter("ours", "Ours", (), registry).labels().inc, 1)

    def work() -> None:
        for _ in range(20_000):
            add()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        registry.get_sample_value(name, {})
    for thread in threads:
        thread.join()
    assert registry.get_sample_value(name, {}) == 80_000


def test_a_counter_adds_up_by_its_labels() -> None:
    registry = CollectorRegistry()
    rows = BulkCounter("rows", "Rows", ("model", "operation"), registry)
    rows.labels("a", "encode").inc(3)
    for _ in range(3000):
        rows.labels("a", "encode").inc()
    rows.labels("b", "encode").inc(7)
    assert registry.get_sample_value("rows_total", {"model": "a", "operation": "encode"}) == 3003
    assert registry.get_sample_value("rows_total", {"model": "b", "operation": "encode"}) == 7


def test_an_infinite_value_is_counted_and_does_not_spoil_the_sum() -> None:
    registry = CollectorRegistry()
    series = BulkHistogram("ours", "Ours", (), BUCKETS, registry).labels()
    series.observe_many(np.array([0.25, np.inf], np.float32))
    assert registry.get_sample_value("ours_count", {}) == 2
    assert registry.get_sample_value("ours_sum", {}) == 0.25
