"""Callers of every kind that go on while something happens to the service, and what became of every request.

No two rows that are sent are alike, so that an answer with another's rows is a wrong answer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.rpc import error_details_pb2

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import TLS, Client, HourglassError
from hourglass.channel import Endpoint
from hourglass.errors import Unavailable, from_rpc
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TINY, array, tensor

CALL_S = 60.0
SETTLE_S = 60.0
MESSAGES = 32
_PAUSE_S = 0.02
_SEEDS = itertools.count(1)

MayRefuse = Callable[[HourglassError], bool]


def unlike_any(count: int) -> tiny.Rows:
    """Rows [count, 4, 4] that nobody has sent yet."""
    return tiny.rows(count, seed=next(_SEEDS))


def check(got: Any, expected: tiny.Rows) -> None:
    """Raises AssertionError."""
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def encode_and_check(client: Client, count: int, **options: Any) -> None:
    rows = unlike_any(count)
    check(client.encode("tiny", rows, **options), tiny.encode(rows))


def decode_and_check(client: Client, count: int, **options: Any) -> None:
    latents = tiny.encode(unlike_any(count))
    check(client.decode("tiny", latents, **options), tiny.decode(latents))


def reconstruct_and_check(client: Client, count: int, **options: Any) -> None:
    rows = unlike_any(count)
    check(client.reconstruct("tiny", rows, **options).rows, tiny.decode(tiny.encode(rows)))


def interpolate_and_check(client: Client, count: int, **options: Any) -> None:
    start, end = unlike_any(count), unlike_any(count)
    path = client.interpolate("tiny", start, end, steps=3, **options).rows
    middle = (tiny.encode(start) + tiny.encode(end)) / np.float32(2)
    check(path[:, 1], tiny.decode(middle))


OPERATIONS = (encode_and_check, decode_and_check, reconstruct_and_check, interpolate_and_check)


@contextmanager
def channel(address: str, *, tls: bool | TLS = False) -> Iterator[grpc.Channel]:
    """As the client's own, for what the client does not do."""
    endpoint = Endpoint(address=address, tls=tls, attempts=1, connections=1)
    (options,) = endpoint.channel_options
    credentials = endpoint.credentials
    with (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as opened:
        yield opened


class Load:
    """Unary callers of all operations and one that streams, while the block lasts.

    `attempts`: as of the client; where it is more than 1, what a stream left unanswered is sent again too. An error for
    which `may_refuse` is true is a refusal, which loses nothing: the request was not run.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int = 1,
        may_refuse: MayRefuse = lambda error: False,
        tls: bool | TLS = False,
    ) -> None:
        self._address = address
        self._attempts = attempts
        self._may_refuse = may_refuse
        self._tls = tls
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.answered = 0
        self.refused: Counter[str] = Counter()  # requests, by what their caller was told
        self.errors: Counter[str] = Counter()  # calls, by the kind of error
        self.lost: list[str] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(len(OPERATIONS) + 1)
        self._futures = [self._pool.submit(self._call, operation) for operation in OPERATIONS]
        self._futures.append(self._pool.submit(self._streams))
        try:
            self.wait_for_more(10)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        if error is None:
            for future in self._futures:
                future.result()
            self.check()

    def check(self) -> None:
        assert not self.wrong, f"{len(self.wrong)} wrong answers: {self.wrong[:3]}"
        assert not self.lost, f"{len(self.lost)} requests lost: {Counter(self.lost).most_common(5)}"

    def wait_for_more(self, count: int) -> None:
        """Until so many more requests have been answered."""
        wanted = self.answered + count
        with self._changed:
            assert self._changed.wait_for(lambda: self.answered >= wanted or self.lost, SETTLE_S), "nobody answers"

    @property
    def figures(self) -> dict[str, float]:
        return {"answered": self.answered, "not run": sum(self.refused.values())}

    def _end(self) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _note(self, *, answered: int = 0) -> None:
        with self._changed:
            self.answered += answered
            self._changed.notify_all()

    def _failed(self, error: HourglassError, requests: int = 1) -> None:
        what = f"{type(error).__name__}: {error}"
        with self._changed:
            self.errors[type(error).__name__] += 1
            if self._may_refuse(error):
                self.refused[what] += requests
            else:
                self.lost += [what] * requests
            self._changed.notify_all()
        # Who is told to go elsewhere goes on at once: the worst that can come to a service that stops.
        if error.reason != "DRAINING":
            self._stop.wait(_PAUSE_S)

    def _call(self, operation: Callable[..., None]) -> None:
        with Client(self._address, attempts=self._attempts, tls=self._tls, connections=2) as client:
            for step in itertools.count():
                if self._stop.is_set():
                    return
                try:
                    operation(client, 1 + step % 30, timeout_s=CALL_S)
                except AssertionError as error:
                    self.wrong.append(f"{operation.__name__}: {error}")
                except HourglassError as error:
                    self._failed(error)
                else:
                    self._note(answered=1)

    def _streams(self) -> None:
        # Without gRPC's own retries: a stream that they had begun anew has ended well with answers missing in the middle.
        with channel(self._address, tls=self._tls) as opened:
            stub = AutoencoderServiceStub(opened)
            while not self._stop.is_set():
                waiting = {number: unlike_any(1 + number % 3) for number in range(MESSAGES)}
                for attempt in range(self._attempts):
                    error = self._stream(stub, waiting)
                    if error is None or attempt + 1 == self._attempts:
                        break
                    time.sleep(0.2 * 2**attempt)  # as the client's retries
                if error is not None:
                    self._failed(error, len(waiting))
                elif waiting:
                    self.lost += ["not answered by a stream that ended well"] * len(waiting)

    def _stream(self, stub: AutoencoderServiceStub, waiting: dict[int, tiny.Rows]) -> HourglassError | None:
        """One stream; what it answers is taken out of `waiting`."""
        requests = [
            pb.StreamRequest(id=number, encode=pb.EncodeRequest(model=TINY, rows=tensor(rows)))
            for number, rows in waiting.items()
        ]
        unavailable: HourglassError | None = None
        try:
            for answer in stub.Stream(iter(requests), timeout=CALL_S):
                rows = waiting.pop(answer.id, None)
                if rows is None:
                    self.wrong.append(f"stream: {answer.id} was answered twice")
                    continue
                if answer.WhichOneof("response") == "error":
                    if answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]:
                        waiting[answer.id] = rows
                        info = error_details_pb2.ErrorInfo()
                        answer.error.details[0].Unpack(info)
                        unavailable = Unavailable(answer.error.message, reason=info.reason)
                    else:
                        self.lost.append(f"stream: {answer.error.message}")
                    continue
                try:
                    check(array(answer.encode.latents), tiny.encode(rows))
                except AssertionError as error:
                    self.wrong.append(f"stream: {error}")
                self._note(answered=1)
        except grpc.RpcError as error:
            return from_rpc(error, address=self._address)
        return unavailable


def assert_serves(address: str, **options: Any) -> None:
    """A client that comes now gets right answers of every kind."""
    with Client(address, **options) as client:
        for operation in OPERATIONS:
            operation(client, 7, timeout_s=CALL_S)


def wait_until(what: Callable[[], bool], why: str) -> None:
    until = time.monotonic() + SETTLE_S
    while not what():
        assert time.monotonic() < until, why
        time.sleep(_PAUSE_S)  # asking costs the service's time too


def wait_until_idle(server: ServerProcess) -> None:
    """Nothing that callers left behind stays."""

    def idle() -> bool:
        return server.metric("autoencoder_requests_in_flight") == server.metric("autoencoder_queue_rows") == 0

    wait_until(idle, "requests of nobody are still in flight")


def assert_clean_end(server: ServerProcess) -> None:
    """After its stop: the exit code, and nothing in the log that is the service's own fault."""
    assert server.process.returncode == 0, server.process.returncode
    assert not server.other_lines, server.other_lines
    bugs = [event for event in server.events if "this is a bug" in str(event["event"])]
    assert not bugs, bugs
