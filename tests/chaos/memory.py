"""The service has little memory, or is asked whether it gives back what it takes."""

from __future__ import annotations

import resource
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass.errors import Unavailable
from tests import tiny
from tests.chaos.clients import requests_of_every_kind
from tests.chaos.groups import VARIABLE, MemoryGroup
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
from tests.integration.test_memory import resident_bytes
from tests.integration.test_service import TINY, array, tensor
from tests.integration.test_workers import pids

# Growth that is no leak: the allocator's arenas are filled little by little.
_SLACK_BYTES = 2 << 20
_BYTES_A_REQUEST = 64
_MARGIN_BYTES = 8 << 20
_GROUP_MARGIN_BYTES = 96 << 20
_LARGE_ROWS, _HUGE_ROWS = 60_000, 240_000  # 4 and 15 MB


class Leak(AssertionError):
    pass


def leaks(folder: Path, count: int) -> dict[str, float]:
    """Resident memory over so many requests of every kind, after as many to warm up; and the same of a service that
    keeps every request, which must be found out."""
    tiny.write(folder)
    grown = _growth(folder, count, "service")
    try:
        control = _growth(folder, count, "tests.chaos.leaking")
    except Leak as leak:
        control = leak.args[0]
    else:
        raise AssertionError(f"a service that keeps every request was not found out: it grew by {control} bytes")
    return {"requests": count, "MiB grown": grown / 2**20, "MiB grown with a leak": control / 2**20}


def _growth(folder: Path, count: int, module: str) -> int:
    """Raises Leak with the bytes where there are too many."""
    with ServerProcess(folder, module=module) as server:
        requests_of_every_kind(server.address, count)
        wait_until_idle(server)
        before = resident_bytes(server.process.pid)
        failed = requests_of_every_kind(server.address, count)
        assert failed > 0
        wait_until_idle(server)
        grown = resident_bytes(server.process.pid) - before
        assert_serves(server.address)
    assert_clean_end(server)
    if grown > _SLACK_BYTES + _BYTES_A_REQUEST * count:
        raise Leak(grown)
    return grown


