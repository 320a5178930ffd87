"""UNAVAILABLE is tried again, with back-off, within the deadline; nothing else is."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest

import hourglass
from hourglass.channel import Endpoint
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_service import FakeService, card, encode, fail, serving

ROWS = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
OTHER_CODES = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)]


class FailFirst:
    """A hook that fails the first calls."""

    def __init__(self, times: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.times = times
        self.code = code
        self.came_at: list[float] = []

    def __call__(self, method: str, request: Any, context: Any) -> None:
        self.came_at.append(time.monotonic())
        if len(self.came_at) <= self.times:
            fail(context, self.code, "LOADING", "the model is loading")


@pytest.mark.parametrize("message_rows", [1, 256])
def test_two_failures_then_an_answer(connect: Connect, message_rows: int) -> None:
    hook = FailFirst(2)
    with serving(FakeService(hook=hook)) as address:
        np.testing.assert_array_equal(
            connect(address, max_message_rows=message_rows, max_in_flight=1).encode("tiny", ROWS), encode(ROWS)
        )
    waits = np.diff(hook.came_at)
    assert len(hook.came_at) == 2 + len(ROWS) // min(message_rows, 2)
    assert waits[0] >= 0.2 * 0.8
    assert waits[1] >= 0.4 * 0.8


def test_a_full_message_is_tried_again_too(connect: Connect) -> None:
    rows = np.arange(2**18, dtype=np.float32).reshape(4, -1)
    hook = FailFirst(1)
    with serving(FakeService(card(row_shape=rows.shape[1:]), hook=hook)) as address:
        np.testing.assert_array_equal(connect(address).encode("tiny", rows), encode(rows))
    assert len(hook.came_at) == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_after_the_last_attempt_the_error_is_raised(connect: Connect, attempts: int) -> None:
    hook = FailFirst(99)
    with serving(FakeService(hook=hook)) as address, pytest.raises(hourglass.Unavailable) as caught:
        connect(address, attempts=attempts).encode("tiny", ROWS)
    assert caught.value.reason == "LOADING"
    assert len(hook.came_at) == attempts


@pytest.mark.parametrize("code", OTHER_CODES)
def test_no_other_status_is_tried_again(connect: Connect, code: grpc.StatusCode) -> None:
    hook = FailFirst(99, code)
    with serving(FakeService(hook=hook)) as address, pytest.raises(hourglass.HourglassError):
        connect(address).encode("tiny", ROWS)
    assert len(hook.came_at) == 1


@pytest.mark.parametrize("attempts", [0, 6])
def test_attempts_are_what_grpc_allows(connect: Connect, attempts: int) -> None:
    with pytest.raises(ValueError, match=f"attempts: must be from 1 to 5; got {attempts}"):
        connect("127.0.0.1:1", attempts=attempts).models()


def test_the_deadline_ends_the_attempts(connect: Connect) -> None:
    hook = FailFirst(99)
    with serving(FakeService(hook=hook)) as address:
        begin = time.monotonic()
        with pytest.raises((hourglass.DeadlineExceeded, hourglass.Unavailable)):
            connect(address).encode("tiny", ROWS, timeout_s=0.3)
        assert time.monotonic() - begin < 2
    assert len(hook.came_at) < 4


def test_no_server_is_unavailable_and_names_the_address(connect: Connect) -> None:
    with serving(FakeService()) as address:
        pass
    with pytest.raises(hourglass.Unavailable, match=rf"{address}: .*(refused|failed to connect)"):
        connect(address, attempts=1).models()


def test_a_server_that_comes_up_late_is_found(connect: Connect) -> None:
    """The call begins when nothing listens; the server comes while gRPC waits to try again."""
    with serving(FakeService()) as address:
        pass
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(connect(address).encode("tiny", ROWS)))
    caller.start()
    caller.join(0.3)  # Not to synchronise: however long this takes, the answer must come.
    with serving(FakeService(), address=address):
        caller.join(30)
    np.testing.assert_array_equal(answers[0], encode(ROWS))


def test_a_server_restarted_between_calls_is_found_again() -> None:
    with serving(FakeService()) as address:
        client = hourglass.Client(address)
        client.encode("tiny", ROWS)
    for _ in range(2):
        with serving(FakeService(), address=address):
            np.testing.assert_array_equal(client.encode("tiny", ROWS), encode(ROWS))
    client.close()


def test_a_server_restarted_between_calls_is_found_again_in_asyncio() -> None:
    async def run() -> None:
        with serving(FakeService()) as address:
            client = hourglass.AsyncClient(address)
            await client.encode("tiny", ROWS)
        for _ in range(2):
            with serving(FakeService(), address=address):
                np.testing.assert_array_equal(await client.encode("tiny", ROWS), encode(ROWS))
        await client.close()

    asyncio.run(run())


def test_streams_are_not_sent_again() -> None:
    config = json.loads(dict(Endpoint(address="127.0.0.1:1").options)["grpc.service_config"])
    named = {(name["service"], name.get("method")) for name in config["methodConfig"][0]["name"]}
    service = "autoencoder.v1.AutoencoderService"
    assert {(service, "Encode"), (service, "GetModel"), ("autoencoder.v1.ModelAdminService", "LoadModel")} <= named
    assert not {(service, None), (service, "Stream")} & named
