"""Which rows are run together, and when: a state machine without threads, locks, clocks or I/O.

A driver calls it, one call at a time, and does what it says:

    admit(request, now)     a request joins the queue, or is refused at once
    next_batch(now)         the rows to run now; None when there is nothing to do
    take_expired()          requests that next_batch dropped because their deadline can no longer be met
    complete(batch, ...)    the batch was run: the requests that are now whole
    fail(batch)             the batch failed: the requests that had rows in it
    cancel(request)         the caller went away
    admit_background(...)   a request that may wait for ever: it is run when nothing else waits or runs
    next_background()       all such requests as one batch; None while there is anything else to do
    refuse_background()     the requests of that kind that are dropped now; no more of them

Every admitted request leaves through exactly one of complete, fail, take_expired or cancel; one of the background
through complete, fail or refuse_background.

There is no timer. While a batch runs, the next one gathers in the queue, and it stays open until the session is free or
it is full: a full batch may be prepared while another runs, a partial one would only lose rows by closing early.

Callers share each batch evenly: a caller with less than its share leaves the rest to the others (max-min fairness).
Rows can be taken one by one, so deficit round robin (Shreedhar and Varghese 1995) needs no deficit counters here.

Operations take turns, a batch each: however much of one waits, the first of another waits for a batch or two. By age
instead, it would wait for all that came before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from service.errors import Overloaded, TooLarge

# A batch that waits for the session beside the one that runs.
MAX_OUTSTANDING_BATCHES = 2

# The shortest run is what a deadline must leave room for. One older than this is forgotten, so that one slow run cannot
# refuse requests for ever.
_RECENT_S = 10.0

_RETRY_AFTER_S = 0.1

# A request that comes while rows of the background are run waits for them, as for any batch: they are few.
MAX_BACKGROUND_ROWS = 8


@dataclass(eq=False, kw_only=True, slots=True)
class Request:
    """Rows that wait to be run. The driver's subclass holds what they are and how to answer."""

    operation: str
    row_count: int
    caller: Hashable
    deadline: float  # on the clock of `now`; infinity where there is none
    admitted_at: float = 0.0
    # The batcher's own:
    placed_rows: int = 0  # rows that are in some batch already
    finished_rows: int = 0
    answered: bool = False


R = TypeVar("R", bound=Request)


class Slice(NamedTuple, Generic[R]):
    """The rows `start` to `stop` of one request."""

    request: R
    start: int
    stop: int


