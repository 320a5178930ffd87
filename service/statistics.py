"""Counts and times of one operation of one version of a model, since it was loaded."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from service.dispatcher import Result


@dataclass(kw_only=True)
class Totals:
    """Requests, rows and batches, and seconds over all of them. `last_answer` is in seconds since 1970; 0 for never."""

    successes: int = 0
    success_s: float = 0.0
    failures: int = 0
    failure_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    rows: int = 0
    batches: int = 0
    last_answer: float = 0.0


class Statistics:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def totals(self) -> Totals:
        with self._lock:
            return replace(self._totals)

    def succeeded(self, result: Result, *, row_count: int, duration_s: float) -> None:
        """A request was answered, so long after it was admitted."""
        with self._lock:
            totals = self._totals
            totals.successes += 1
            totals.success_s += duration_s
            totals.queue_s += result.queue_s
            totals.compute_s += result.compute_s
            totals.rows += row_count
            totals.last_answer = time.time()

    def failed(self, *, duration_s: float) -> None:
        """A request that was admitted failed, was cancelled or came too late."""
        with self._lock:
            self._totals.failures += 1
            self._totals.failure_s += duration_s

    def ran(self) -> None:
        """A batch was run."""
        with self._lock:
            self._totals.batches += 1
