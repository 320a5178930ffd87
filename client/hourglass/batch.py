"""`hourglass batch`: files of any size through the service, piece by piece; a kill costs a piece or two."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hourglass.batch_inputs import Source, open_source
from hourglass.batch_outputs import Column, Sink, Workspace, open_sink, require_format
from hourglass.client import Client
from hourglass.commands import choose
from hourglass.errors import Overloaded, Unavailable
from hourglass.results import ModelCard
from hourglass.tensors import Array

# One piece is computed while another is read or written.
_AT_A_TIME = 2
_PIECE_BYTES = 8 << 20
_MOST_PIECE_ROWS = 1 << 16
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_LINE_S = 10.0

Result = TypeVar("Result")


class Operation:
    """What is asked of the service, what it is called there, and what comes of a row."""

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


def run(client: Client, arguments: argparse.Namespace) -> None:
    """The command. Raises CommandError, OSError and HourglassError."""
    operation: Operation = OPERATIONS[arguments.operation]
    output: Path = arguments.target
    require_format(output)
    patience = Patience(arguments.patience)
    begun = Workspace.begun(output)
    if begun is not None and arguments.model in (None, begun["model"]):
        arguments.model = f"{begun['model']}/{begun['version']}"
    card = patience.persist(lambda: choose(client, arguments, operation.asks))
    source = open_source(arguments.source, card.input, column=arguments.column, resize=arguments.resize)
    dtype = np.dtype(np.float16 if arguments.float16 else np.float32)
    piece_rows = arguments.piece_rows or max(1, min(_MOST_PIECE_ROWS, _PIECE_BYTES // source.row_bytes))
    job = {
        "operation": arguments.operation,
        "model": card.name,
        # Rows of two versions must not meet in one file, whatever is loaded meanwhile.
        "version": card.version,
        "input": source.fingerprint,
        "rows": source.row_count,
        "dtype": dtype.name,
        "piece_rows": piece_rows if begun is None or arguments.piece_rows else begun.get("piece_rows", piece_rows),
    }
    about = {"model": card.name, "version": str(card.version), "operation": arguments.operation}
    workspace = Workspace(output, job)
    try:
        sink = open_sink(workspace, operation.columns(card, dtype), row_count=source.row_count, about=about)
        # The rows themselves are not wanted of a score: the fewest bytes will do.
        wire = np.dtype(np.float16) if operation.asks == "reconstruct" else dtype

        def ask(rows: Array) -> list[Array]:
            answer = getattr(client, operation.asks)(
                card.name, rows, version=card.version, dtype=wire, timeout_s=arguments.timeout
            )
            return operation.results(answer)  # type: ignore[no-any-return]

        begin = time.monotonic()
        before, computed = _work(
            source, sink, ask, piece_rows=job["piece_rows"], patience=patience, abandon=client.close
        )
        sink.finish()
    finally:
        workspace.close()
    seconds = time.monotonic() - begin
    resumed = f" and {before} before" if before else ""
    print(
        f"{output}: {source.row_count} rows by {card.name}/{card.version}; {computed} in {seconds:.1f} s "
        f"({computed / seconds:.0f} rows/s){resumed}"
    )


class Patience:
    """How long a service may be away: `most_s` seconds since anything came from it. For any thread."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._heard = time.monotonic()
        self._over = threading.Event()

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
                if self._over.wait(max(pause_s, getattr(error, "retry_after_s", None) or 0.0)):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._heard = time.monotonic()
                return result


def _work(
    source: Source,
    sink: Sink,
    ask: Callable[[Array], list[Array]],
    *,
    piece_rows: int,
    patience: Patience,
    abandon: Callable[[], None],
) -> tuple[int, int]:
    """Make the pieces that are missing. Returns the rows that were there and those that were made."""
    total = source.row_count
    piece_count = -(-total // piece_rows)

    def rows_of(number: int) -> int:
        return min(piece_rows, total - number * piece_rows)

    def make(number: int, rows: Array) -> int:
        results = patience.persist(lambda: ask(rows))
        start = number * piece_rows
        sink.write(number, start, results, source.names(start, start + len(rows)))
        return len(rows)

    wanted = [number not in sink.done for number in range(piece_count)]
    before = sum(rows_of(number) for number in sink.done)
    computed = 0
    pieces = source.pieces(piece_rows, wanted)
    under_way: set[Future[int]] = set()
    with _progress(total, before) as show, ThreadPoolExecutor(_AT_A_TIME, "piece") as pool, _ending(patience, abandon):
        for number, rows in pieces:
            under_way.add(pool.submit(make, number, rows))
            if len(under_way) > _AT_A_TIME:
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for each in ended:
                    computed += each.result()
                    show(before + computed)
        for each in under_way:
            computed += each.result()
            show(before + computed)
    return before, computed


@contextmanager
def _ending(patience: Patience, abandon: Callable[[], None]) -> Iterator[None]:
    """Nobody waits for a service any more when the block is left; calls under way end with an interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        abandon()
        raise
    finally:
        patience.end()


@contextmanager
def _progress(total: int, before: int) -> Iterator[Callable[[int], None]]:
    """Rows done, rate and time left: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        try:
            import tqdm
        except ImportError:
            pass
        else:
            with tqdm.tqdm(total=total, initial=before, unit=" rows", unit_scale=True) as bar:

                def show(done: int) -> None:
                    bar.update(done - bar.n)

                yield show
            return
    began = said = time.monotonic()

    def line(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < _LINE_S and done < total:
            return
        said = now
        rate = (done - before) / max(now - began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        print(f"{done} of {total} rows, {rate:.0f} rows/s{left}", file=sys.stderr, flush=True)

    yield line
