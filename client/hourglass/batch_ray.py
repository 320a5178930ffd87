"""The engine that has pieces computed by the workers of a Ray cluster, as a Ray Data pipeline; this process keeps them.

A row of the data set is a run of consecutive pieces: where it begins and ends. An actor reads the pieces of its run,
has them computed, and hands on the results piece by piece; only this process writes, so that resuming, order and
exactly one of each row are what they are without Ray. Ray starts the run of a worker that died again elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from hourglass.batch_inputs import Source, open_source
from hourglass.batch_outputs import Sink
from hourglass.batch_work import Patience, Work, digest_of
from hourglass.channel import is_local
from hourglass.errors import HourglassError
from hourglass.files import CommandError

# Enough that nobody waits long for the last, few enough that a Parquet file is not opened in the middle all the time.
_RUNS_A_WORKER = 8
# A piece that ends its worker each time, for want of memory, must not do so for ever.
_ATTEMPTS_A_RUN = 10


def work_on_ray(work: Work, source: Source, sink: Sink, wanted: list[bool], *, address: str | None) -> Generator[int]:
    """As `work_here`. `address`: a cluster; None starts a Ray on this machine, which ends with the job.

    Raises CommandError, and what computing a piece raised in a worker.
    """
    ray = _ray(own=address is None)
    if not any(wanted):
        return
    try:
        _start(ray, address, work)
        yield from _results(ray, work, source, sink, wanted)
    except ray.exceptions.RayTaskError as error:
        raise _original(error) from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise CommandError(f"Ray: {error}; the same command goes on") from error
    finally:
        ray.shutdown()


def _ray(*, own: bool) -> Any:
    """Ray, which does not report to its vendor, and, where it is our own, is reached from this machine only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What it says of its own accord comes between the lines that are meant for people.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if own:
        # So spelt since it is the default of these systems: no other node joins, and 127.0.0.1 is the node's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError(
            "ray is not installed; --engine ray needs: pip install 'hourglass-client[ray]', here and on every node"
        ) from error
    return ray


def _start(ray: Any, address: str | None, work: Work) -> None:
    ray.init(
        address=address or "local",
        include_dashboard=False if address is None else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    # An error reaches us as such; Ray Data would print its own traceback as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and work.service is not None and is_local(work.service):
        raise CommandError(f"--address: {work.service} is each node's own; the cluster has {nodes} of them")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A block for each piece: it is handed on when it is there, not with others.
    context.target_max_block_size, context.target_min_block_size = 1, 0


def _results(ray: Any, work: Work, source: Source, sink: Sink, wanted: list[bool]) -> Iterator[int]:
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    runs = _runs(wanted, most_pieces=max(1, sum(wanted) // (_RUNS_A_WORKER * cpus)))
    pieces = ray.data.from_items(runs, override_num_blocks=len(runs)).map_batches(
        _Pieces,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        # One at a time: a run that waits behind another might be begun elsewhere.
        compute=ray.data.ActorPoolStrategy(size=min(cpus, len(runs)), max_tasks_in_flight_per_actor=1),
        ray_remote_args_fn=lambda: {"max_task_retries": _ATTEMPTS_A_RUN - 1},
    )
    for piece in pieces.iter_batches(batch_size=None, batch_format="numpy"):
        (number,) = piece["piece"]
        start = int(number) * work.piece_rows
        results = [piece[f"result_{column}"][0] for column in range(len(piece) - 1)]
        sink.write(int(number), start, results, source.names(start, start + len(results[0])))
        yield len(results[0])


def _runs(wanted: list[bool], *, most_pieces: int) -> list[dict[str, int]]:
    """Consecutive pieces that are wanted, at most so many in one."""
    runs = []
    for want, group in groupby(range(len(wanted)), wanted.__getitem__):
        numbers = list(group)
        for start in range(0, len(numbers) if want else 0, most_pieces):
            run = numbers[start : start + most_pieces]
            runs.append({"first": run[0], "stop": run[-1] + 1})
    return runs


class _Pieces:
    """What a worker is: it has the input open, and the service or the package."""

    def __init__(self, work: Work) -> None:
        self._work = work
        try:
            self._model = work.open()
            whole = open_source(work.path, work.spec, column=work.column, resize=work.resize)
        except FileNotFoundError as error:
            raise CommandError(f"{error.filename}: is not there on {_node()}; every node must see the same") from error
        if whole.fingerprint != work.fingerprint:
            raise CommandError(f"{work.path}: is another file on {_node()}; every node must see the same")
        if digest_of(self._model) != work.digest:
            raise CommandError(f"--package: is another package on {_node()}; every node must see the same")
        self._source, _ = work.share(whole)
        self._patience = Patience(work.patience_s)

    def __call__(self, runs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for first, stop in zip(runs["first"], runs["stop"], strict=True):
            wanted = [first <= number for number in range(stop)]
            for number, rows in self._source.pieces(self._work.piece_rows, wanted):
                results = self._patience.persist(lambda rows=rows: self._work.ask(self._model, rows))  # type: ignore[misc]
                # A piece is one row of what is handed on: Ray cannot split it.
                columns = {f"result_{column}": result[None] for column, result in enumerate(results)}
                yield {"piece": np.array([number]), **columns}


def _node() -> str:
    return os.uname().nodename


def _original(error: Any) -> Exception:
    """What was raised in the worker, of what Ray has wrapped around it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HourglassError | CommandError | OSError) and type(cause).__module__ != "ray.exceptions":
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return CommandError(f"Ray: a worker failed: {error}")
