"""The batcher in every order of events, without threads or clocks."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.batcher import MAX_BACKGROUND_ROWS, MAX_OUTSTANDING_BATCHES, Batch, Batcher, Request
from service.errors import Overloaded, TooLarge


def request(row_count: int = 1, *, operation: str = "encode", caller: str = "a", deadline: float = math.inf) -> Request:
    return Request(operation=operation, row_count=row_count, caller=caller, deadline=deadline)


def batcher(max_batch_rows: int = 4, max_queue_rows: int = 16) -> Batcher[Request]:
    return Batcher(max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)


def taken(batch: Batch[Request] | None) -> dict[Request, int]:
    assert batch is not None
    counts: Counter[Request] = Counter()
    for piece in batch.slices:
        counts[piece.request] += piece.stop - piece.start
    return dict(counts)


def test_one_request_is_run_at_once() -> None:
    subject, one = batcher(), request(2)
    subject.admit(one, 0.0)
    batch = subject.next_batch(0.0)
    assert taken(batch) == {one: 2}
    assert batch is not None
    assert subject.complete(batch, now=1.0, run_s=1.0) == [one]
    assert subject.next_batch(1.0) is None
    assert subject.queued_rows == 0


def test_requests_are_merged_into_one_batch_in_order() -> None:
    subject = batcher()
    first, second = request(1), request(2)
    subject.admit(first, 0.0)
    subject.admit(second, 0.1)
    batch = subject.next_batch(0.2)
    assert batch is not None
    assert [(piece.request, piece.start, piece.stop) for piece in batch.slices] == [(first, 0, 1), (second, 0, 2)]


def test_a_large_request_is_split_and_answered_when_all_its_rows_are_done() -> None:
    subject, large = batcher(), request(9)
    subject.admit(large, 0.0)
    sizes = []
    for number in range(3):
        batch = subject.next_batch(float(number))
        assert batch is not None
        sizes.append(batch.row_count)
        assert subject.complete(batch, now=number + 0.5, run_s=0.5) == ([large] if number == 2 else [])
    assert sizes == [4, 4, 1]


def test_a_batch_has_rows_of_one_operation_and_the_first_comes_first() -> None:
    subject = batcher()
    decode, encode = request(1, operation="decode"), request(1)
    subject.admit(decode, 0.0)
    subject.admit(encode, 1.0)
    first = subject.next_batch(2.0)
    assert taken(first) == {decode: 1}
    assert first is not None
    subject.complete(first, now=2.0, run_s=0.0)
    assert taken(subject.next_batch(2.0)) == {encode: 1}


@pytest.mark.parametrize("out", [0, 1])
def test_an_operation_waits_for_no_more_than_a_batch_of_another_however_much_of_that_waits(out: int) -> None:
    """`out`: the batches that run while the next one is asked for."""
    subject = batcher(max_queue_rows=1000)
    for _ in range(20):
        subject.admit(request(4, caller="bulk"), 0.0)
    running = [subject.next_batch(0.0) for _ in range(out)]
    for now in range(1, 10):
        single = request(1, operation="decode")
        subject.admit(single, float(now))
        before_it = 0
        while True:
            batch = subject.next_batch(float(now))
            assert batch is not None
            running.append(batch)
            if batch.operation == "decode":
                break
            before_it += 1
            done = running.pop(0)
            assert done is not None
            subject.complete(done, now=float(now), run_s=0.0)
        assert taken(batch) == {single: 1}
        assert before_it <= 1
        done = running.pop(0)
        assert done is not None
        subject.complete(done, now=float(now), run_s=0.0)


def test_while_one_batch_runs_a_partial_one_gathers_and_a_full_one_is_prepared() -> None:
    subject = batcher()
    subject.admit(request(1), 0.0)
    running = subject.next_batch(0.0)
    assert running is not None
    subject.admit(request(3), 0.0)
    assert subject.next_batch(0.0) is None
    assert not subject.has_work
    subject.admit(request(1), 0.0)
    assert subject.has_work
    prepared = subject.next_batch(0.0)
    assert prepared is not None
    assert prepared.row_count == 4
    subject.admit(request(4), 0.0)
    assert subject.next_batch(0.0) is None, "one running and one prepared is all"
    subject.complete(running, now=0.0, run_s=0.0)
    assert subject.next_batch(0.0) is not None


def test_a_full_queue_refuses_at_once_and_changes_nothing() -> None:
    subject = batcher()
    subject.admit(request(16), 0.0)
    with pytest.raises(Overloaded, match=r"--max-queue-rows=16") as caught:
        subject.admit(request(1), 0.0)
    assert caught.value.retry_after_s > 0
    assert subject.queued_rows == 16


def test_a_request_that_never_fits_is_refused_for_good() -> None:
    with pytest.raises(TooLarge, match=r"17 rows .* --max-queue-rows=16"):
        batcher().admit(request(17), 0.0)


def test_expired_rows_never_reach_a_batch() -> None:
    subject = batcher()
    late, alive = request(2, deadline=1.0), request(1, deadline=9.0)
    subject.admit(late, 0.0)
    subject.admit(alive, 0.0)
    assert taken(subject.next_batch(1.0)) == {alive: 1}
    assert subject.take_expired() == [late]
    assert subject.take_expired() == []


def test_a_deadline_that_the_run_would_pass_is_not_run() -> None:
    subject = batcher()
    subject.admit(request(), 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    subject.complete(batch, now=2.0, run_s=2.0)
    hopeless = request(deadline=4.0)
    subject.admit(hopeless, 2.5)
    assert subject.next_batch(2.5) is None
    assert subject.take_expired() == [hopeless]


def test_one_slow_run_does_not_refuse_for_ever() -> None:
    subject = batcher()
    subject.admit(request(), 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    subject.complete(batch, now=60.0, run_s=60.0)
    soon = request(deadline=81.0)
    subject.admit(soon, 80.0)
    assert taken(subject.next_batch(80.0)) == {soon: 1}


def test_a_request_that_expires_half_way_is_dropped_once() -> None:
    subject, large = batcher(), request(8, deadline=5.0)
    subject.admit(large, 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    assert subject.next_batch(6.0) is None
    assert subject.take_expired() == [large]
    assert subject.complete(batch, now=6.0, run_s=0.1) == []
    assert subject.queued_rows == 0


def test_one_cancelled_request_leaves_its_neighbours_alone() -> None:
    subject = batcher()
    gone, stays = request(2), request(2)
    subject.admit(gone, 0.0)
    subject.admit(stays, 0.0)
    assert subject.cancel(gone)
    assert not subject.cancel(gone)
    batch = subject.next_batch(0.0)
    assert taken(batch) == {stays: 2}
    assert batch is not None
    assert subject.complete(batch, now=0.0, run_s=0.0) == [stays]


def test_a_request_cancelled_while_it_runs_is_not_answered_again() -> None:
    subject = batcher()
    gone, stays = request(6), request(1, caller="b")
    subject.admit(gone, 0.0)
    subject.admit(stays, 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    assert subject.cancel(gone)
    assert batch.wanted
    assert subject.complete(batch, now=0.0, run_s=0.0) == [stays]
    assert subject.queued_rows == 0


def test_a_batch_that_nobody_waits_for_is_not_wanted() -> None:
    subject, gone = batcher(), request(2)
    subject.admit(gone, 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    subject.cancel(gone)
    assert not batch.wanted
    assert subject.fail(batch) == []


def test_a_failed_batch_fails_only_its_own_requests() -> None:
    subject = batcher()
    large, later = request(6), request(4)
    subject.admit(large, 0.0)
    subject.admit(later, 0.0)
    batch = subject.next_batch(0.0)
    assert batch is not None
    assert subject.fail(batch) == [large]
    assert subject.queued_rows == 4, "the rest of the failed request is dropped"
    assert taken(subject.next_batch(0.0)) == {later: 4}


def test_callers_share_a_batch_evenly() -> None:
    subject = batcher(max_batch_rows=8, max_queue_rows=64)
    bulk, other_bulk = request(40, caller="bulk"), request(16, caller="other")
    single = request(1, caller="single")
    for one in (bulk, other_bulk, single):
        subject.admit(one, 0.0)
    counts = taken(subject.next_batch(0.0))
    assert counts[single] == 1, "one row never waits behind thousands of another caller"
    assert {counts[bulk], counts[other_bulk]} <= {3, 4}
    assert sum(counts.values()) == 8, "what one caller leaves, the others take"


def test_more_callers_than_rows_take_turns() -> None:
    subject = batcher(max_batch_rows=2, max_queue_rows=64)
    requests = [request(3, caller=str(number)) for number in range(5)]
    for one in requests:
        subject.admit(one, 0.0)
    served: Counter[Request] = Counter()
    for _ in range(5):
        batch = subject.next_batch(0.0)
        assert batch is not None
        served.update(taken(batch))
        subject.complete(batch, now=0.0, run_s=0.0)
    assert [served[one] for one in requests] == [2, 2, 2, 2, 2]


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_rows"):
        batcher(max_batch_rows=8, max_queue_rows=4)


def test_the_background_is_run_when_nothing_else_waits_or_runs() -> None:
    subject, waits, shadow = batcher(), request(1), request(2, operation="shadow")
    subject.admit(waits, 0.0)
    assert subject.admit_background(shadow, 0.0)
    assert subject.next_background() is None, "another request waits"
    batch = subject.next_batch(0.0)
    assert batch is not None
    assert not batch.background
    assert subject.next_background() is None, "another batch runs"
    subject.complete(batch, now=0.0, run_s=0.0)
    background = subject.next_background()
    assert taken(background) == {shadow: 2}
    assert background is not None
    assert background.background
    assert subject.complete(background, now=0.0, run_s=0.0) == [shadow]
    assert subject.next_background() is None


def test_a_full_background_takes_no_more_and_can_be_dropped() -> None:
    subject = batcher(max_batch_rows=64, max_queue_rows=64)
    waiting = [request(1) for _ in range(MAX_BACKGROUND_ROWS)]
    assert all(subject.admit_background(one, 0.0) for one in waiting)
    assert not subject.admit_background(request(1), 0.0)
    assert subject.refuse_background() == waiting
    assert subject.next_background() is None
    assert not subject.admit_background(request(1), 0.0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.integers(1, 9)),
            st.tuples(st.just("shadow"), st.integers(1, 4)),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("complete"), st.just(0)),
        ),
        max_size=40,
    )
)
@settings(deadline=None)
def test_what_waits_in_the_background_changes_no_batch_of_the_others(steps: list[tuple[str, int]]) -> None:
    """Two batchers get the same requests, one of them shadows too: whatever it does, its batches are the same, and the
    background is run only where the other batcher has nothing."""
    pairs = with_shadow, without = batcher(), batcher()
    twins: dict[Request, Request] = {}
    out: list[tuple[Batch[Request], Batch[Request]]] = []
    for step, rows in steps:
        if step == "admit":
            requests = request(rows), request(rows)
            twins[requests[0]] = requests[1]
            refused = []
            for subject, one in zip(pairs, requests, strict=True):
                try:
                    subject.admit(one, 0.0)
                except Overloaded:
                    refused.append(one)
            assert len(refused) in (0, 2)
        elif step == "shadow":
            with_shadow.admit_background(request(rows, operation="shadow"), 0.0)
        elif step == "take":
            batches = with_shadow.next_batch(0.0), without.next_batch(0.0)
            assert (batches[0] is None) == (batches[1] is None)
            if batches[0] is not None and batches[1] is not None:
                assert {twins[one]: count for one, count in taken(batches[0]).items()} == taken(batches[1])
                out.append((batches[0], batches[1]))
            elif (background := with_shadow.next_background()) is not None:
                assert not out
                assert without.queued_rows == 0
                with_shadow.complete(background, now=0.0, run_s=0.0)
        elif out:
            for subject, batch in zip(pairs, out.pop(0), strict=True):
                subject.complete(batch, now=0.0, run_s=0.0)
    assert with_shadow.queued_rows == without.queued_rows


class BatcherMachine(RuleBasedStateMachine):
    """Every request is answered exactly once, every row is run at most once, and nothing passes the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.admitted: list[Request] = []
        self.answers: Counter[Request] = Counter()
        self.placed: dict[Request, list[tuple[int, int]]] = {}
        self.out: list[Batch[Request]] = []

    @initialize(max_batch_rows=st.integers(1, 6), extra=st.integers(0, 20))
    def begin(self, max_batch_rows: int, extra: int) -> None:
        self.subject = batcher(max_batch_rows, max_batch_rows + extra)

    @rule(
        rows=st.integers(1, 9),
        operation=st.sampled_from(["encode", "decode"]),
        caller=st.sampled_from("abc"),
        patience=st.one_of(st.just(math.inf), st.floats(0, 5)),
    )
    def admit(self, rows: int, operation: str, caller: str, patience: float) -> None:
        one = request(rows, operation=operation, caller=caller, deadline=self.now + patience)
        before = self.subject.queued_rows
        try:
            self.subject.admit(one, self.now)
        except (Overloaded, TooLarge):
            assert before + rows > self.subject.max_queue_rows
            assert self.subject.queued_rows == before
        else:
            self.admitted.append(one)

    @rule()
    def take(self) -> None:
        had_work = self.subject.has_work
        batch = self.subject.next_batch(self.now)
        for one in self.subject.take_expired():
            assert one.deadline < math.inf
            self.answers[one] += 1
        if batch is None:
            return
        assert had_work
        assert 1 <= batch.row_count <= self.subject.max_batch_rows
        assert batch.row_count == sum(piece.stop - piece.start for piece in batch.slices)
        for piece in batch.slices:
            assert piece.request.operation == batch.operation
            assert not self.answers[piece.request], "answered rows must not be run"
            assert piece.request.deadline > self.now
            self.placed.setdefault(piece.request, []).append((piece.start, piece.stop))
        self.out.append(batch)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), run_s=st.floats(0, 2))
    def complete(self, data: st.DataObject, run_s: float) -> None:
        batch = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.answers.update(self.subject.complete(batch, now=self.now, run_s=run_s))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        batch = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.answers.update(self.subject.fail(batch))

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.admitted))
        was_answered = bool(self.answers[one])
        assert self.subject.cancel(one) == (not was_answered)
        if not was_answered:
            self.answers[one] += 1

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_answered_twice(self) -> None:
        assert max(self.answers.values(), default=0) <= 1

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "subject"):
            assert 0 <= self.subject.queued_rows <= self.subject.max_queue_rows
            assert len(self.out) <= MAX_OUTSTANDING_BATCHES

    def teardown(self) -> None:
        if not hasattr(self, "subject"):
            return
        while True:
            while self.out:
                self.answers.update(self.subject.complete(self.out.pop(), now=self.now, run_s=0.0))
            batch = self.subject.next_batch(self.now)
            self.answers.update(self.subject.take_expired())
            if batch is None:
                break
            for piece in batch.slices:
                self.placed.setdefault(piece.request, []).append((piece.start, piece.stop))
            self.out.append(batch)
        assert self.subject.queued_rows == 0
        assert all(self.answers[one] == 1 for one in self.admitted), "every request is answered exactly once"
        for one, pieces in self.placed.items():
            rows = [row for start, stop in sorted(pieces) for row in range(start, stop)]
            assert rows == list(range(len(rows))), "each row is run once, from the first on"
            assert len(rows) <= one.row_count


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
