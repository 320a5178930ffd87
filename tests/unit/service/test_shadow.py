"""Rows of Encode are reconstructed too: as many as were asked for, measured alike, and never before others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service import packages
from service.calls import Work
from service.dispatcher import Result
from service.metrics import Metrics
from service.model import ServedModel
from service.shadow import Sample
from service.tensors import Rows
from tests import tiny
from tests.unit.service.test_model import WAIT_S, FakeCall, FakeSession


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_the_share_of_rows_is_drawn_however_they_come(share: float) -> None:
    random = np.random.default_rng(7)
    sample, total, drawn = Sample(share, random), 0, 0
    counts = np.zeros(64, int)
    while total < 200_000:
        row_count = int(random.integers(1, 65))
        positions = sample.draw(row_count)
        assert len(set(positions)) == len(positions)
        assert all(0 <= position < row_count for position in positions)
        counts[positions] += 1
        total += row_count
        drawn += len(positions)
    spread = 5 * np.sqrt(total * share * (1 - share))
    assert abs(drawn - total * share) <= spread
    assert counts[0] > counts[-1] / 2, "the first rows of requests are drawn like the others"


class Session(FakeSession):
    def __init__(self) -> None:
        super().__init__()
        self.reconstructing = threading.Semaphore(0)

    def reconstruct(self, rows: Rows) -> Rows:
        if rows.any():  # no warm-up
            self.reconstructing.release()
        return super().reconstruct(rows)


class Harness:
    def __init__(self, folder: Path, work: Work | None = None) -> None:
        self.session, self.registry = Session(), CollectorRegistry()
        self.session.may_go.set()
        self.model = ServedModel(
            packages.read(tiny.write(folder)),
            self.session,
            max_batch_rows=8,
            max_queue_rows=32,
            metrics=Metrics(self.registry),
            work=work,
            shadow_share=1.0,
        )

    def encode(self, count: int, seed: int = 0) -> FakeCall:
        call = FakeCall()
        self.model.encode(tiny.rows(count, seed=seed), call, call.done)
        return call

    def wait_for_shadow(self) -> None:
        assert self.session.reconstructing.acquire(timeout=WAIT_S)
        self.model.retire()  # waits for what is run

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"autoencoder_{name}", {"model": "tiny", **labels}) or 0.0

    def measured(self, operation: str) -> list[float]:
        buckets = [
            sample.value
            for family in self.registry.collect()
            if family.name == "autoencoder_reconstruction_error"
            for sample in family.samples
            if sample.labels.get("operation") == operation
        ]
        return [*buckets, self.value("novel_rows_total", operation=operation)]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    subject = Harness(tmp_path)
    yield subject
    subject.session.may_go.set()
    subject.model.close()


def test_rows_of_encode_are_measured_as_reconstruct_measures_them(harness: Harness) -> None:
    call = FakeCall()
    harness.model.reconstruct(tiny.rows(5), call, call.done)
    assert isinstance(call.result(), Result)
    assert harness.session.reconstructing.acquire(timeout=WAIT_S)
    assert isinstance(harness.encode(5).result(), Result)
    harness.wait_for_shadow()
    assert harness.measured("encode") == harness.measured("reconstruct")
    assert harness.value("reconstruction_error_count", operation="encode") == 5
    assert harness.value("shadow_dropped_rows_total") == 0
    assert harness.value("batch_rows_count") == 2, "shadows are no batches of requests"


def test_a_shadow_waits_for_all_that_waits_and_no_more_than_a_few_wait(harness: Harness) -> None:
    session = harness.session
    session.may_go.clear()
    calls = [harness.encode(1, seed=1)]
    assert session.entered.acquire(timeout=WAIT_S)
    calls += [harness.encode(4, seed=seed) for seed in (2, 3)]
    # One, and four, wait; four more would be nine.
    assert harness.value("shadow_dropped_rows_total") == 4
    assert harness.value("reconstruction_error_count", operation="encode") == 0
    harness.model._dispatcher.refuse_background()
    assert harness.value("shadow_dropped_rows_total") == 9
    session.may_go.set()
    assert all(isinstance(call.result(), Result) for call in calls)


def test_of_a_large_request_no_more_than_fits_is_measured(harness: Harness) -> None:
    assert isinstance(harness.encode(32).result(), Result)
    harness.wait_for_shadow()
    assert harness.value("reconstruction_error_count", operation="encode") == 8
    assert harness.value("shadow_dropped_rows_total") == 24


class BusyWork:
    """A transport's thread that is the test's, and always has something else to do."""

    def schedule(self, step: Callable[[], bool]) -> None:
        while step():
            pass

    def schedule_idle(self, step: Callable[[], object]) -> None:
        self.idle_step = step


def test_a_model_that_retires_does_not_wait_for_a_moment_without_work(tmp_path: Path) -> None:
    work = BusyWork()
    harness = Harness(tmp_path, work)
    assert isinstance(harness.encode(3).result(), Result)
    retiring = threading.Thread(target=harness.model.retire, daemon=True)
    retiring.start()
    retiring.join(WAIT_S)
    assert not retiring.is_alive()
    assert harness.session.closed == 1
    assert harness.value("shadow_dropped_rows_total") == 3
    work.idle_step()
    assert harness.value("reconstruction_error_count", operation="encode") == 0


def test_a_shadow_that_fails_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Sample, row_count: int) -> None:
        raise MemoryError

    harness = Harness(tmp_path)
    monkeypatch.setattr(Sample, "draw", fail)
    assert isinstance(harness.encode(3).result(), Result)
    assert "rows could not be watched" in caplog.text
    harness.model.retire()
