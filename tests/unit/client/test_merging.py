"""Small calls of one AsyncClient that share messages, and connections that share calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import hourglass
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, encode, fail, serving, unpack
from tests.unit.client.test_messages import WAIT_S, unique_rows

Held = tuple[threading.Event, threading.Event]


@pytest.fixture
def held(service: FakeService) -> Iterator[Held]:
    """Every call that comes sets the first event, and waits for the second."""
    came, go = threading.Event(), threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        came.set()
        assert go.wait(WAIT_S)

    service.hook = hook
    yield came, go
    go.set()


def row(number: float) -> Any:
    return unique_rows(1) + np.float32(10 * number)


def test_a_thousand_tasks_cost_few_messages_and_each_has_its_own_answer(service: FakeService, address: str) -> None:
    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            answers = await asyncio.gather(*(client.encode("tiny", row(number)) for number in range(1000)))
        for number, latents in enumerate(answers):
            np.testing.assert_array_equal(latents, encode(row(number)))

    asyncio.run(run())
    assert len(service.calls) == 4
    assert all(len(unpack(request.rows)) <= 256 for request in service.requests)


def test_calls_of_different_kinds_are_not_mixed(service: FakeService, address: str) -> None:
    async def run() -> None:
        async with hourglass.AsyncClient(address, max_in_flight=1) as client:
            first, halves, scored, wide = await asyncio.gather(
                client.encode("tiny", row(1)),
                client.encode("tiny", row(2), dtype=np.float16),
                client.reconstruct("tiny", np.concatenate([row(3), row(4)])),
                client.encode("tiny", row(5).astype(np.float64)),
                return_exceptions=False,
            )
            unknown = asyncio.create_task(client.encode("unknown", row(6)))
            again = await client.encode("tiny", row(7), version=1)
            with pytest.raises(hourglass.NotFound):
                await unknown
        np.testing.assert_array_equal(first, encode(row(1)))
        assert halves.dtype == np.float16
        np.testing.assert_array_equal(scored.errors, [row(3).flat[0], row(4).flat[0]])
        np.testing.assert_array_equal(wide, encode(row(5)))
        np.testing.assert_array_equal(again, encode(row(7)))

    asyncio.run(run())


def test_scores_are_shared_out_too(service: FakeService, address: str) -> None:
    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            results = await asyncio.gather(*(client.denoise("tiny", row(number)) for number in range(20)))
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result.rows, row(number))
            np.testing.assert_array_equal(result.distances, [row(number).flat[0]])

    asyncio.run(run())
    assert len(service.calls) == 1


def test_what_comes_while_messages_are_under_way_goes_together(address: str, service: FakeService, held: Held) -> None:
    came, go = held

    async def run() -> None:
        async with hourglass.AsyncClient(address, max_in_flight=1) as client:
            first = asyncio.create_task(client.encode("tiny", row(0)))
            assert await asyncio.to_thread(came.wait, WAIT_S)
            later = []
            for number in range(1, 9):
                later.append(asyncio.create_task(client.encode("tiny", row(number))))
                await asyncio.sleep(0)  # each in a turn of its own
            go.set()
            for number, task in enumerate((first, *later)):
                np.testing.assert_array_equal(await task, encode(row(number)))

    asyncio.run(run())
    assert [len(unpack(request.rows)) for request in service.requests] == [1, 8]


def test_a_wrong_call_fails_alone(address: str, service: FakeService) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        if np.isnan(unpack(request.rows)).any():
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "NOT_FINITE", "a row holds NaN")

    service.hook = hook

    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            rows = [row(number) for number in range(6)]
            rows[3] = np.full_like(rows[3], np.nan)
            results = await asyncio.gather(*(client.encode("tiny", one) for one in rows), return_exceptions=True)
        for number, result in enumerate(results):
            if number == 3:
                assert isinstance(result, hourglass.InvalidArgument)
                assert "a row holds NaN" in str(result)
            else:
                assert isinstance(result, np.ndarray)
                np.testing.assert_array_equal(result, encode(rows[number]))

    asyncio.run(run())


def test_an_error_of_the_message_is_told_to_all_who_share_it(address: str, service: FakeService) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after_s=0.5)

    service.hook = hook

    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            results = await asyncio.gather(
                *(client.encode("tiny", row(number)) for number in range(5)), return_exceptions=True
            )
        for result in results:
            assert isinstance(result, hourglass.Overloaded)
            assert result.retry_after_s == 0.5
            assert isinstance(result.__cause__, grpc.RpcError)
        assert len(set(map(id, results))) == 5

    asyncio.run(run())
    assert len(service.calls) == 1


def test_a_cancelled_call_leaves_those_it_shares_a_message_with_alone(
    address: str, service: FakeService, held: Held
) -> None:
    came, go = held

    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            tasks = [asyncio.create_task(client.encode("tiny", row(number))) for number in range(3)]
            assert await asyncio.to_thread(came.wait, WAIT_S)
            tasks[1].cancel()
            go.set()
            np.testing.assert_array_equal(await tasks[0], encode(row(0)))
            np.testing.assert_array_equal(await tasks[2], encode(row(2)))
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]

    asyncio.run(run())


def test_the_shorter_deadline_of_a_shared_message_holds_for_its_own_call(address: str, service: FakeService) -> None:
    go = threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        assert go.wait(WAIT_S)

    service.hook = hook

    async def run() -> None:
        async with hourglass.AsyncClient(address) as client:
            short = asyncio.create_task(client.encode("tiny", row(1), timeout_s=0.2))
            long = asyncio.create_task(client.encode("tiny", row(2), timeout_s=WAIT_S))
            with pytest.raises(hourglass.DeadlineExceeded, match=r"timeout_s=0\.2 passed"):
                await short
            go.set()
            np.testing.assert_array_equal(await long, encode(row(2)))

    asyncio.run(run())
    assert len(service.calls) == 1


def test_a_deadline_counts_while_a_call_waits_for_its_turn(address: str, service: FakeService, held: Held) -> None:
    came, go = held

    async def run() -> None:
        async with hourglass.AsyncClient(address, max_in_flight=1) as client:
            first = asyncio.create_task(client.encode("tiny", row(1)))
            assert await asyncio.to_thread(came.wait, WAIT_S)
            with pytest.raises(hourglass.DeadlineExceeded, match=r"timeout_s=0\.2 passed"):
                await asyncio.wait_for(client.encode("tiny", row(2), timeout_s=0.2), WAIT_S / 2)
            go.set()
            np.testing.assert_array_equal(await first, encode(row(1)))

    asyncio.run(run())
    assert len(service.calls) == 1, "nothing is sent for whoever waits no more"


def test_out_is_not_touched_after_its_call_was_cancelled(address: str, service: FakeService, held: Held) -> None:
    came, go = held

    async def run() -> None:
        given_up, kept = np.full((1, 2), -1, np.float32), np.full((1, 2), -1, np.float32)
        async with hourglass.AsyncClient(address) as client:
            leaves = asyncio.create_task(client.encode("tiny", row(1), out=given_up))
            stays = asyncio.create_task(client.encode("tiny", row(2), out=kept))
            assert await asyncio.to_thread(came.wait, WAIT_S)
            leaves.cancel()
            go.set()
            await stays
        assert given_up.tolist() == [[-1, -1]]
        np.testing.assert_array_equal(kept, encode(row(2)))

    asyncio.run(run())
    assert len(service.calls) == 1, "they share a message"


def test_closing_ends_what_waits_for_its_turn(address: str, service: FakeService) -> None:
    came, go = threading.Event(), threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        came.set()
        go.wait(WAIT_S)

    service.hook = hook

    async def run() -> None:
        client = hourglass.AsyncClient(address, max_in_flight=1)
        tasks = [asyncio.create_task(client.encode("tiny", row(0)))]
        assert await asyncio.to_thread(came.wait, WAIT_S)
        tasks += [asyncio.create_task(client.encode("tiny", row(number))) for number in range(1, 4)]
        await asyncio.sleep(0)
        await client.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, hourglass.Closed)

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_calls_take_turns_over_the_connections(connect: Connect) -> None:
    peers: list[str] = []
    with serving(FakeService(hook=lambda method, request, context: peers.append(context.peer()))) as address:
        client = connect(address, connections=3, max_message_rows=1, max_in_flight=1)
        client.encode("tiny", unique_rows(9))
    assert len(set(peers)) == 3
    assert peers[:3] * 3 == peers


def test_there_is_at_least_one_connection() -> None:
    with pytest.raises(ValueError, match="connections: must be at least 1; got 0"):
        hourglass.Client("127.0.0.1:1", connections=0)
