"""One version of one model, ready to answer: its operations, as jobs for the dispatcher.

Shape legend: B rows, P pairs, S points of a path, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from autoencoder.v1 import model_pb2
from service.calls import Call, Work
from service.dispatcher import Dispatcher, Done, Job, Outputs, Result
from service.errors import Retired, ServiceError, TooLarge, Unavailable, Unsupported, internal_error
from service.metrics import NOVEL, Metrics
from service.observation import Observation
from service.packages import Package, novelty
from service.paths import Path
from service.session import Session, batch_sizes
from service.shadow import SHADOW, Sample, Shadow
from service.statistics import Statistics
from service.tensors import Array, Rows, Spec, as_float32

# While the transport's thread runs a batch it moves no bytes and answers no probe: for no longer than this.
_SHORT_S = 0.005
# Smaller batches would cost more in calls of the graph than is won by staying in one thread.
_LEAST_BATCH_ROWS = 32

ENCODE, DECODE, RECONSTRUCT, DENOISE = "encode", "decode", "reconstruct", "denoise"
INTERPOLATE = "interpolate"


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A program of one graph."""

    row_shape: tuple[int, ...]
    graph: Callable[[Rows], Rows]

    def run(self, rows: Rows, row_count: int) -> Outputs:
        return (self.graph(rows)[:row_count],)


@dataclass(frozen=True, kw_only=True)
class _RoundTrip:
    """A program of both graphs: what comes out, and the mean squared difference [B] between it and what went in.

    The difference is taken in units of `scale` [D...], where there is one.
    """

    row_shape: tuple[int, ...]
    reconstruct: Callable[[Rows], Rows]
    scale: Rows | None

    def run(self, rows: Rows, row_count: int) -> Outputs:
        reconstructions = self.reconstruct(rows)[:row_count]
        # Of rows near the end of float32 it may be infinite or undefined, as the answer says: no warning's business.
        with np.errstate(over="ignore", invalid="ignore"):
            difference = reconstructions - rows[:row_count]
            if self.scale is not None:
                difference /= self.scale
        difference = difference.reshape(row_count, -1)
        errors = np.einsum("be,be->b", difference, difference) / np.float32(difference.shape[1])
        return reconstructions, errors


