"""The engine that has pieces computed by the workers of a Ray cluster, as a Ray Data pipeline; this process keeps them.

A row of the data set is a run of consecutive pieces: where it begins and ends. An actor reads the pieces of its run,
has them computed, and hands on the results piece by piece; only this process writes, so that resuming, order and
exactly one of each row are what they are without Ray. Ray starts the run of a worker that died again elsewhere.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from hourglass.batch_inputs import Source, open_source
from hourglass.batch_outputs import Sink
from hourglass.batch_work import Model, Patience, Work, digest_of
from hourglass.channel import is_local
from hourglass.errors import HourglassError
from hourglass.files import CommandError, said

# Enough that nobody waits long for the last, few enough that a Parquet file is not opened in the middle all the time.
_RUNS_A_WORKER = 16
_CONNECT_S = 10.0
_STARTS = 3


def work_on_ray(work: Work, source: Source, sink: Sink, wanted: list[bool], *, address: str | None) -> Generator[int]:
    """As `work_here`. `address`: a cluster; None starts a Ray on this machine, which ends with the job.

    Raises CommandError, also for an error in a worker.
    """
    ray = _ray(own=address is None)
    if not any(wanted):
        return
    try:
        _start(ray, address, work)
        yield from _results(ray, work, source, sink, wanted)
    except ray.exceptions.RayError as error:
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
    if address is not None:
        _require_reachable(address)
    for attempt in range(_STARTS):
        try:
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except Exception as error:  # a node that is not up in 30 s, on a machine with much to do, is a plain Exception
            ray.shutdown()
            if address is not None or attempt == _STARTS - 1:
                raise CommandError(f"Ray does not start: {error}") from error
    # An error reaches us as such; Ray Data would print its own traceback as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and work.service is not None and is_local(work.service):
        raise CommandError(f"--address: {work.service} is each node's own; the cluster has {nodes} of them")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A block for each piece: it is handed on when it is there, not with others.
    context.target_max_block_size, context.target_min_block_size = 1, 0


def _require_reachable(address: str) -> None:
    """Ray itself would try for a quarter of an hour. Raises CommandError."""
    if "://" in address:
        raise CommandError(
            f"--ray-address: must be HOST:PORT or auto; got {address}. Ray Data wants its driver on a machine of the "
            "cluster: start the command there, or with `ray job submit`"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except OSError as error:
            raise CommandError(f"--ray-address: nothing answers at {address}; {error}") from error
    elif address != "auto":
        raise CommandError(f"--ray-address: must be HOST:PORT or auto; got {address}")


def _results(ray: Any, work: Work, source: Source, sink: Sink, wanted: list[bool]) -> Iterator[int]:
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    runs = _runs(wanted, most_pieces=max(1, sum(wanted) // (_RUNS_A_WORKER * cpus)))
    pieces = ray.data.from_items(runs, override_num_blocks=len(runs)).map_batches(
        _Pieces,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        # One is computed while another waits, or an actor would be idle between its runs: half the time where they are
        # short. No more, as a run that waits behind another might be begun elsewhere.
        compute=ray.data.ActorPoolStrategy(size=min(cpus, len(runs)), max_tasks_in_flight_per_actor=2),
    )
    for piece in pieces.iter_batches(batch_size=None, batch_format="numpy"):
        if "error" in piece:
            raise CommandError(str(piece["error"][0]))
        number = int(piece["piece"][0])
        start = number * work.piece_rows
        results = [piece[f"result_{column}"][0] for column in range(len(piece) - 1)]
        sink.write(number, start, results, source.names(start, start + len(results[0])))
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
        self._patience = Patience(work.patience_s)
        self._opened: tuple[Model, Source] | None = None

    def __call__(self, runs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            if self._opened is None:
                self._opened = self._open()
            for first, stop in zip(runs["first"], runs["stop"], strict=True):
                yield from self._made(*self._opened, [first <= number for number in range(stop)])
        except (HourglassError, CommandError, OSError, ValueError) as error:
            # Raised, it would be Ray's: with other words, a traceback, and for some a worker that is started anew.
            yield {"error": np.array([said(error)])}

    def _open(self) -> tuple[Model, Source]:
        work = self._work
        try:
            model = work.open()
            whole = open_source(work.path, work.spec, column=work.column, resize=work.resize)
        except FileNotFoundError as error:
            raise CommandError(f"{error.filename}: is not there on {_node()}; every node must see the same") from error
        if whole.fingerprint != work.fingerprint:
            raise CommandError(f"{work.path}: is another file on {_node()}; every node must see the same")
        if digest_of(model) != work.digest:
            raise CommandError(f"--package: is another package on {_node()}; every node must see the same")
        source, _ = work.share(whole)
        return model, source

    def _made(self, model: Model, source: Source, wanted: list[bool]) -> Iterator[dict[str, Any]]:
        for number, rows in source.pieces(self._work.piece_rows, wanted):
            results = self._work.make(number, rows, source, model, self._patience)
            # A piece is one row of what is handed on: Ray cannot split it.
            columns = {f"result_{column}": result[None] for column, result in enumerate(results)}
            yield {"piece": np.array([number]), **columns}


def _node() -> str:
    return os.uname().nodename
