"""Two callers of a running service, for benchmarks/serving.py, each in a process of its own.

python -m benchmarks.client rows ADDRESS MODEL ROWS      # Client.encode of so many rows: rows a second
python -m benchmarks.client streams ADDRESS MODEL ROWS   # the same rows by Stream, a stream a connection: rows a second
python -m benchmarks.client tasks ADDRESS MODEL TASKS    # so many tasks of a row each, one AsyncClient: rows a second
python -m benchmarks.client encode ADDRESS MODEL CALLS   # single rows, one after the other: p50 and p99 in seconds
python -m benchmarks.client decode ADDRESS MODEL CALLS   # the same of latents
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from benchmarks.subjects import digits, encode_request
from hourglass import AsyncClient, Client

MESSAGE_ROWS, IN_FLIGHT, CONNECTIONS = 256, 4, 4  # as the client has by default


def rows_a_second(address: str, model: str, count: int) -> float:
    rows = digits(count)
    with Client(address) as client:
        client.encode(model, rows[:256])
        began = time.perf_counter()
        client.encode(model, rows)
        return count / (time.perf_counter() - began)


def streamed_rows_a_second(address: str, model: str, count: int) -> float:
    """What `Client.encode` would be, did it use streams: messages of as many rows, on as many connections."""
    rows = digits(count)
    latents: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}

    def send(first: int) -> None:
        room = threading.Semaphore(IN_FLIGHT // CONNECTIONS)

        def requests() -> Iterator[pb.StreamRequest]:
            for start in range(first * MESSAGE_ROWS, count, CONNECTIONS * MESSAGE_ROWS):
                room.acquire()
                yield pb.StreamRequest(id=start, encode=encode_request(model, rows[start : start + MESSAGE_ROWS]))

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            for response in AutoencoderServiceStub(channel).Stream(requests(), wait_for_ready=True):
                room.release()
                tensor = response.encode.latents
                latents[response.id] = np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))

    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, range(CONNECTIONS)))
    whole = np.concatenate([latents[start] for start in sorted(latents)])
    elapsed = time.perf_counter() - began
    assert len(whole) == count
    return count / elapsed


def tasks_a_second(address: str, model: str, count: int) -> float:
    rows = digits(count)

    async def run() -> float:
        async with AsyncClient(address) as client:
            await client.encode(model, rows[:1])
            began = time.perf_counter()
            await asyncio.gather(*(client.encode(model, rows[number : number + 1]) for number in range(count)))
            return count / (time.perf_counter() - began)

    return asyncio.run(run())


def latencies(operation: str, address: str, model: str, count: int) -> tuple[float, float]:
    row = digits(1)
    times = []
    with Client(address, connections=1) as client:
        latent = client.encode(model, row)
        for _ in range(count + 20):
            began = time.perf_counter()
            if operation == "encode":
                client.encode(model, row)
            else:
                client.decode(model, latent)
            times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times[20:], (50, 99)).tolist()
    return p50, p99


MEASURES: dict[str, Callable[[str, str, int], float | tuple[float, float]]] = {
    "rows": rows_a_second,
    "streams": streamed_rows_a_second,
    "tasks": tasks_a_second,
    "encode": partial(latencies, "encode"),
    "decode": partial(latencies, "decode"),
}

if __name__ == "__main__":
    what, address, model, count = sys.argv[1:]
    result = MEASURES[what](address, model, int(count))
    print(*(result if isinstance(result, tuple) else (result,)))
