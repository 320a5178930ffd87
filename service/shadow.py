"""Rows of Encode that are reconstructed too, when there is nothing else to do: drift is seen without labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter

from service.dispatcher import Job, Result
from service.errors import ServiceError
from service.tensors import Array, Rows

log = logging.getLogger(__name__)

SHADOW = "shadow"


class Sample:
    """Draws `share` of all rows, above 0 to 1, each by chance alone, at a cost for those that are drawn only."""

    def __init__(self, share: float, random: np.random.Generator) -> None:
        self._share = share
        self._random = random
        self._passed_over = self._next_gap()

    def _next_gap(self) -> int:
        return int(self._random.geometric(self._share)) - 1

    def draw(self, row_count: int) -> npt.NDArray[np.intp]:
        """The positions of those drawn from the next `row_count` rows."""
        drawn = []
        position = self._passed_over
        while position < row_count:
            drawn.append(position)
            position += 1 + self._next_gap()
        self._passed_over = position - row_count
        return np.array(drawn, np.intp)


class Shadow:
    """`submit` admits a job of at most `most_rows` rows to the dispatcher's background or returns False; `on_errors` is
    given the reconstruction errors [B] of rows, in any order. Rows that are drawn and not run are counted by `dropped`.
    """

    def __init__(
        self,
        sample: Sample,
        *,
        most_rows: int,
        submit: Callable[[Job], bool],
        on_errors: Callable[[Rows], None],
        dropped: Counter,
    ) -> None:
        self._sample = sample
        self._most_rows = most_rows
        self._submit = submit
        self._on_errors = on_errors
        self._dropped = dropped

    def of(self, rows: Array) -> None:
        """Rows [B, D...] were sent to be encoded. Raises nothing: they will be answered, whatever comes of this."""
        try:
            self._draw(rows)
        except Exception:
            log.exception("rows could not be watched")

    def _draw(self, rows: Array) -> None:
        drawn = self._sample.draw(len(rows))
        if not len(drawn):
            return
        kept = drawn[: self._most_rows]
        if len(kept) < len(drawn):
            self._dropped.inc(len(drawn) - len(kept))

        def done(outcome: Result | ServiceError) -> None:
            if isinstance(outcome, Result):
                self._on_errors(outcome.outputs[1])
            else:
                self._dropped.inc(len(kept))

        # A copy: a view would keep the bytes of the whole message.
        job = Job(
            operation=SHADOW,
            row_count=len(kept),
            caller=SHADOW,
            deadline=math.inf,
            rows=rows[kept],
            done=done,
        )
        if not self._submit(job):
            self._dropped.inc(len(kept))
