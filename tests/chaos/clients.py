"""Clients that die, do not read, do not write, ask for too much or have no time: the others must not notice."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import Client, DeadlineExceeded, HourglassError, Overloaded
from hourglass.errors import from_rpc
from tests import tiny
from tests.chaos import timed
from tests.chaos.load import (
    CALL_S,
    OPERATIONS,
    Load,
    assert_clean_end,
    assert_serves,
    channel,
    check,
    encode_and_check,
    unlike_any,
    wait_until,
    wait_until_idle,
)
from tests.integration.serving import ROOT, ServerProcess
from tests.integration.test_memory import resident_bytes
from tests.integration.test_service import TINY, array, tensor

ENCODE = "/autoencoder.v1.AutoencoderService/Encode"
_REFUSED_S = 0.01
_MOST_MISSED = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def clients_killed(folder: Path, count: int) -> dict[str, float]:
    """SIGKILL for clients with calls and a stream under way; so many, two at a time. The queue takes what they send."""
    tiny.write(folder)
    with ServerProcess(folder, "--max-queue-rows", "1000000") as server:
        with Load(server.address) as load:
            for _ in range(0, count, 2):
                command = [sys.executable, "-m", "tests.chaos.victim", server.address]
                victims = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
                for victim in victims:
                    with victim:
                        assert victim.stdout is not None
                        assert victim.stdout.readline(), "the client did not get to the middle of its calls"
                        victim.kill()
                load.wait_for_more(20)
        wait_until_idle(server)
        cancelled = server.metric('autoencoder_rejected_requests_total{reason="CANCELLED"}')
        assert cancelled > 0, "no call was under way when its client was killed"
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"calls of the killed": cancelled}


def slow_readers(folder: Path, count: int) -> dict[str, float]:
    """Streams whose client sends what it may and reads nothing; so many. At last they read, and nothing is missing."""
    tiny.write(folder)
    messages = 200
    limits = ("--max-stream-requests", "16", "--max-queue-rows", "1000000")
    with ServerProcess(folder, *limits) as server, ExitStack() as stack:
        rows = [unlike_any(500) for _ in range(messages)]
        requests = [
            pb.StreamRequest(id=number, decode=pb.DecodeRequest(model=TINY, latents=tensor(tiny.encode(sent))))
            for number, sent in enumerate(rows)
        ]
        with Load(server.address) as load:
            before = resident_bytes(server.process.pid)
            streams = []
            for _ in range(count):
                stub = AutoencoderServiceStub(stack.enter_context(channel(server.address)))
                streams.append(stub.Stream(iter(requests), timeout=CALL_S))
            load.wait_for_more(300)
            grown = resident_bytes(server.process.pid) - before
            for answers in streams:
                got = {answer.id: answer.decode.rows for answer in answers}
                assert sorted(got) == list(range(messages))
                for number, sent in enumerate(rows):
                    check(array(got[number]), tiny.decode(tiny.encode(sent)))
        wait_until_idle(server)
        assert_serves(server.address)
    assert_clean_end(server)
    # What one of them is owed is 6 MB of answers.
    return load.figures | {"MiB a reader": grown / count / 2**20}


def slow_loris(folder: Path, count: int) -> dict[str, float]:
    """Connections that never finish what they begin, so many of each kind: silent ones, half a preface, half a request
    to the probes, and calls whose message does not come, almost as many as the service takes RPCs: these it ends."""
    tiny.write(folder)
    limits = ("--max-concurrent-requests", str(count + 16), "--receive-timeout-s", "3")
    with ServerProcess(folder, *limits) as server, ExitStack() as stack:
        with Load(server.address) as load:
            for target, content in (
                (server.address, b""),
                (server.address, _PREFACE[:9]),
                (server.address, _PREFACE + b"\0\0"),
                (server.http.removeprefix("http://"), b"GET /metr"),
            ):
                for _ in range(count):
                    host, _, port = target.rpartition(":")
                    held = stack.enter_context(socket.create_connection((host, int(port))))
                    held.sendall(content)
            load.wait_for_more(200)
            opened = stack.enter_context(channel(server.address))
            leave: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            call: Any = opened.stream_unary(ENCODE)
            calls = [call.future(iter(leave.get, None)) for _ in range(count)]
            wait_until(
                lambda: server.metric("autoencoder_requests_in_flight") >= count, "the calls do not reach the service"
            )
            assert server.get("/readyz")[0] == 200
            for ended in calls:
                error = ended.exception(CALL_S)
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
                assert "--receive-timeout-s=3" in error.details(), error
            load.wait_for_more(200)
        assert server.metric('autoencoder_rejected_requests_total{reason="MESSAGE_TIMEOUT"}') == count
        for _ in calls:
            leave.put(None)  # so that the threads that would send their messages end
        wait_until_idle(server)
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"connections": 4 * count, "calls": count}


def short_deadlines(folder: Path, count: int) -> dict[str, float]:
    """So many calls with 1 ms each, among the others: each is answered rightly or in time is told that it is too late."""
    tiny.write(folder)
    late = in_time = 0
    with ServerProcess(folder) as server:
        with Load(server.address) as load, Client(server.address, attempts=1) as client:
            for number in range(count):
                try:
                    OPERATIONS[number % len(OPERATIONS)](client, 1 + number % 30, timeout_s=0.001)
                    in_time += 1
                except DeadlineExceeded:
                    late += 1
        wait_until_idle(server)
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"late": late, "in time": in_time}


def overload(folder: Path, seconds: int) -> dict[str, float]:
    """Ten times what the service can do, for so many seconds, after a time of calls one by one. What is accepted is
    answered rightly, all else is refused at once and by name: within 10 ms of the service's own time, which it tells
    itself (`tests.chaos.timed`), for a client has its own delays. One request is many batches of one row, so that clients
    in Python can ask for ten times as much; the queue has room for one and a quarter."""
    tiny.write(folder)
    rows = 1000
    limits = ("--max-batch-rows", "1", "--max-queue-rows", str(rows + rows // 4))
    with ServerProcess(folder, *limits, module="tests.chaos.timed") as server:
        with Client(server.address, attempts=1, max_message_rows=rows) as client:
            alone_s = _times(lambda: encode_and_check(client, rows, timeout_s=CALL_S), seconds / 2)
        interval_s = float(np.mean(alone_s)) / 10
        wave = _Wave(server.address, rows)
        began = time.monotonic()
        sent = 0
        due = began
        while (now := time.monotonic()) < began + seconds:
            time.sleep(max(0.0, due - now))
            wave.send()
            sent += 1
            # Who was held up sends a few at once, and not all that it has missed: that would be another test.
            due = max(due + interval_s, now - _MOST_MISSED * interval_s)
        wave.finish()
        assert not wave.faults, wave.faults[:3]
        assert wave.accepted_s, "nothing was accepted"
        assert wave.refused_s, "nothing was refused"
        refused = server.metric('autoencoder_rejected_requests_total{reason="QUEUE_FULL"}')
        assert refused == len(wave.refused_s), "a refusal that was not the queue's"
        wait_until_idle(server)
        assert_serves(server.address)
    assert_clean_end(server)
    told = server.wait_for(timed.EVENT)
    own_s, clock_s = np.array(told["refusals_thread_s"]), np.array(told["refusals_clock_s"])
    assert len(own_s) == len(wave.refused_s), "not every refusal was timed"
    assert told["settled_objects"] > 10_000, "full collections go through everything there is"
    # Of few refusals one pause is many; `make chaos` tells all.
    assert np.mean(own_s < _REFUSED_S) > 0.95, f"the service takes {np.percentile(own_s, 95):.4f} s to refuse"
    # No bound for p99: on a machine that is shared with others, both are theirs.
    assert np.median(wave.accepted_s) < 4 * np.median(alone_s), "what is accepted waits for more than the queue holds"
    own_alone_s, own_accepted_s, _ = np.split(
        np.array(told["answers_thread_s"]), [len(alone_s), len(alone_s) + len(wave.accepted_s)]
    )
    alone_p99, accepted_p99 = np.percentile(alone_s, 99), np.percentile(wave.accepted_s, 99)
    return {
        "accepted": len(wave.accepted_s),
        "refused": len(wave.refused_s),
        "offered over done alone": sent / seconds * float(np.mean(alone_s)),
        "p99 alone ms": 1e3 * float(alone_p99),
        "p99 accepted ms": 1e3 * float(accepted_p99),
        "p99 accepted over alone": float(accepted_p99 / alone_p99),
        "the same of the service's own time": float(np.percentile(own_accepted_s, 99) / np.percentile(own_alone_s, 99)),
        **_refusals("service's own time", own_s),
        **_refusals("service by the clock", clock_s),
        **_refusals("client", np.array(wave.refused_s)),
    }


def _refusals(who: str, times_s: np.ndarray[Any, Any]) -> dict[str, float]:
    return {
        f"refusals, {who}: p50 ms": 1e3 * float(np.percentile(times_s, 50)),
        f"refusals, {who}: p99 ms": 1e3 * float(np.percentile(times_s, 99)),
        f"refusals, {who}: within 10 ms %": 100 * float(np.mean(times_s < _REFUSED_S)),
    }


def _times(call: Callable[[], None], seconds: float) -> list[float]:
    times: list[float] = []
    until = time.monotonic() + seconds
    while not times or time.monotonic() < until:
        began = time.monotonic()
        call()
        times.append(time.monotonic() - began)
    return times


class _Wave:
    """Calls that are sent without waiting for the answers of others. The answers are compared at the end, and the rows
    are made before, so that the clocks have the calls alone."""

    def __init__(self, address: str, rows: int) -> None:
        self._opened = channel(address)
        self._stub = AutoencoderServiceStub(self._opened.__enter__())
        self._address = address
        self._base = unlike_any(rows)
        self._sent = 0
        self._open = 0
        self._changed = threading.Condition()
        self._answers: list[tuple[int, pb.EncodeResponse]] = []
        self.accepted_s: list[float] = []
        self.refused_s: list[float] = []
        self.faults: list[str] = []

    def _rows(self, number: int) -> tiny.Rows:
        return self._base + np.float32(number)

    def send(self) -> None:
        number = self._sent
        self._sent += 1
        request = pb.EncodeRequest(model=TINY, rows=tensor(self._rows(number)))
        with self._changed:
            self._open += 1
        began = time.monotonic()
        call = self._stub.Encode.future(request, timeout=CALL_S)
        call.add_done_callback(lambda call: self._done(number, call, time.monotonic() - began))

    def _done(self, number: int, call: Any, took_s: float) -> None:
        with self._changed:
            try:
                self._answers.append((number, call.result()))
                self.accepted_s.append(took_s)
            except grpc.RpcError as error:
                refusal = from_rpc(error, address=self._address)
                if isinstance(refusal, Overloaded) and refusal.retry_after_s:
                    self.refused_s.append(took_s)
                else:
                    self.faults.append(repr(refusal))
            self._open -= 1
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._open == 0, CALL_S), "calls without an answer"
        self._opened.__exit__(None, None, None)
        for number, answer in self._answers:
            try:
                np.testing.assert_allclose(
                    array(answer.latents), tiny.encode(self._rows(number)), rtol=1e-3, atol=1e-4 * (1 + number)
                )
            except AssertionError as error:
                self.faults.append(str(error))


def requests_of_every_kind(address: str, count: int) -> int:
    """So many calls, streams' messages, errors and cancellations; how many were answered with an error."""
    wrong_shape = np.zeros((3, 5), np.float32)
    failed = 0
    with Client(address, attempts=1) as client, channel(address) as opened:
        stub = AutoencoderServiceStub(opened)
        rows = unlike_any(64)
        encode = pb.EncodeRequest(model=TINY, rows=tensor(rows))
        broken = pb.EncodeRequest(model=pb.ModelSelector(name="nobody"), rows=tensor(rows))
        done = 0
        while done < count:
            for operation in OPERATIONS:
                operation(client, 64, timeout_s=CALL_S)
            for name, wrong in (("tiny", wrong_shape), ("nobody", rows)):
                with suppress(HourglassError):
                    client.encode(name, wrong)
                failed += 1
            with suppress(DeadlineExceeded):
                client.reconstruct("tiny", rows, timeout_s=0.001)
            stub.Encode.future(encode).cancel()

            def messages() -> Iterator[pb.StreamRequest]:
                for number in range(40):
                    yield pb.StreamRequest(id=number, encode=broken if number % 10 == 9 else encode)

            answers = list(stub.Stream(messages(), timeout=CALL_S))
            failed += sum(answer.WhichOneof("response") == "error" for answer in answers)
            stream = stub.Stream(messages(), timeout=CALL_S)
            next(stream)
            stream.cancel()
            done += len(OPERATIONS) + 4 + 2 * 40
    return failed
