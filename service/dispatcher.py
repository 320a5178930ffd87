"""The driver of a batcher: copies rows into a batch, runs it and hands each request its part.

Where a batch is short work, the transport's own thread runs it when no event is ready: nothing is handed over between
threads. Else two threads a model take turns at the session: while one runs a batch, the other hands out results and
prepares the next full batch. The batcher and the requests are touched under one lock only.

Shape legend: B rows of a request, N rows of a batch, D... the dimensions of a row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from service.batcher import Batch, Batcher, Request
from service.calls import Work
from service.errors import Cancelled, DeadlineExceeded, Retired, ServiceError, internal_error
from service.metrics import Metrics, Series
from service.observation import Trace, TracedPart
from service.statistics import Statistics
from service.tensors import Array, Rows, copy_rows

log = logging.getLogger(__name__)

THREADS = 2
_AT_ONCE = nullcontext()

Outputs = tuple[Rows, ...]


class Program(Protocol):
    """What an operation does to a batch."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """D..."""

    def run(self, rows: Rows, row_count: int) -> Outputs:
        """Run `rows` [N, D...], of which the first `row_count` are real; outputs hold at least the real ones."""


class Result(NamedTuple):
    """The outputs of a request, each with its rows first, and where the time went."""

    outputs: Outputs
    queue_s: float
    compute_s: float
    batch_rows: int


Done = Callable[[Result | ServiceError], None]


@dataclass(eq=False, kw_only=True, slots=True)
class Job(Request):
    """A request with its rows, in any wire type, and the way to answer it: called once, from any thread. What becomes
    of it is added to `statistics`, where there are some."""

    rows: Array
    done: Done
    statistics: Statistics | None = None
    trace: Trace | None = None
    parts: list[tuple[int, Outputs]] = field(default_factory=list)
    begun_at: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 0


class _Phases(NamedTuple):
    """How long the phases of an operation's batches take."""

    queue: Series
    assemble: Series
    compute: Series
    respond: Series