class ServedModel:
    """Owns the session and the dispatcher of a package; `close` runs what waits and frees both.

    The session is warmed before this returns; raises what the session raises. `work`: the transport's thread, where
    batches are run, of as many rows as are done in five milliseconds; None where there is no such thread.
    `shadow_share`: of the rows of Encode, 0 to 1, those that are reconstructed too when there is nothing else to do.
    """

    def __init__(
        self,
        package: Package,
        session: Session,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: Metrics,
        work: Work | None = None,
        shadow_share: float = 0.0,
    ) -> None:
        self.manifest = package.manifest
        self.name = package.manifest.name
        self.version = package.manifest.version
        self.input = Spec.of(package.manifest.input)
        self.latent = Spec.of(package.manifest.latent)
        self._session = session
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._operations = {
            model_pb2.Operation.Name(number).removeprefix("OPERATION_").lower()
            for number in package.manifest.operations
        }
        self._quantiles = np.asarray(package.manifest.reconstruction_error_quantiles, dtype=np.float32)
        self._latent_shape, self._output_shape = package.latent_shape, package.output_shape
        self.statistics = {
            operation: Statistics(metrics.rows.labels(self.name, str(self.version), operation))
            for operation in (ENCODE, DECODE, RECONSTRUCT, DENOISE, INTERPOLATE)
        }
        round_trip = _RoundTrip(row_shape=package.input_shape, reconstruct=session.reconstruct, scale=package.row_scale)

        short_rows = 0 if work is None else _short_batch_rows(session, package, max_batch_rows)
        self.max_batch_rows = short_rows or max_batch_rows

        def warm_up() -> None:
            # No request is to pay for the first use of a size that batches are padded to, or for the memory of the
            # largest batch.
            for size in batch_sizes(self.max_batch_rows) if session.on_gpu else (1, self.max_batch_rows):
                rows = np.zeros((size, *package.input_shape), np.float32)
                session.encode(rows)
                session.reconstruct(rows)
                session.decode(np.zeros((size, *package.latent_shape), np.float32))

        def warm_thread() -> None:
            session.reconstruct(np.zeros((1, *package.input_shape), np.float32))

        if short_rows or not session.on_gpu:
            warm_up()
        self._dispatcher = Dispatcher(
            model=self.name,
            programs={
                ENCODE: _Graph(row_shape=package.input_shape, graph=session.encode),
                DECODE: _Graph(row_shape=package.latent_shape, graph=session.decode),
                RECONSTRUCT: round_trip,
                DENOISE: round_trip,
                **({SHADOW: round_trip} if shadow_share else {}),
            },
            padded_rows=session.padded_rows,
            max_batch_rows=self.max_batch_rows,
            max_queue_rows=max_queue_rows,
            metrics=metrics,
            on_batch=lambda operation: self.statistics[operation].ran(),
            work=work if short_rows else None,
            warm_up=None if not session.on_gpu else warm_thread if short_rows else warm_up,
        )
        self._shadow: Shadow | None = None
        if shadow_share and RECONSTRUCT in self._operations:
            self._shadow = Shadow(
                Sample(shadow_share, np.random.default_rng()),
                most_rows=self._dispatcher.max_background_rows,
                submit=self._dispatcher.submit_background,
                on_errors=lambda errors: self._watch(ENCODE, errors),
                dropped=metrics.shadow_dropped_rows.labels(self.name),
            )

    @property
    def queued_rows(self) -> int:
        return self._dispatcher.queued_rows

    def encode(self, rows: Array, call: Call, done: Done) -> None:
        """Rows [B, D...] to latents [B, L...]."""
        self.require(ENCODE)
        self._submit(ENCODE, rows, call, done, self.statistics[ENCODE])
        if self._shadow is not None:
            self._shadow.of(rows)

    def decode(self, latents: Array, call: Call, done: Done) -> None:
        """Latents [B, L...] to rows [B, D...]."""
        self.require(DECODE)
        self._submit(DECODE, latents, call, done, self.statistics[DECODE])

    def reconstruct(self, rows: Array, call: Call, done: Done) -> None:
        """Rows [B, D...] to reconstructions [B, D...] and reconstruction errors [B]."""
        self.require(RECONSTRUCT)
        self._submit(RECONSTRUCT, rows, call, self._watched(RECONSTRUCT, done), self.statistics[RECONSTRUCT])

    def denoise(self, rows: Array, call: Call, done: Done) -> None:
        """Rows [B, D...] to clean rows [B, D...] and mean squared differences [B]. Raises Unsupported."""
        self.require(DENOISE)
        self._submit(DENOISE, rows, call, self._watched(DENOISE, done), self.statistics[DENOISE])

    def interpolate_rows(self, start: Array, end: Array, path: Path, call: Call, done: Done) -> None:
        """Two times rows [P, D...] to rows [P, S, D...] and latents [P, S, L...], as `interpolate_latents`."""
        pairs = len(start)
        if start.dtype != end.dtype:
            start, end = as_float32(start), as_float32(end)
        ends = np.concatenate([start, end])

        def encoded(outcome: Result | ServiceError) -> None:
            if isinstance(outcome, ServiceError):
                done(outcome)
                return
            (latents,) = outcome.outputs
            try:
                self.interpolate_latents(latents[:pairs], latents[pairs:], path, call, done, before=outcome)
            except ServiceError as error:
                done(error)
            except Retired:  # closed at a stop, whose time was up
                done(Unavailable("DRAINING", "the service is stopping; send the request elsewhere"))
            except Exception:
                done(internal_error("the path between latents failed"))

        self._require_room(pairs, path)
        self._submit(ENCODE, ends, call, encoded, None)

    def interpolate_latents(
        self,
        start: Array,
        end: Array,
        path: Path,
        call: Call,
        done: Done,
        *,
        before: Result | None = None,
    ) -> None:
        """Two times latents [P, L...] to rows [P, S, D...] and latents [P, S, L...].

        `before` is what it cost to find the ends. Raises TooLarge before anything is computed.
        """
        self._require_room(len(start), path)
        points = path.between(as_float32(start), as_float32(end))
        pair_count, point_count = points.shape[:2]

        def decoded(outcome: Result | ServiceError) -> None:
            if isinstance(outcome, ServiceError):
                done(outcome)
                return
            rows = outcome.outputs[0].reshape(pair_count, point_count, *self._output_shape)
            done(
                Result(
                    outputs=(rows, points),
                    queue_s=outcome.queue_s + (before.queue_s if before else 0.0),
                    compute_s=outcome.compute_s + (before.compute_s if before else 0.0),
                    batch_rows=max(outcome.batch_rows, before.batch_rows if before else 0),
                )
            )

        latents = points.reshape(pair_count * point_count, *self._latent_shape)
        self._submit(DECODE, latents, call, decoded, self.statistics[INTERPOLATE])

    def novelty(self, errors: Rows) -> Rows:
        """Reconstruction errors [B] to novelties [B], 0 to 1."""
        return novelty(errors, self._quantiles)

    def retire(self) -> None:
        """Close when what is under way has ended, after which requests raise Retired. Not in the transport's thread."""
        if self._dispatcher.retire():
            self._session.close()

    def close(self) -> None:
        """The transport has stopped, or never knew this model. Closing twice does nothing."""
        if self._dispatcher.close():
            self._session.close()

    def require(self, operation: str) -> None:
        """Raises Unsupported where the model has no such operation."""
        if operation not in self._operations:
            raise Unsupported(
                "NO_SUCH_OPERATION",
                f"{self.name} version {self.version} has no {operation}; it has " + ", ".join(sorted(self._operations)),
            )

    def _require_room(self, pair_count: int, path: Path) -> None:
        self.require(INTERPOLATE)
        if pair_count * len(path.weights) > self._max_queue_rows:
            raise TooLarge(
                "TOO_MANY_ROWS",
                f"{pair_count} pairs with {len(path.weights)} points each are more rows than "
                f"--max-queue-rows={self._max_queue_rows}; send fewer pairs in a message",
            )

    def _submit(self, operation: str, rows: Array, call: Call, done: Done, statistics: Statistics | None) -> None:
        observation = call.observation
        job = Job(
            operation=operation,
            row_count=len(rows),
            caller=call.caller,
            deadline=call.deadline,
            rows=rows,
            done=done if observation is None else _noted(observation, done),
            statistics=statistics,
            trace=None if observation is None else observation.trace,
        )
        if observation is not None:
            observation.asks(self.name, self.version, len(rows))
        self._dispatcher.submit(job)
        call.on_cancel(partial(self._dispatcher.cancel, job))

    def _watched(self, operation: str, done: Done) -> Done:
        def watching(outcome: Result | ServiceError) -> None:
            if isinstance(outcome, Result):
                self._watch(operation, outcome.outputs[1])
            done(outcome)

        return watching

    def _watch(self, operation: str, errors: Rows) -> None:
        self._metrics.reconstruction_error.labels(self.name, operation).observe_many(errors)
        novel = int(np.count_nonzero(self.novelty(errors) > NOVEL))
        self._metrics.novel_rows.labels(self.name, operation).inc(novel)


def _noted(observation: Observation, done: Done) -> Done:
    def noting(outcome: Result | ServiceError) -> None:
        if isinstance(outcome, Result):
            observation.ran(queue_s=outcome.queue_s, compute_s=outcome.compute_s, batch_rows=outcome.batch_rows)
        done(outcome)

    return noting


def _short_batch_rows(session: Session, package: Package, max_batch_rows: int) -> int:
    """The rows of the largest batch, by doubling, that both graphs are done with in `_SHORT_S`; 0 for none."""
    short_rows, row_count = 0, min(_LEAST_BATCH_ROWS, max_batch_rows)
    while min(_run_s(session, package, row_count) for _ in range(5)) <= _SHORT_S:
        short_rows = row_count
        if row_count == max_batch_rows:
            break
        row_count = min(2 * row_count, max_batch_rows)
    return short_rows


def _run_s(session: Session, package: Package, row_count: int) -> float:
    """How long a run takes when the machine does nothing else: the time that passed, or that the process was given,
    where that is less."""
    rows = np.zeros((row_count, *package.input_shape), np.float32)
    began, began_cpu = time.monotonic(), time.process_time()
    session.reconstruct(rows)
    return min(time.monotonic() - began, time.process_time() - began_cpu)
