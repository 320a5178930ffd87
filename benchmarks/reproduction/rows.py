"""The rows of the table: what the literature reached, what is wanted, and how it is measured again.

A row has one trial by the paper's protocol, or one by ours, or both. `groups` lists the rows in the order of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.reproduction.bench import Bench, Outcome

Protocol = Literal["paper", "ours"]
PROTOCOLS: tuple[Protocol, ...] = ("paper", "ours")
Trial = Callable[[Bench], Outcome]

_NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A published figure. `test_rows` of an error rate gives its 95 % interval, half its width in `interval`."""

    value: float | None
    test_rows: int | None = None
    # Stands beside the figure, or in its place.
    note: str = ""

    @property
    def interval(self) -> float | None:
        """Half the 95 % interval of an error rate in percent over `test_rows` rows, normal approximation."""
        if self.value is None or self.test_rows is None:
            return None
        share = self.value / 100
        return 100 * _NORMAL_95 * math.sqrt(share * (1 - share) / self.test_rows)

    @property
    def least(self) -> float:
        """The lower end of the interval, below which an error rate is better by more than chance."""
        assert self.value is not None, "a published figure; this is a bug"
        assert self.interval is not None, "an error rate over test rows; this is a bug"
        return self.value - self.interval


@dataclass(frozen=True, kw_only=True)
class Row:
    """`metric` is the name of the figure in a trial's outcome that stands beside the paper's."""

    name: str
    title: str
    metric: str
    form: str
    better: Literal["lower", "higher"]
    paper: Paper
    trials: dict[Protocol, Trial]
    # The bound that is wanted, by protocol; what stands in `paper` where there is none.
    wanted: dict[Protocol, float]
    # Other figures of the outcome, shown in the group's second table.
    more: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one source that share a description; `wanted_order` names rows from worst to best."""

    title: str
    text: str
    unit: str
    rows: tuple[Row, ...]
    wanted_order: tuple[str, ...] = ()


def groups() -> tuple[Group, ...]:
    # Each module of a source is imported here, not above: they import this one.
    from benchmarks.reproduction import codes, contractive, deep, denoising, keras_series, sparse, stacked

    return (
        contractive.group(),
        deep.group(),
        stacked.group(),
        sparse.group(),
        keras_series.group(),
        codes.code_group(),
        codes.novelty_group(),
        denoising.group(),
    )


def find(name: str) -> Row:
    """Raises KeyError that lists the rows."""
    rows = {row.name: row for group in groups() for row in group.rows}
    if name not in rows:
        raise KeyError(f"no row {name!r}: must be one of {', '.join(rows)}")
    return rows[name]
