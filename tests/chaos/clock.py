"""The wall clock of the service is moved by hours: what lasts, lasts as long as before."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import grpc

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import Client
from tests import tiny
from tests.chaos.load import (
    CALL_S,
    Load,
    assert_clean_end,
    assert_serves,
    channel,
    check,
    unlike_any,
    wait_until,
    wait_until_idle,
)
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TINY, array, tensor

_ENCODE = "/autoencoder.v1.AutoencoderService/Encode"
_JUMPS = (("+6h", "-6h"), ("+30d", "-30d"))
_RECEIVE_S = 2.0


def clock_jumps(folder: Path, count: int) -> dict[str, float]:
    """The wall clock of the service jumps ahead and back by hours and days, so many times, on each transport: no deadline
    comes too early or too late, no wait is longer, new versions are found, and no time that is measured is wrong."""
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        raise SkipTest("libfaketime is not installed: apt-get install faketime")
    answered = 0
    for transport in ("completion-queue", "threaded"):
        offset, models = folder / f"{transport}.offset", folder / transport
        tiny.write(models)
        offset.write_text("+0")
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        limits = ("--transport", transport, "--receive-timeout-s", str(_RECEIVE_S), "--watch-s", "0.1")
        with ServerProcess(models, *limits, environment=environment) as server:
            for number in range(count):
                ahead, back = _JUMPS[number % len(_JUMPS)]
                _a_call_that_waits(server, offset, ahead)
                _a_call_without_a_message(server, partial(offset.write_text, back))
                with Load(server.address) as load:
                    for jump in (ahead, back):
                        offset.write_text(jump)
                        load.wait_for_more(30)
                    _a_new_version(server, models, 2 + number)
                answered += load.answered
            wait_until_idle(server)
            assert_serves(server.address)
            for line in server.get("/metrics")[1].splitlines():
                if "_seconds_sum" in line:
                    assert 0 <= float(line.rpartition(" ")[2]) < 3600, line
        assert_clean_end(server)
    return {"answered": answered}


def _slow(opened: grpc.Channel, messages: queue.SimpleQueue[Any], timeout_s: float | None) -> Any:
    call: Any = opened.stream_unary(_ENCODE, pb.EncodeRequest.SerializeToString, pb.EncodeResponse.FromString)
    return call.future(iter(messages.get, None), timeout=timeout_s)


def _a_call_that_waits(server: ServerProcess, offset: Path, ahead: str) -> None:
    """Its deadline is as far away after the jump as before."""
    rows = unlike_any(3)
    request = pb.EncodeRequest(model=TINY, rows=tensor(rows))
    with channel(server.address) as opened:
        grpc.channel_ready_future(opened).result(CALL_S)
        while True:
            offset.write_text("+0")
            messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
            call = _slow(opened, messages, CALL_S)
            # On the same connection, so that the other has come before.
            AutoencoderServiceStub(opened).Encode(request, timeout=CALL_S)
            offset.write_text(ahead)
            messages.put(request)
            messages.put(None)
            error = call.exception(CALL_S)
            if error is None:
                check(array(call.result().latents), tiny.encode(rows))
                return
            # Where others have the machine for so long, we are too late ourselves.
            assert "the request message did not come" in error.details(), error


def _a_call_without_a_message(server: ServerProcess, jump: Callable[[], object]) -> None:
    """It is ended in its time, though nothing else comes that would wake the service."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with channel(server.address) as opened:
        grpc.channel_ready_future(opened).result(CALL_S)
        began = time.monotonic()
        call = _slow(opened, messages, None)
        jump()
        error = call.exception(CALL_S)
        messages.put(None)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
        took_s = time.monotonic() - began
        assert 0.9 * _RECEIVE_S < took_s < CALL_S / 2, f"{took_s:.1f} s instead of {_RECEIVE_S}"


def _a_new_version(server: ServerProcess, models: Path, version: int) -> None:
    tiny.write(models, version=version)

    def is_served() -> bool:
        with Client(server.address) as client:
            return version in {card.version for card in client.models(timeout_s=CALL_S)}

    wait_until(is_served, f"version {version} is not found")
