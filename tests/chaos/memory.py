"""The service has little memory, or is asked whether it gives back what it takes."""

from __future__ import annotations

import resource
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from tests import tiny
from tests.chaos.clients import requests_of_every_kind
from tests.chaos.load import CALL_S, Load, assert_clean_end, assert_serves, channel, check, unlike_any, wait_until_idle
from tests.integration.serving import ServerProcess
from tests.integration.test_memory import resident_bytes
from tests.integration.test_service import TINY, array, tensor
from tests.integration.test_workers import pids

# Growth that is no leak: the allocator's arenas are filled little by little.
_SLACK_BYTES = 4 << 20
_BYTES_A_REQUEST = 64


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


def little_memory(folder: Path, count: int) -> dict[str, float]:
    """Address space of little more than the workers have when they start, and so many large requests at a time for it.
    A request is answered rightly or with an error, in its time; a worker that dies for it is replaced; small requests of
    clients that try again are all answered."""
    tiny.write(folder)
    rows = 60_000  # 4 MB
    limits = ("--workers", "2", "--max-queue-rows", str(4 * rows))
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    with ServerProcess(folder, *limits) as server:
        bounded: set[int] = set()

        def bound() -> None:
            for pid in set(pids(server).values()) - bounded:
                size = virtual_bytes(pid) + (24 << 20)
                resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
                bounded.add(pid)

        def large(number: int) -> None:
            sent = unlike_any(rows)
            with channel(server.address) as opened:
                try:
                    answer = AutoencoderServiceStub(opened).Encode(
                        pb.EncodeRequest(model=TINY, rows=tensor(sent)), timeout=CALL_S
                    )
                except grpc.RpcError as error:
                    outcome = error.code().name
                else:
                    check(array(answer.latents), tiny.encode(sent))
                    outcome = "OK"
            with lock:
                outcomes[outcome] += 1

        bound()
        with Load(server.address, attempts=5) as load, ThreadPoolExecutor(8) as pool:
            list(pool.map(large, range(count)))
            load.wait_for_more(20)
        allowed = {"OK", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        assert set(outcomes) <= allowed, outcomes
        assert_serves(server.address)
        restarts = server.metric("autoencoder_worker_restarts_total")
    return load.figures | {f"large: {name}": number for name, number in outcomes.items()} | {"workers died": restarts}


def virtual_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize"))
    return int(line.split()[1]) * 1024
