"""`hourglass batch`: files of any size through a model, piece by piece; a kill costs a piece or two."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from hourglass import batch_ray, batch_shards
from hourglass.batch_inputs import Source, open_source
from hourglass.batch_outputs import Sink, Workspace, open_sink, require_format
from hourglass.batch_work import OPERATIONS, Model, Patience, Work, digest_of, work_here
from hourglass.commands import choose, warn_of_bytes
from hourglass.files import CommandError
from hourglass.in_process import InProcess
from hourglass.results import ModelCard

JOIN = "join"
_PIECE_BYTES = 8 << 20
_MOST_PIECE_ROWS = 1 << 16
# Work that is shared out comes in so many pieces, where they are no smaller than this: a piece costs Ray milliseconds.
_SHARED_PIECES, _LEAST_SHARED_BYTES = 1000, 2 << 20
# And enough that no thread waits long for the last one, where they are no smaller than a batch.
_PIECES_A_THREAD, _FEWEST_ROWS = 8, 256
_LINE_S = 10.0
# Whether rows are pixels from 0 to 255 is seen by the first of them.
_LOOKED_AT_ROWS = 256


def run(model: Model, arguments: argparse.Namespace) -> None:
    """The command. Raises CommandError, OSError and HourglassError."""
    if arguments.operation == JOIN:
        if arguments.shard is not None:
            raise CommandError(f"--shard: join takes all parts, not a share of them; got {arguments.shard}")
        batch_shards.join(arguments)
        return
    output, shard = arguments.target, arguments.shard
    require_format(output)
    begun = Workspace.begun(output) if shard is None else batch_shards.begun(output)
    if begun is not None and arguments.model in (None, begun["model"]):
        arguments.model = f"{begun['model']}/{begun['version']}"
    operation, patience = OPERATIONS[arguments.operation], Patience(arguments.patience)
    card = patience.persist(lambda: choose(model, arguments, operation.asks))
    whole = open_source(arguments.source, card.input, column=arguments.column, resize=arguments.resize)
    if not arguments.source.is_dir():
        _, first_rows = next(whole.pieces(_LOOKED_AT_ROWS, [True]))
        warn_of_bytes(arguments.source, first_rows, card)
    work = _work(arguments, model, card, whole, begun or {})
    job = {
        "operation": work.operation,
        "model": work.model,
        # Rows of two versions must not meet in one file, whatever is loaded meanwhile.
        "version": work.version,
        "input": work.fingerprint,
        "rows": whole.row_count,
        "dtype": work.dtype,
        "piece_rows": work.piece_rows,
    }
    if work.digest is not None:
        job["package_sha256"] = work.digest
    if shard is not None:
        batch_shards.claim(output, job, shard)
        output = shard.output(output)
        job["shard"] = str(shard)
        if output.exists() and Workspace.begun(output) is None:
            # Whoever starts it again did not hear that it had ended well.
            print(f"{output}: is there already")
            return
    source, first_row = work.share(whole)
    about = {"model": card.name, "version": str(card.version), "operation": arguments.operation}
    workspace = Workspace(output, job)
    try:
        columns = operation.columns(card, np.dtype(work.dtype))
        sink = open_sink(workspace, columns, source, first_row=first_row, about=about)
        begin = time.monotonic()
        before, computed = _make(arguments, model, work, source, sink, patience)
        sink.finish()
    finally:
        workspace.close()
    seconds = time.monotonic() - begin
    resumed = f" and {before} before" if before else ""
    print(
        f"{output}: {source.row_count} rows by {card.name}/{card.version}; {computed} in {seconds:.1f} s "
        f"({computed / seconds:.0f} rows/s){resumed}"
    )


def _work(arguments: argparse.Namespace, model: Model, card: ModelCard, source: Source, begun: dict[str, Any]) -> Work:
    fitting = max(1, min(_MOST_PIECE_ROWS, _PIECE_BYTES // source.row_bytes))
    if arguments.engine == "ray" or arguments.shard is not None:
        fewest = max(1, _LEAST_SHARED_BYTES // source.row_bytes)
        fitting = min(fitting, max(fewest, -(-source.row_count // _SHARED_PIECES)))
    elif isinstance(model, InProcess):
        fitting = min(fitting, max(_FEWEST_ROWS, -(-source.row_count // (_PIECES_A_THREAD * model.threads))))
    return Work(
        open=arguments.open,
        service=arguments.address if arguments.package is None else None,
        digest=digest_of(model),
        operation=arguments.operation,
        model=card.name,
        version=card.version,
        dtype="float16" if arguments.float16 else "float32",
        timeout_s=arguments.timeout,
        patience_s=arguments.patience,
        path=arguments.source,
        spec=card.input,
        column=arguments.column,
        resize=arguments.resize,
        fingerprint=source.fingerprint,
        piece_rows=arguments.piece_rows or begun.get("piece_rows", fitting),
        shard=arguments.shard,
    )


def _make(
    arguments: argparse.Namespace, model: Model, work: Work, source: Source, sink: Sink, patience: Patience
) -> tuple[int, int]:
    """Make the pieces that are missing. Returns the rows that were there and those that were made."""
    total, piece_rows = source.row_count, work.piece_rows
    wanted = [number not in sink.done for number in range(-(-total // piece_rows))]
    before = sum(min(piece_rows, total - number * piece_rows) for number in sink.done)
    computed = 0
    if arguments.engine == "ray":
        made = batch_ray.work_on_ray(work, source, sink, wanted, address=arguments.ray_address)
    else:
        made = work_here(work, model, source, sink, wanted, patience=patience)
    with _progress(total, before) as show, closing(made):
        for rows in made:
            computed += rows
            show(before + computed)
    return before, computed


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
