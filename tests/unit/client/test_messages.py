"""Any number of rows: split into messages, several in flight, joined in order; deadlines, cancellation, closing."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

import hourglass
from hourglass import jobs
from hourglass.jobs import Limits
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, card, encode, fail, serving

WAIT_S = 30.0


def unique_rows(count: int) -> Any:
    """Rows [count, 2, 3] of which no two elements are the same."""
    return np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    count=strategies.integers(1, 60),
    message_rows=strategies.integers(1, 70),
    message_bytes=strategies.integers(1, 1000),
    in_flight=strategies.integers(1, 6),
)
def test_any_split_gives_what_one_message_gives(
    shared_address: str, count: int, message_rows: int, message_bytes: int, in_flight: int
) -> None:
    rows = unique_rows(count)
    with hourglass.Client(
        shared_address,
        max_message_rows=message_rows,
        max_message_bytes=message_bytes,
        max_in_flight=in_flight,
    ) as client:
        done: list[tuple[int, int]] = []
        np.testing.assert_array_equal(client.reconstruct("tiny", rows).rows, rows)
        answer = client.reconstruct("tiny", rows, progress=lambda *p: done.append(p))
        np.testing.assert_array_equal(answer.errors, rows[:, 0, 0])
        assert done == sorted(done)
        assert done[-1] == (count, count)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(
    count=strategies.integers(1, 60), message_rows=strategies.integers(1, 70), in_flight=strategies.integers(1, 6)
)
def test_any_split_gives_what_one_message_gives_in_asyncio(
    shared_address: str, count: int, message_rows: int, in_flight: int
) -> None:
    rows = unique_rows(count)

    async def run() -> Any:
        async with hourglass.AsyncClient(
            shared_address, max_message_rows=message_rows, max_in_flight=in_flight
        ) as client:
            return await client.encode("tiny", rows)

    np.testing.assert_array_equal(asyncio.run(run()), encode(rows))


@hypothesis.given(data=strategies.data(), count=strategies.integers(1, 40), message_rows=strategies.integers(1, 40))
def test_answers_may_come_in_any_order(data: strategies.DataObject, count: int, message_rows: int) -> None:
    rows = unique_rows(count)
    call = jobs.Call(
        limits=Limits(max_message_rows=message_rows), model="tiny", version=None, dtype=None, on_execution=None
    )
    job = jobs.encode(call, rows)
    fake = FakeService()
    for part in data.draw(strategies.permutations(list(job.parts()))):
        job.accept(part, fake.Encode(part.request, _NoContext()))
    np.testing.assert_array_equal(job.finish(), encode(rows))


def wait_until_gone(context: Any) -> None:
    """Until the caller has cancelled; it may have done so already, and then the callback would never come."""
    gone = threading.Event()
    assert not context.add_callback(gone.set) or gone.wait(WAIT_S)


class _NoContext:
    def invocation_metadata(self) -> tuple[()]:
        return ()


def test_messages_hold_no_more_rows_and_bytes_than_allowed(
    connect: Connect, address: str, service: FakeService
) -> None:
    connect(address, max_message_bytes=100).encode("tiny", unique_rows(9))
    connect(address, max_message_bytes=1).encode("tiny", unique_rows(3))
    assert sorted(request.rows.shape[0] for request in service.requests) == [1, 1, 1, 1, 4, 4]


def test_default_messages_stay_under_the_limit_of_other_grpc_servers(connect: Connect) -> None:
    service = FakeService(card(row_shape=(1000,)))
    with serving(service) as address:  # whose limit is grpc's default of 4 MiB
        rows = np.zeros((3000, 1000), np.float32)
        np.testing.assert_array_equal(connect(address).reconstruct("tiny", rows).rows, rows)
    assert max(request.ByteSize() for request in service.requests) < 1.1 * 2**20


def test_an_answer_may_be_larger_than_the_default_limit_of_grpc(connect: Connect) -> None:
    with serving(FakeService(card(row_shape=(50, 50)))) as address:
        ends = np.zeros((1, 50, 50), np.float32), np.ones((1, 50, 50), np.float32)
        rows = connect(address).interpolate("tiny", *ends, steps=500).rows
    assert rows.nbytes > 4 * 2**20
    np.testing.assert_array_equal(rows[0, -1], ends[1][0])


@pytest.mark.parametrize("limit", ["max_message_rows", "max_message_bytes", "max_in_flight"])
def test_limits_are_at_least_one(connect: Connect, limit: str) -> None:
    with pytest.raises(ValueError, match=f"{limit}: must be at least 1; got 0"):
        connect("127.0.0.1:1", **{limit: 0}).models()


def test_messages_overlap_up_to_the_limit_and_no_further(connect: Connect) -> None:
    meeting = threading.Barrier(3)
    under_way = 0
    most = 0
    lock = threading.Lock()

    def hook(method: str, request: Any, context: Any) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        meeting.wait(WAIT_S)  # BrokenBarrierError where fewer than three come together
        with lock:
            under_way -= 1
        meeting.wait(WAIT_S)

    rows = unique_rows(12)
    with serving(FakeService(hook=hook)) as address:
        client = connect(address, max_message_rows=1, max_in_flight=3)
        np.testing.assert_array_equal(client.encode("tiny", rows), encode(rows))
    assert most == 3


def test_rows_are_read_when_they_are_sent(connect: Connect, tmp_path: Path) -> None:
    """The server changes the file before it answers the first message: what is sent later must show it."""
    np.save(tmp_path / "rows.npy", unique_rows(4))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r+")

    def hook(method: str, request: Any, context: Any) -> None:
        if request.rows.data[:4] == b"\0\0\0\0":
            rows[2:] = 7

    with serving(FakeService(hook=hook)) as address:
        latents = connect(address, max_message_rows=1, max_in_flight=1).encode("tiny", rows)
    np.testing.assert_array_equal(latents[2:], np.full((2, 2), 14))


def test_a_failed_message_cancels_the_others_and_names_its_rows(connect: Connect) -> None:
    others = threading.Semaphore(0)
    cancelled = threading.Semaphore(0)

    def hook(method: str, request: Any, context: Any) -> None:
        first = int(np.frombuffer(request.rows.data, "<f4")[0]) // 6
        if first != 4:
            others.release()
            wait_until_gone(context)
            cancelled.release()
        else:
            for _ in range(2):
                assert others.acquire(timeout=WAIT_S)
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "NOT_FINITE", "row 1 holds NaN")

    service = FakeService(hook=hook)
    with serving(service) as address:
        client = connect(address, max_message_rows=2, max_in_flight=3)
        with pytest.raises(hourglass.InvalidArgument, match=r"row 1 holds NaN \(in the message of the rows 4 to 5\)"):
            client.encode("tiny", unique_rows(20))
        for _ in range(2):
            assert cancelled.acquire(timeout=WAIT_S)
    assert len(service.calls) == 3


def test_an_error_of_the_callers_own_code_cancels_and_passes_through(connect: Connect, address: str) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        connect(address, max_message_rows=1).encode("tiny", unique_rows(9), progress=progress)


@pytest.mark.parametrize("message_rows", [1, 256])
def test_a_server_that_does_not_answer_is_left_at_the_deadline(connect: Connect, message_rows: int) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        wait_until_gone(context)

    with serving(FakeService(hook=hook)) as address:
        client = connect(address, max_message_rows=message_rows)
        with pytest.raises(hourglass.DeadlineExceeded):
            client.encode("tiny", unique_rows(9), timeout_s=0.2)


def test_one_deadline_is_spread_over_the_messages(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the client goes on by 30 s a message."""
    now = 0.0
    monkeypatch.setattr("hourglass.jobs.time.monotonic", lambda: now)

    def hook(method: str, request: Any, context: Any) -> None:
        nonlocal now
        now += 30.0
        left.append(context.time_remaining())

    left: list[float] = []
    with serving(FakeService(hook=hook)) as address:
        client = connect(address, max_message_rows=1, max_in_flight=1)
        with pytest.raises(hourglass.DeadlineExceeded, match="timeout_s=100 passed before all rows were sent"):
            client.encode("tiny", unique_rows(9), timeout_s=100)
    assert left == pytest.approx([100, 70, 40, 10], abs=5)


