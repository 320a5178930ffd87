"""Counts and times of one operation of one version of a model, since it was loaded."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from service.metrics import Count

# Answers cost tens of microseconds; a lock and a sum for each of them would be felt.
_MOST_PENDING = 1024


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
    """For any thread. `rows` counts the rows of answers too, over all that were loaded under the version's name."""

    def __init__(self, rows: Count) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._totals = Totals()
        self._pending: list[tuple[int, float, float, float]] = []
        self._last_answer: float | None = None

    def succeeded(self, row_count: int, began: float, now: float, queue_s: float, compute_s: float) -> None:
        """A request was answered; it `began`, and it is `now`, on the monotonic clock."""
        self._rows.inc(row_count)
        self._last_answer = now
        self._pending.append((row_count, now - began, queue_s, compute_s))
        if len(self._pending) >= _MOST_PENDING:
            self.totals()

    def failed(self, began: float, now: float) -> None:
        """A request that was admitted failed, was cancelled or came too late."""
        with self._lock:
            self._totals.failures += 1
            self._totals.failure_s += now - began

    def ran(self) -> None:
        """A batch was run."""
        with self._lock:
            self._totals.batches += 1

    def totals(self) -> Totals:
        with self._lock:
            totals = self._totals
            # Others may go on appending: what is taken is what is there now.
            pending = self._pending[:]
            del self._pending[: len(pending)]
            for rows, success_s, queue_s, compute_s in pending:
                totals.successes += 1
                totals.rows += rows
                totals.success_s += success_s
                totals.queue_s += queue_s
                totals.compute_s += compute_s
            if self._last_answer is not None:
                totals.last_answer = time.time() - (time.monotonic() - self._last_answer)
            return replace(totals)