@dataclass(eq=False, kw_only=True)
class Batch(Generic[R]):
    """Rows of one operation to be run together. `number`: batches are to be run in this order, from 0. `background`:
    nobody waits for their answers."""

    number: int
    operation: str
    slices: list[Slice[R]]
    row_count: int
    background: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for any of these rows."""
        return any(not piece.request.answered for piece in self.slices)


@dataclass
class _Queue(Generic[R]):
    """The waiting requests of one operation, by caller; callers in the order of their turn."""

    callers: OrderedDict[Hashable, deque[R]] = field(default_factory=OrderedDict)
    row_count: int = 0


class Batcher(Generic[R]):
    """`max_batch_rows` bounds a batch, `max_queue_rows` all rows that wait; both at least 1."""

    def __init__(self, *, max_batch_rows: int, max_queue_rows: int) -> None:
        if not 1 <= max_batch_rows <= max_queue_rows:
            raise ValueError(f"need 1 <= max_batch_rows <= max_queue_rows, got {max_batch_rows} and {max_queue_rows}")
        self.max_batch_rows = max_batch_rows
        self.max_queue_rows = max_queue_rows
        self.max_background_rows = min(MAX_BACKGROUND_ROWS, max_batch_rows)
        self.queued_rows = 0
        self._batch_count = 0
        # By operation, in the order of their turn.
        self._queues: OrderedDict[str, _Queue[R]] = OrderedDict()
        self._outstanding: set[Batch[R]] = set()
        self._expired: list[R] = []
        # By operation: when the shortest run ended, and how long it took.
        self._shortest_run: dict[str, tuple[float, float]] = {}
        self._background: list[R] = []
        self._refusing_background = False

    @property
    def has_work(self) -> bool:
        """Whether `next_batch` has something to look at; a driver need not be woken where it has not."""
        return self._next_operation() is not None

    def admit(self, request: R, now: float) -> None:
        """Put a request into the queue. Raises TooLarge or Overloaded, and then nothing has changed."""
        if request.row_count > self.max_queue_rows:
            raise TooLarge(
                "TOO_MANY_ROWS",
                f"{request.row_count} rows in one request are more than --max-queue-rows={self.max_queue_rows}; "
                "send fewer in a message",
            )
        if self.queued_rows + request.row_count > self.max_queue_rows:
            raise Overloaded(
                "QUEUE_FULL",
                f"{self.queued_rows} rows wait, {request.row_count} more would pass "
                f"--max-queue-rows={self.max_queue_rows}; try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        request.admitted_at = now
        queue = self._queues.get(request.operation)
        if queue is None:
            queue = self._queues[request.operation] = _Queue()
        requests = queue.callers.get(request.caller)
        if requests is None:
            requests = queue.callers[request.caller] = deque()
        requests.append(request)
        queue.row_count += request.row_count
        self.queued_rows += request.row_count

    def next_batch(self, now: float) -> Batch[R] | None:
        """The rows to run next. The caller must hand the batch back to `complete` or `fail`."""
        while (operation := self._next_operation()) is not None:
            self._queues.move_to_end(operation)
            slices = self._take(operation, self._queues[operation], now)
            if slices:
                return self._batch(operation, slices)
        return None

    def admit_background(self, request: R, now: float) -> bool:
        """Let a request wait until there is nothing else to do. All such requests have one operation. False where it is
        not admitted: more than `max_background_rows` rows would wait so."""
        waiting_rows = sum(other.row_count for other in self._background)
        if self._refusing_background or waiting_rows + request.row_count > self.max_background_rows:
            return False
        request.admitted_at = now
        self._background.append(request)
        return True

    def next_background(self) -> Batch[R] | None:
        """The requests of the background, where nothing else waits and nothing runs. To be handed back as any batch."""
        if not self._background or self.queued_rows or self._outstanding:
            return None
        requests, self._background = self._background, []
        for request in requests:
            request.placed_rows = request.row_count
        slices = [Slice(request, 0, request.row_count) for request in requests]
        return self._batch(requests[0].operation, slices, background=True)

    def refuse_background(self) -> list[R]:
        """Admit no more requests of the background. Returns those that wait, which will not be run."""
        self._refusing_background = True
        dropped, self._background = self._background, []
        for request in dropped:
            request.answered = True
        return dropped

    def _batch(self, operation: str, slices: list[Slice[R]], *, background: bool = False) -> Batch[R]:
        row_count = sum(piece.stop - piece.start for piece in slices)
        batch = Batch(
            number=self._batch_count, operation=operation, slices=slices, row_count=row_count, background=background
        )
        self._batch_count += 1
        self._outstanding.add(batch)
        return batch

    def take_expired(self) -> list[R]:
        """The requests that were dropped since the last call because their deadline cannot be met."""
        expired, self._expired = self._expired, []
        return expired

    def complete(self, batch: Batch[R], *, now: float, run_s: float) -> list[R]:
        """A batch was run in `run_s` seconds. Returns the requests that have all their rows now."""
        self._outstanding.remove(batch)
        shortest = self._expected_run_s(batch.operation, now)
        if not shortest or run_s <= shortest:
            self._shortest_run[batch.operation] = now, run_s
        whole = []
        for request, start, stop in batch.slices:
            request.finished_rows += stop - start
            if request.finished_rows == request.row_count and not request.answered:
                request.answered = True
                whole.append(request)
        return whole

    def fail(self, batch: Batch[R]) -> list[R]:
        """A batch failed or was not run. Returns the requests that had rows in it; their other rows are dropped."""
        self._outstanding.remove(batch)
        failed = []
        for request, _, _ in batch.slices:
            if not request.answered:
                self._drop(request)
                failed.append(request)
        return failed

    def cancel(self, request: R) -> bool:
        """Drop a request. False where it has been answered already. Rows in a batch are run, but for nobody."""
        if request.answered:
            return False
        self._drop(request)
        return True

    def _next_operation(self) -> str | None:
        """The operation whose turn it is, if a batch can be run or prepared now. While one runs, there is to be a full
        one; the turn is kept even so, or whoever fills batches without a pause would have them all."""
        if len(self._outstanding) >= MAX_OUTSTANDING_BATCHES:
            return None
        turn = None
        for operation, queue in self._queues.items():
            if queue.row_count:
                turn = turn or operation
                if not self._outstanding or queue.row_count >= self.max_batch_rows:
                    return turn
        return None

    def _take(self, operation: str, queue: _Queue[R], now: float) -> list[Slice[R]]:
        must_end_after = now + self._expected_run_s(operation, now)
        slices: list[Slice[R]] = []
        room = self.max_batch_rows
        while room and queue.callers:
            share = max(1, room // len(queue.callers))
            for caller in list(queue.callers):
                requests = queue.callers[caller]
                quota = min(share, room)
                while quota and requests:
                    request = requests[0]
                    if request.deadline <= must_end_after:
                        self._drop(request)
                        self._expired.append(request)
                        continue
                    start = request.placed_rows
                    stop = min(request.row_count, start + quota)
                    slices.append(Slice(request, start, stop))
                    request.placed_rows = stop
                    if stop == request.row_count:
                        requests.popleft()
                    quota -= stop - start
                    room -= stop - start
                    queue.row_count -= stop - start
                    self.queued_rows -= stop - start
                if requests:
                    queue.callers.move_to_end(caller)
                else:
                    queue.callers.pop(caller, None)
                if not room:
                    break
        return slices

    def _expected_run_s(self, operation: str, now: float) -> float:
        shortest = self._shortest_run.get(operation)
        return shortest[1] if shortest and now - shortest[0] <= _RECENT_S else 0.0

    def _drop(self, request: R) -> None:
        """Mark as answered and take the rows that still wait out of the queue."""
        request.answered = True
        waiting_rows = request.row_count - request.placed_rows
        if not waiting_rows:
            return
        queue = self._queues[request.operation]
        requests = queue.callers[request.caller]
        requests.remove(request)
        if not requests:
            del queue.callers[request.caller]
        queue.row_count -= waiting_rows
        self.queued_rows -= waiting_rows