def test_answers_of_two_versions_are_not_joined(connect: Connect) -> None:
    service = FakeService()

    def hook(method: str, request: Any, context: Any) -> None:
        if len(service.calls) == 3:
            service.cards[:] = [card(version=2)]

    service.hook = hook
    with serving(service) as address:
        client = connect(address, max_message_rows=1, max_in_flight=1)
        with pytest.raises(hourglass.VersionChanged, match="versions 1 and 2 of tiny answered"):
            client.encode("tiny", unique_rows(5))


@pytest.mark.parametrize("message_rows", [1, 256])
def test_a_cancelled_task_cancels_its_messages(message_rows: int) -> None:
    came, gone = threading.Semaphore(0), threading.Semaphore(0)

    def hook(method: str, request: Any, context: Any) -> None:
        came.release()
        wait_until_gone(context)
        gone.release()

    async def run(address: str) -> None:
        async with hourglass.AsyncClient(address, max_message_rows=message_rows, max_in_flight=3) as client:
            task = asyncio.create_task(client.encode("tiny", unique_rows(10)))
            for _ in range(expected):
                assert await asyncio.to_thread(came.acquire, timeout=WAIT_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(expected):
                assert await asyncio.to_thread(gone.acquire, timeout=WAIT_S)

    expected = 3 if message_rows == 1 else 1
    service = FakeService(hook=hook)
    with serving(service) as address:
        asyncio.run(run(address))
    assert len(service.calls) == expected


@pytest.mark.parametrize("message_rows", [1, 256])
def test_closing_ends_what_is_under_way(message_rows: int) -> None:
    came = threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        came.set()
        wait_until_gone(context)

    with serving(FakeService(hook=hook)) as address, ThreadPoolExecutor(1) as pool:
        client = hourglass.Client(address, max_message_rows=message_rows)
        answer = pool.submit(client.encode, "tiny", unique_rows(10))
        assert came.wait(WAIT_S)
        client.close()
        with pytest.raises(hourglass.Closed, match=r"the client (is|was) closed"):
            answer.result(WAIT_S)


@pytest.mark.parametrize("message_rows", [1, 256])
def test_closing_ends_what_is_under_way_in_asyncio(message_rows: int) -> None:
    came = threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        came.set()
        wait_until_gone(context)

    async def run(address: str) -> None:
        client = hourglass.AsyncClient(address, max_message_rows=message_rows)
        task = asyncio.create_task(client.encode("tiny", unique_rows(10)))
        assert await asyncio.to_thread(came.wait, WAIT_S)
        await client.close()
        with pytest.raises(hourglass.Closed, match=r"the client (is|was) closed"):
            await task
        with pytest.raises(hourglass.Closed, match="the client is closed"):
            await client.encode("tiny", unique_rows(10))
        await client.close()

    with serving(FakeService(hook=hook)) as address:
        asyncio.run(run(address))


def test_a_task_that_is_cancelled_stays_cancelled_when_the_client_is_closed_too() -> None:
    came = threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        came.set()
        wait_until_gone(context)

    async def run(address: str) -> None:
        client = hourglass.AsyncClient(address)
        task = asyncio.create_task(client.encode("tiny", unique_rows(10)))
        assert await asyncio.to_thread(came.wait, WAIT_S)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serving(FakeService(hook=hook)) as address:
        asyncio.run(run(address))


def test_a_closed_client_says_so(address: str) -> None:
    with hourglass.Client(address, max_message_rows=1) as client:
        client.models()
    client.close()
    for call in (client.models, lambda: client.encode("tiny", unique_rows(3))):
        with pytest.raises(hourglass.Closed, match="the client is closed"):
            call()


def test_an_async_client_is_made_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        hourglass.AsyncClient("127.0.0.1:1")


def test_one_client_serves_eight_threads(address: str) -> None:
    meeting = threading.Barrier(8)

    def use(client: hourglass.Client, number: int) -> None:
        rows = unique_rows(40) + np.float32(1000 * number)
        meeting.wait(WAIT_S)
        for _ in range(5):
            np.testing.assert_array_equal(client.encode("tiny", rows), encode(rows))
            np.testing.assert_array_equal(client.encode("tiny", rows[:1]), encode(rows[:1]))

    with hourglass.Client(address, max_message_rows=7) as client, ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(use, client, number) for number in range(8)]:
            result.result(WAIT_S)


def test_calls_of_one_async_client_run_together(address: str) -> None:
    async def run() -> None:
        async with hourglass.AsyncClient(address, max_message_rows=7) as client:
            many = [unique_rows(40) + np.float32(1000 * number) for number in range(8)]
            for rows, latents in zip(
                many, await asyncio.gather(*(client.encode("tiny", rows) for rows in many)), strict=True
            ):
                np.testing.assert_array_equal(latents, encode(rows))

    asyncio.run(run())