def encode_once(address: str, rows: int) -> str:
    """What became of a request that is not tried again. Raises AssertionError where the answer is wrong."""
    sent = unlike_any(rows)
    with channel(address) as opened:
        try:
            answer = AutoencoderServiceStub(opened).Encode(
                pb.EncodeRequest(model=TINY, rows=tensor(sent)), timeout=CALL_S
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    check(array(answer.latents), tiny.encode(sent))
    return "OK"


def little_memory(folder: Path, count: int) -> dict[str, float]:
    """One of two workers, and each that replaces it, may take little more memory than it has when it starts, and gets
    large requests, so many in all. A request is answered rightly or with an error, in its time; a worker that cannot go
    on ends, and is replaced; clients that try again notice nothing."""
    tiny.write(folder)
    outcomes: Counter[str] = Counter()
    bounded: set[int] = set()
    lock = threading.Lock()
    with ServerProcess(folder, "--workers", "2", "--max-queue-rows", str(8 * _LARGE_ROWS)) as server:

        def limit(pid: int, size_bytes: int) -> None:
            with suppress(OSError):  # it may have ended already
                resource.prlimit(pid, resource.RLIMIT_DATA, (size_bytes, resource.RLIM_INFINITY))

        def bound() -> None:
            pid = pids(server)[0]
            with lock, suppress(OSError):
                if pid not in bounded:
                    limit(pid, data_bytes(pid) + _MARGIN_BYTES)
                    bounded.add(pid)

        def large(number: int) -> str:
            outcome = encode_once(server.address, _LARGE_ROWS)
            bound()
            return outcome

        bound()
        with Load(server.address, attempts=5) as load, ThreadPoolExecutor(4) as pool:
            outcomes.update(pool.map(large, range(count)))
            load.wait_for_more(20)
        assert set(outcomes) <= {"OK", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}, outcomes
        assert outcomes["OK"], outcomes
        wait_until(lambda: server.metric("autoencoder_workers") == 2, "a worker is not replaced")
        assert_serves(server.address)
        # At the limit Python may wait for ever for a thread that it starts, and a stop needs some.
        for pid in bounded:
            limit(pid, resource.RLIM_INFINITY)
        codes = Counter(event["exit_code"] for event in server.events if event["event"] == "worker died")
    large_ones = {f"large: {name}": number for name, number in sorted(outcomes.items())}
    return load.figures | large_ones | {f"workers ended with {code}": number for code, number in codes.items()}


def memory_of_a_group(folder: Path, count: int) -> dict[str, float]:
    """The service, of two workers, is in a control group that may take some more memory than it has when it starts, as a
    container is, and gets large requests, so many in all. The kernel ends the largest worker when there is none left;
    it is replaced. As the other may be the next, to make room for the new one, callers that try again for three seconds
    are answered rightly or UNAVAILABLE."""
    tiny.write(folder)
    outcomes: Counter[str] = Counter()
    with (
        MemoryGroup() as group,
        ServerProcess(
            folder,
            *("--workers", "2", "--max-queue-rows", str(8 * _HUGE_ROWS), "--max-message-bytes", str(16 << 20)),
            module="tests.chaos.grouped",
            environment={VARIABLE: str(group.path)},
        ) as server,
    ):
        with Load(server.address, attempts=5, may_refuse=lambda error: isinstance(error, Unavailable)) as load:
            group.limit(group.usage_bytes + _GROUP_MARGIN_BYTES)
            outcomes.update(encode_once(server.address, _HUGE_ROWS) for _ in range(count))
            load.wait_for_more(20)
        assert set(outcomes) <= {"OK", "UNAVAILABLE"}, outcomes
        assert outcomes["OK"], outcomes
        wait_until(lambda: server.metric("autoencoder_workers") == 2, "a worker is not replaced")
        assert_serves(server.address)
        kills = group.kills
        assert kills, f"nothing was ended for want of memory: {outcomes}"
        codes = Counter(event["exit_code"] for event in server.events if event["event"] == "worker died")
        assert codes == {-signal.SIGKILL: kills}, (codes, kills)
    assert_clean_end(server)
    large_ones = {f"large: {name}": number for name, number in sorted(outcomes.items())}
    return load.figures | large_ones | {"workers ended": kills}


def memory_for_all_but_one(folder: Path, count: int) -> dict[str, float]:
    """The service may take little more memory than it has, and is asked, so many times, for what does not fit: that
    request is told so, nobody else notices, and the process is the same. When there is memory again, it is answered."""
    tiny.write(folder)
    pairs, steps = 4_000, 1_000
    rows = [unlike_any(pairs), unlike_any(pairs)]
    start, end = map(tiny.encode, rows)
    request = pb.InterpolateRequest(
        model=TINY, latents=pb.TensorPair(start=tensor(start), end=tensor(end)), steps=steps
    )
    small = pb.InterpolateRequest(
        model=TINY, latents=pb.TensorPair(start=tensor(start[:4]), end=tensor(end[:4])), steps=steps
    )
    with (
        ServerProcess(folder, "--max-queue-rows", str(pairs * steps)) as server,
        channel(server.address) as opened,
    ):
        stub = AutoencoderServiceStub(opened)
        pid = server.process.pid
        assert_serves(server.address)
        with Load(server.address) as load:
            resource.prlimit(pid, resource.RLIMIT_DATA, (data_bytes(pid) + 2 * _MARGIN_BYTES, resource.RLIM_INFINITY))
            for _ in range(count):
                with suppress(grpc.RpcError):
                    stub.Interpolate(request, timeout=CALL_S)
                    raise AssertionError("48 MB of latents were found where there are 16")
                load.wait_for_more(10)
            refused = server.metric('autoencoder_rejected_requests_total{reason="NO_MEMORY"}')
            assert refused == count, f"{count} requests without memory, {refused} told so"
            resource.prlimit(pid, resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            answer = stub.Interpolate(small, timeout=CALL_S)
            check(array(answer.rows)[:, -1], tiny.decode(end[:4]))
        wait_until_idle(server)
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"refused": refused}


def data_bytes(pid: int | str) -> int:
    """What the kernel counts against RLIMIT_DATA."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024
