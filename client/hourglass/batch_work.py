"""The work of a batch job: what is asked for each piece, and the engine that asks in this process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hourglass.batch_inputs import Source
from hourglass.batch_outputs import Column, Sink
from hourglass.batch_shards import Shard, Share
from hourglass.client import Client
from hourglass.errors import InvalidArgument, Overloaded, Unavailable
from hourglass.files import said
from hourglass.in_process import InProcess
from hourglass.results import ModelCard, Spec
from hourglass.tensors import Array

# One piece is computed by the service while another is read or written.
_PIECES_AT_A_SERVICE = 2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0

Result = TypeVar("Result")
Model = Client | InProcess


def digest_of(model: Model) -> str | None:
    """What tells a package from another of the same name; None for a service."""
    return model.digest if isinstance(model, InProcess) else None


class Operation:
    """What is asked of the model, what it is called there, and what comes of a row."""

    def __init__(
        self, asks: str, columns: Callable[[ModelCard, np.dtype[Any]], list[Column]], results: Callable[[Any], Any]
    ) -> None:
        self.asks = asks
        self.columns = columns
        self.results = results


_FLOAT32 = np.dtype(np.float32)
OPERATIONS = {
    "encode": Operation(
        "encode",
        lambda card, dtype: [Column(name="latent", shape=card.latent.shape, dtype=dtype)],
        lambda answer: [answer],
    ),
    "denoise": Operation(
        "denoise",
        lambda card, dtype: [
            Column(name="clean", shape=card.output.shape, dtype=dtype),
            Column(name="distance", shape=(), dtype=_FLOAT32),
        ],
        lambda answer: [answer.rows, answer.distances],
    ),
    "score": Operation(
        "reconstruct",
        lambda card, dtype: [
            Column(name="reconstruction_error", shape=(), dtype=_FLOAT32),
            Column(name="novelty", shape=(), dtype=_FLOAT32),
        ],
        lambda answer: [answer.errors, answer.novelties],
    ),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that it takes to compute a piece, in this process or another: it can be pickled."""

    # Connects to the service, or loads the package, where the work is done.
    open: Callable[[], Model]
    # The address of the service, or what tells the package from another.
    service: str | None
    digest: str | None
    operation: str
    model: str
    version: int
    dtype: str
    timeout_s: float | None
    patience_s: float
    # The input, as `open_source` takes it.
    path: Path
    spec: Spec
    column: str | None
    resize: bool
    fingerprint: dict[str, Any]
    piece_rows: int
    shard: Shard | None

    def share(self, source: Source) -> tuple[Source, int]:
        """What of the input is to be done, and which row of it comes first."""
        if self.shard is None:
            return source, 0
        share = Share(source, self.shard, self.piece_rows)
        return share, share.first_row

    def make(self, number: int, rows: Array, source: Source, model: Model, patience: Patience) -> list[Array]:
        """What is asked for a piece of `source`. Raises HourglassError, for a row with where the rows begin."""
        try:
            return patience.persist(lambda: self.ask(model, rows))
        except InvalidArgument as error:
            where = source.where(number * self.piece_rows)
            raise InvalidArgument(f"{error}; counted from {where}", reason=error.reason) from error

    def ask(self, model: Model, rows: Array) -> list[Array]:
        """An array for each column. Raises HourglassError."""
        if self.operation == "score" and isinstance(model, InProcess):
            return list(model.score(self.model, rows, version=self.version))
        operation = OPERATIONS[self.operation]
        # The rows themselves are not wanted of a score: they come as they are, for halving them costs the service more
        # than it saves.
        wire = np.dtype(np.float32 if operation.asks == "reconstruct" else self.dtype)
        answer = getattr(model, operation.asks)(
            self.model, rows, version=self.version, dtype=wire, timeout_s=self.timeout_s
        )
        return operation.results(answer)  # type: ignore[no-any-return]


class Patience:
    """How long a service may be away: `most_s` seconds since anything came from it. For any thread. Tells on stderr
    that it waits, and that it does so no more."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._telling = threading.Lock()
        self._waits = False

    def end(self) -> None:
        """Wait no more, in any thread."""
        self._over.set()

    def persist(self, call: Callable[[], Result]) -> Result:
        """What `call` returns; it is called again while the service is away or full. Raises what it raises at last."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                result = call()
            except (Unavailable, Overloaded) as error:
                if time.monotonic() - self._heard + pause_s > self._most_s:
                    raise
                self._tell(True, f"{said(error)}; trying again for up to {self._most_s:g} s (--patience)")
                if self._over.wait(max(pause_s, getattr(error, "retry_after_s", None) or 0.0)):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._heard = time.monotonic()
                self._tell(False, "the service answers again")
                return result

    def _tell(self, waits: bool, text: str) -> None:
        """Once for all threads, until it changes."""
        with self._telling:
            changed, self._waits = waits != self._waits, waits
            if changed:
                print(f"hourglass: {text}", file=sys.stderr, flush=True)


def work_here(
    work: Work, model: Model, source: Source, sink: Sink, wanted: list[bool], *, patience: Patience
) -> Generator[int]:
    """Make the pieces of `source` that are wanted, in threads of this process; the rows of each once it is kept."""
    at_a_time = model.threads if isinstance(model, InProcess) else _PIECES_AT_A_SERVICE

    def make(number: int, rows: Array) -> int:
        results = work.make(number, rows, source, model, patience)
        start = number * work.piece_rows
        sink.write(number, start, results, source.names(start, start + len(rows)))
        return len(rows)

    under_way: set[Future[int]] = set()
    with ThreadPoolExecutor(at_a_time, "piece") as pool, _ending(patience, model.close):
        for number, rows in source.pieces(work.piece_rows, wanted):
            under_way.add(pool.submit(make, number, rows))
            if len(under_way) > at_a_time:
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
        for each in under_way:
            yield each.result()


@contextmanager
def _ending(patience: Patience, abandon: Callable[[], None]) -> Iterator[None]:
    """Nobody waits for a service any more when the block is left; calls under way end with an interrupt."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        abandon()
        raise
    finally:
        patience.end()
