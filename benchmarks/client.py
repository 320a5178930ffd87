"""Two callers of a running service, for benchmarks/serving.py, each in a process of its own.

python -m benchmarks.client rows ADDRESS MODEL ROWS      # Client.encode of so many rows: rows a second
python -m benchmarks.client tasks ADDRESS MODEL TASKS    # so many tasks of a row each, one AsyncClient: rows a second
python -m benchmarks.client alone ADDRESS MODEL CALLS    # single rows, one after the other: p50 and p99 in seconds
"""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np

from benchmarks.subjects import digits
from hourglass import AsyncClient, Client


def rows_a_second(address: str, model: str, count: int) -> float:
    rows = digits(count)
    with Client(address) as client:
        client.encode(model, rows[:256])
        began = time.perf_counter()
        client.encode(model, rows)
        return count / (time.perf_counter() - began)


def tasks_a_second(address: str, model: str, count: int) -> float:
    rows = digits(count)

    async def run() -> float:
        async with AsyncClient(address) as client:
            await client.encode(model, rows[:1])
            began = time.perf_counter()
            await asyncio.gather(*(client.encode(model, rows[number : number + 1]) for number in range(count)))
            return count / (time.perf_counter() - began)

    return asyncio.run(run())


def latencies(address: str, model: str, count: int) -> tuple[float, float]:
    row = digits(1)
    times = []
    with Client(address, connections=1) as client:
        for _ in range(count + 20):
            began = time.perf_counter()
            client.encode(model, row)
            times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times[20:], (50, 99)).tolist()
    return p50, p99


if __name__ == "__main__":
    what, address, model, count = sys.argv[1:]
    measure = {"rows": rows_a_second, "tasks": tasks_a_second, "alone": latencies}[what]
    result = measure(address, model, int(count))
    print(*(result if isinstance(result, tuple) else (result,)))
