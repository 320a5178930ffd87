"""The fast transport: one thread on grpcio's completion queue, without hand-offs between threads.

The thread takes what is ready from the queue: a new call asks for its message, a message is read and admitted. When
nothing more is ready, the rows that came are a batch; it is run in the same thread, and each answer goes out in one
operation. Other threads may answer too: they leave the answer for this thread and wake it.

It stands on layers of grpcio that are not public, the same in a range of versions; `why_not` tries them. Methods given
to `add_service` take this path. All others (health's Watch, anything with generated handlers) go untouched through
grpcio's own code, on a small pool of threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value
from grpc import _server
from prometheus_client import CollectorRegistry

from service import connections, grpc_core
from service.admission import Admission
from service.calls import Method
from service.corks import Corks
from service.errors import Cancelled
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observer
from service.rpcs import Event, Rpc, UnaryRpc
from service.stream_rpcs import StreamRpc
from service.threads import started_pool
from service.transport import GuardInterceptor, Limits, Meter, listen, server_options

log = logging.getLogger(__name__)

_POLL_S = 0.1
# A call that lives so long wants to know when its caller goes away; shorter ones do not pay for it.
_LONG_CALL_S = 0.25
# Scheduled work is done after so many events even if there are more.
_MAX_EVENTS = 512
# Where there is always one more, long calls are looked after so many.
_UNWATCHED_EVENTS = 64
# One poll reads from one connection at most, and what it finds there need not be a request; others may have some.
_EMPTY_POLLS = 2
_FAREWELL_S = 1.0
_SELF_TEST_S = 10.0
_SLOW_LANE_THREADS = 16
_WAKE = "wake"

_STARTED = _server._ServerStage.STARTED
_TAG = MethodType


class CompletionQueueTransport:
    """A `transport.Transport`."""

    def __init__(
        self,
        *,
        limits: Limits,
        metrics: Metrics,
        share_port: bool = False,
        guard: Guard | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._port = 0
        self._admission = Admission(limits.max_concurrent_requests)
        metrics.requests_in_flight.set_function(lambda: self._admission.inside)
        self._pool = started_pool(_SLOW_LANE_THREADS, "handler")
        self._loop = _Loop(
            self._pool,
            self._admission,
            server_options(limits, share_port=share_port),
            limits,
            guard,
            observer or Observer(),
        )

    @property
    def server(self) -> grpc.Server:
        return self._loop

    @property
    def work(self) -> _Loop:
        return self._loop

    def add_service(self, name: str, methods: Mapping[str, Method[Any]]) -> None:
        for method_name, method in methods.items():
            full_name = f"/{name}/{method_name}"
            self._loop.add_method(full_name, method, Meter.of(self._metrics, full_name, method))

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        self._port = self._loop.corks.port = listen(self._loop, address, credentials)
        return self._port

    def start(self) -> None:
        self._loop.start()

    def stop(self, grace_s: float) -> None:
        until = time.monotonic() + grace_s
        self._admission.refuse()
        self._loop.drain()
        self._admission.wait_until_empty(until)
        connections.end(self._port, _FAREWELL_S)
        # Calls that did not end in their time, and streams such as health's Watch, which never end by themselves.
        self._loop.stop(_FAREWELL_S).wait()
        self._loop.join()
        self._pool.shutdown()


def why_not() -> str | None:
    """Why this transport cannot be used with the grpcio that is installed; None where calls and streams get through."""
    if not grpc_core.is_known():
        return f"grpcio {grpc.__version__} is not one whose private layers are known ({grpc_core.KNOWN})"
    try:
        _try()
    except Exception as error:  # whatever a changed private layer may raise
        return f"its self-test on grpcio {grpc.__version__} failed: {error!r}"
    return None


def _try() -> None:
    """A unary call, an error and a stream, over loopback."""

    def echo(request: Int64Value, call: Any) -> None:
        if request.value < 0:
            raise Cancelled("SELF_TEST", "wanted")
        call.answer(lambda: request)

    limits = Limits(max_concurrent_requests=8, max_message_bytes=1024, max_stream_requests=2)
    transport = CompletionQueueTransport(limits=limits, metrics=Metrics(CollectorRegistry()))
    methods = {
        name: Method(parse=Int64Value.FromString, handle=echo, stream=name == "Stream") for name in ("Unary", "Stream")
    }
    transport.add_service("hourglass.SelfTest", methods)
    port = transport.bind("127.0.0.1:0")
    transport.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            serialisers = Int64Value.SerializeToString, Int64Value.FromString
            unary = channel.unary_unary("/hourglass.SelfTest/Unary", *serialisers)
            stream = channel.stream_stream("/hourglass.SelfTest/Stream", *serialisers)
            numbers = [Int64Value(value=value) for value in range(5)]
            if unary(numbers[3], timeout=_SELF_TEST_S) != numbers[3]:
                raise ValueError("a call came back changed")
            try:
                unary(Int64Value(value=-1), timeout=_SELF_TEST_S)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    raise
            else:
                raise ValueError("an error came back as an answer")
            if list(stream(iter(numbers), timeout=_SELF_TEST_S)) != numbers:
                raise ValueError("a stream came back changed")
    finally:
        transport.stop(_SELF_TEST_S)


class _Loop(_server._Server):  # type: ignore[misc]
    """grpcio's server with a loop of its own, and methods that the loop serves itself."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        admission: Admission,
        options: list[tuple[str, int]],
        limits: Limits,
        guard: Guard | None,
        observer: Observer,
    ) -> None:
        # The methods that the loop serves itself never come to the interceptor.
        interceptors = () if guard is None else (GuardInterceptor(guard, own=lambda method: False),)
        super().__init__(pool, (), interceptors, options, limits.max_concurrent_requests, None, False)
        self.guard = guard
        self.observer = observer
        self.admission = admission
        self.corks = Corks()
        self.limits = limits
        self.streams: set[StreamRpc] = set()
        # Calls that do not listen for their caller's leaving yet, the oldest first.
        self.unwatched: dict[UnaryRpc, None] = {}
        # Calls that do listen, and whose message has not come yet, the oldest first.
        self.unread: dict[UnaryRpc, None] = {}
        self.draining = False
        self._poll = self._state.completion_queue.poll
        self._methods: dict[str, tuple[Method[Any], Meter]] = {}
        self._work: deque[Callable[[], bool]] = deque()
        self._idle_work: deque[Callable[[], object]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._ident = 0
        self._thread = threading.Thread(target=self._run, name="completion-queue", daemon=True)

    def add_method(self, full_name: str, method: Method[Any], meter: Meter) -> None:
        self._cy_server.register_method(full_name)
        self._methods[full_name] = method, meter

    def start(self) -> None:
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = _STARTED
            for name in (*self._methods, *state.registered_method_handlers):
                _server._request_registered_call(state, name)
            _server._request_call(state)
        self._thread.start()

    def drain(self) -> None:
        """End the streams when what they brought is answered. From any thread, once started."""
        self.draining = True

    def hold(self, rpc: Rpc) -> None:
        self._state.rpc_states.add(rpc)

    def let_go(self, rpc: Rpc) -> None:
        self._state.rpc_states.discard(rpc)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def schedule(self, step: Callable[[], bool]) -> None:
        self._work.append(step)

    def schedule_idle(self, step: Callable[[], object]) -> None:
        self._idle_work.append(step)

    @property
    def is_here(self) -> bool:
        return threading.get_ident() == self._ident

    def post(self, call: Any, action: Callable[[], None]) -> None:
        """Have `action` done by the loop. From any thread; `call`, which must not have been answered yet, carries the
        wake-up: an empty batch of operations on it is ready at once."""
        self._posted.append(action)
        with self._state.lock:
            if self._woken:
                return
            self._woken = True
            self._state.due.add(_WAKE)
        call.start_server_batch((), self._wake)

    def _wake(self, event: Event) -> None:
        with self._state.lock:
            self._state.due.remove(_WAKE)
            self._woken = False
        while self._posted:
            try:
                self._posted.popleft()()
            except Exception:  # the others must not wait for the next that is posted
                log.exception("this is a bug: what was posted failed")

    def _run(self) -> None:
        state, poll, methods = self._state, self._poll, self._methods
        work, idle_work, corks = self._work, self._idle_work, self.corks
        self._ident = threading.get_ident()
        events = empty_polls = 0
        watch_at = 0.0
        going_on = True
        while going_on:
            event = poll(0.0 if work or idle_work else time.time() + _POLL_S)
            tag = event.tag
            try:
                if type(tag) is _TAG:
                    tag(event)
                elif tag in methods:
                    self._begin(tag, event)
                elif tag is not None:
                    going_on = _server._process_event_and_continue(state, event)
            except Exception:
                log.exception("this is a bug: an event failed")
            events += 1
            empty_polls = empty_polls + 1 if tag is None else 0
            # A call that is kept alive here keeps grpcio from ending it.
            event = tag = None
            # Nothing is ready: this is the batch. What a step raises, for want of memory say, would leave requests
            # without an answer, and whoever waits for it waiting: it ends this thread, and with it the process.
            if work and (empty_polls >= _EMPTY_POLLS or events >= _MAX_EVENTS):
                events = empty_polls = 0
                step = work.popleft()
                if step():
                    work.append(step)
            elif idle_work and empty_polls >= _EMPTY_POLLS:
                events = empty_polls = 0
                idle_work.popleft()()
            if (empty_polls or not events % _UNWATCHED_EVENTS) and (
                (now := time.monotonic()) >= watch_at or self.draining
            ):
                watch_at = now + _LONG_CALL_S
                self._watch(now)
            if corks.corked:
                corks.release()
            if state.stage is not _STARTED and going_on:
                with state.lock:
                    going_on = not _server._stop_serving(state)

    def _begin(self, name: str, event: Event) -> None:
        state = self._state
        with state.lock:
            state.due.remove(name)
            if state.stage is _STARTED:
                _server._request_registered_call(state, name)
        if not event.success:
            return
        method, meter = self._methods[name]
        (StreamRpc if method.stream else UnaryRpc)(self, method, meter, event).begin()

    def _watch(self, now: float) -> None:
        """Let calls that have been here for long listen for their caller's leaving (at a stop, all), and end those
        whose message does not come."""
        while self.unwatched:
            call = next(iter(self.unwatched))
            if now - call.began < _LONG_CALL_S and not self.draining:
                break
            call.watch()
        while self.unread:
            call = next(iter(self.unread))
            if now - call.began < self.limits.receive_timeout_s:
                break
            call.refuse_to_wait()
        if self.draining:
            for stream in tuple(self.streams):
                stream.drain()