class Dispatcher:
    """Runs jobs until it is closed. `padded_rows` is the session's; buffers are kept for each thread and operation.

    `on_batch` is told the operation of each batch that was run, in the thread that ran it.

    With `work` the batches are run there, and `submit` must be called there; else by threads of its own. Each thread
    that runs batches runs `warm_up` first: onnxruntime's CUDA provider keeps handles for each thread that runs a
    session, and no request should pay for making them. Raises what `warm_up` raises in a thread of its own.
    """

    def __init__(
        self,
        *,
        model: str,
        programs: Mapping[str, Program],
        padded_rows: Callable[[int], int],
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: Metrics,
        on_batch: Callable[[str], None] = lambda _: None,
        work: Work | None = None,
        warm_up: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = programs
        self._padded_rows = padded_rows
        self._batcher: Batcher[Job] = Batcher(max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._empty = threading.Condition(self._lock)
        # Jobs that were admitted and whose `done` has not returned.
        self._inside = 0
        # One thread needs no order.
        self._session = _Turns() if work is None else None
        self._closed = self._stopping = False
        phases = metrics.phase_duration
        self._phases = {
            operation: _Phases(*(phases.labels(model, operation, phase) for phase in _Phases._fields))
            for operation in programs
        }
        self._batch_rows = metrics.batch_rows.labels(model)
        self._padding_rows = metrics.batch_padding_rows.labels(model)
        self._on_batch = on_batch
        self._work = work
        self._scheduled = self._idle_scheduled = False
        self._buffers: dict[str, Rows] = {}
        self._warming = threading.Lock()
        self._threads: list[threading.Thread] = []
        if work is None:
            self._start_threads(model, warm_up or (lambda: None))
        elif warm_up is not None:
            work.schedule(partial(self._warm, warm_up))

    def _warm(self, warm_up: Callable[[], None]) -> bool:
        """In the thread of `work`; a session is not closed meanwhile."""
        with self._lock:
            if self._closed:
                return False
            self._inside += 1
        try:
            warm_up()
        except Exception:  # a request that meets the same is answered
            log.exception("the transport's thread could not be warmed")
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._empty.notify_all()
        return False

    def _start_threads(self, model: str, warm_up: Callable[[], None]) -> None:
        warm: list[Future[None]] = [Future() for _ in range(THREADS)]
        try:
            for number, future in enumerate(warm):
                thread = threading.Thread(
                    target=self._serve, args=(warm_up, future), name=f"{model}-{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
            for future in warm:
                future.result()
        except BaseException:
            self.close()
            raise

    @property
    def queued_rows(self) -> int:
        return self._batcher.queued_rows

    @property
    def max_background_rows(self) -> int:
        return self._batcher.max_background_rows

    def submit(self, job: Job) -> None:
        """Admit a job. Raises Overloaded, TooLarge, or Retired when closed; then `done` is not called."""
        with self._lock:
            if self._closed:
                raise Retired
            self._batcher.admit(job, self._clock())
            self._inside += 1
            if self._work is None and self._batcher.has_work:
                self._changed.notify()
        if self._work is not None and not self._scheduled:
            self._scheduled = True
            self._work.schedule(self._step)

    def submit_background(self, job: Job) -> bool:
        """As `submit`, for when there is nothing else to do. False where it was not admitted; `done` is not called."""
        with self._lock:
            if self._closed or not self._batcher.admit_background(job, self._clock()):
                return False
            self._inside += 1
            if self._work is None:
                self._changed.notify()
        if self._work is not None and not self._idle_scheduled:
            self._idle_scheduled = True
            self._work.schedule_idle(self._idle_step)
        return True

    def refuse_background(self) -> None:
        """Drop what waits for there to be nothing else to do, and admit no more of it."""
        with self._lock:
            dropped = self._batcher.refuse_background()
        self._answer((job, Cancelled("CANCELLED", "the model is being unloaded")) for job in dropped)

    def cancel(self, job: Job) -> None:
        """The caller went away. Nothing happens where the job was answered already."""
        if job.answered:
            return
        with self._changed:
            cancelled = self._batcher.cancel(job)
        if cancelled:
            self._answer([(job, Cancelled("CANCELLED", "the caller went away"))])

    def retire(self) -> bool:
        """Close when there is no job inside: none is refused before, and what an answer asks for is run too. Not in the
        thread of `work`. Returns as `close`."""
        self.refuse_background()
        with self._lock:
            self._empty.wait_for(lambda: self._inside == 0 or self._closed)
            closed, self._closed = self._closed, True
        if not closed:
            self._end()
        return not closed

    def close(self) -> bool:
        """Refuse new jobs, run those that wait (but for the background), and end the threads. Returns whether that had
        not been done yet."""
        with self._lock:
            closed, self._closed = self._closed, True
            self._empty.notify_all()
        if not closed:
            self._end()
        return not closed

    def _end(self) -> None:
        self.refuse_background()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._work is not None:
            while self._step():
                pass

    def _step(self) -> bool:
        """Run one batch, here and now. Returns whether there is more to run.

        What it raises, as where memory ends between two lines, leaves jobs without an answer."""
        with self._lock:
            batch, expired, now = self._take()
        if expired:
            self._expire(expired, now)
        if batch is not None:
            self._run(batch, self._buffers)
        with self._lock:
            self._scheduled = self._batcher.has_work
        return self._scheduled

    def _idle_step(self) -> None:
        self._idle_scheduled = False
        with self._lock:
            batch = self._take_background()
        if batch is not None:
            self._run(batch, self._buffers)

    def _serve(self, warm_up: Callable[[], None], warm: Future[None]) -> None:
        try:
            with self._warming:
                warm_up()
        except Exception as error:
            warm.set_exception(error)
        else:
            warm.set_result(None)
        buffers: dict[str, Rows] = {}
        while (batch := self._next_batch()) is not None:
            self._run(batch, buffers)

    def _next_batch(self) -> Batch[Job] | None:
        while True:
            with self._changed:
                while True:
                    batch, expired, now = self._take()
                    if batch is None and not expired:
                        batch = self._take_background()
                    if batch is not None or expired:
                        break
                    if self._stopping and self._batcher.queued_rows == 0:
                        return None
                    self._changed.wait()
            self._expire(expired, now)
            if batch is not None:
                return batch

    def _take(self) -> tuple[Batch[Job] | None, list[Job], float]:
        """The next batch, the jobs that cannot be run in time any more, and when that was."""
        now = self._clock()
        batch = self._batcher.next_batch(now)
        if batch is not None:
            for job, start, _ in batch.slices:
                if start == 0:
                    job.begun_at = now
        return batch, self._batcher.take_expired(), now

    def _take_background(self) -> Batch[Job] | None:
        now = self._clock()
        batch = self._batcher.next_background()
        if batch is not None:
            for job, _, _ in batch.slices:
                job.begun_at = now
        return batch

    def _expire(self, jobs: list[Job], now: float) -> None:
        self._answer(
            (
                job,
                DeadlineExceeded(
                    "DEADLINE", f"the deadline cannot be met after {now - job.admitted_at:.4f} s in the queue"
                ),
            )
            for job in jobs
        )

    def _run(self, batch: Batch[Job], buffers: dict[str, Rows]) -> None:
        operation = batch.operation
        phases = self._phases[operation]
        try:
            began = self._clock()
            rows = self._assemble(batch, buffers)
            phases.assemble.observe(self._clock() - began)
        except Exception:
            with self._turn(batch):
                pass  # the next batch waits for it
            self._fail(batch, internal_error(f"a batch of {operation} could not be put together"))
            return
        try:
            with self._turn(batch):
                began = self._clock()
                outputs = self._programs[operation].run(rows, batch.row_count) if batch.wanted else None
                now = self._clock()
            if outputs is not None and any(len(output) != batch.row_count for output in outputs):
                raise ValueError(f"{batch.row_count} rows went in, {[len(output) for output in outputs]} came out")
        except Exception:
            self._fail(batch, internal_error(f"a batch of {operation} failed"))
            return
        if outputs is None:
            self._fail(batch, Cancelled("CANCELLED", "nobody waits for this batch"))
            return
        phases.compute.observe(now - began)
        if not batch.background:
            self._batch_rows.observe(batch.row_count)
            self._on_batch(operation)
            if len(rows) > batch.row_count:
                self._padding_rows.inc(len(rows) - batch.row_count)
        self._respond(batch, outputs, phases, began=began, now=now)

    def _turn(self, batch: Batch[Job]) -> AbstractContextManager[None]:
        return _AT_ONCE if self._session is None else self._session.turn(batch.number)

    def _assemble(self, batch: Batch[Job], buffers: dict[str, Rows]) -> Rows:
        row_count = self._padded_rows(batch.row_count)
        buffer = buffers.get(batch.operation)
        if buffer is None:
            shape = (self._padded_rows(self._batcher.max_batch_rows), *self._programs[batch.operation].row_shape)
            buffer = buffers[batch.operation] = np.zeros(shape, np.float32)
        position = 0
        for job, start, stop in batch.slices:
            end = position + stop - start
            rows = job.rows if stop - start == job.row_count else job.rows[start:stop]
            copy_rows(rows, buffer[position:end])
            position = end
        return buffer[:row_count]

    def _respond(self, batch: Batch[Job], outputs: Outputs, phases: _Phases, *, began: float, now: float) -> None:
        run_s = now - began
        try:
            with self._lock:
                traced = _share_out(batch, outputs, run_s)
        except Exception:
            self._fail(batch, internal_error(f"a batch of {batch.operation} could not be shared out"))
            return
        with self._lock:
            whole = self._batcher.complete(batch, now=now, run_s=run_s)
            # One batch fewer is out: the other thread may take the next.
            self._changed.notify()
        if traced:
            self._trace(traced, batch, began, now)
        if not batch.background:
            for job in whole:
                phases.queue.observe(job.begun_at - job.admitted_at)
        self._answer((job, _result(job)) for job in whole)
        phases.respond.observe(self._clock() - now)

    def _trace(self, parts: list[TracedPart], batch: Batch[Job], began: float, ended: float) -> None:
        try:
            parts[0].trace.ran(parts, operation=batch.operation, row_count=batch.row_count, began=began, ended=ended)
        except Exception:  # the answers are worth more than their traces
            log.exception("a batch could not be traced", extra={"operation": batch.operation})

    def _fail(self, batch: Batch[Job], error: ServiceError) -> None:
        with self._changed:
            failed = self._batcher.fail(batch)
            self._changed.notify()
        self._answer((job, error) for job in failed)

    def _answer(self, answers: Iterable[tuple[Job, Result | ServiceError]]) -> None:
        count = 0
        for job, outcome in answers:
            count += 1
            statistics = job.statistics
            if statistics is not None:
                if isinstance(outcome, Result):
                    statistics.succeeded(
                        job.row_count, job.admitted_at, self._clock(), outcome.queue_s, outcome.compute_s
                    )
                else:
                    statistics.failed(job.admitted_at, self._clock())
            try:
                job.done(outcome)
            except Exception:  # a fault in one answer must not end the thread that serves the others
                log.exception("an answer failed", extra={"operation": job.operation})
        with self._lock:
            self._inside -= count
            if not self._inside:
                self._empty.notify_all()


def _share_out(batch: Batch[Job], outputs: Outputs, run_s: float) -> list[TracedPart]:
    """Give each job its rows of the outputs. Returns the parts that are traced."""
    position, row_count = 0, batch.row_count
    traced: list[TracedPart] = []
    for job, start, stop in batch.slices:
        end = position + stop - start
        job.parts.append((start, tuple([output[position:end] for output in outputs])))
        job.compute_s += run_s
        if job.batch_rows < row_count:
            job.batch_rows = row_count
        position = end
        if job.trace is not None:
            traced.append(TracedPart(job.trace, job.admitted_at if start == 0 else None, job.begun_at))
    return traced


class _Turns:
    """Who is next at the session: the batches in their order.

    A lock would do, were it fair: the thread that gives it back is often the one that takes it again, and the batch
    that was prepared in the meantime, with rows that were to be next, waits for as long as there are others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._now = 0

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """The turn of batch `number`; each number has one."""
        if self._now != number:  # it does not pass without its batch
            with self._changed:
                self._changed.wait_for(lambda: self._now == number)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()


def _result(job: Job) -> Result | ServiceError:
    try:
        outputs = _join(job.parts)
    except Exception:  # no memory for a whole of the parts; the thread must go on
        return internal_error("the parts of an answer could not be joined")
    return Result(outputs, job.begun_at - job.admitted_at, job.compute_s, job.batch_rows)


def _join(parts: list[tuple[int, Outputs]]) -> Outputs:
    if len(parts) == 1:
        return parts[0][1]
    # Two batches with rows of one request may end in either order.
    ordered = [outputs for _, outputs in sorted(parts, key=lambda part: part[0])]
    return tuple(np.concatenate(pieces) for pieces in zip(*ordered, strict=True))
