from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from service import threads
from tests.integration.serving import ROOT

PROGRAM = """
import sys, threading, time
from service import logs, threads

logs.configure(format="json", level="info")
threads.end_with_any()

def fail():
    raise MemoryError("no more")

threading.Thread(target=fail, name="the-loop").start()
time.sleep(60)
"""


def test_a_process_ends_with_a_thread_that_fails_and_says_why() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == threads.EXIT_CODE
    (line,) = done.stderr.splitlines()
    event = json.loads(line)
    assert event["event"] == "a thread has failed: the process ends"
    assert (event["failed_thread"], event["reason"]) == ("the-loop", "MemoryError('no more')")
    assert " in fail\n" in event["traceback"]
    assert event["traceback"].endswith("MemoryError: no more")


TRANSPORT = """
import time
from prometheus_client import CollectorRegistry
from service import logs, threads
from service.completion_queue import CompletionQueueTransport
from service.metrics import Metrics
from service.transport import Limits

logs.configure(format="json", level="info")
threads.end_with_any()
limits = Limits(max_concurrent_requests=8, max_message_bytes=1024, max_stream_requests=2)
transport = CompletionQueueTransport(limits=limits, metrics=Metrics(CollectorRegistry()))
transport.bind("127.0.0.1:0")

def fail():
    raise MemoryError("no more")

transport.work.{schedule}(fail)
transport.start()
time.sleep(60)
"""


@pytest.mark.parametrize("schedule", ["schedule", "schedule_idle"])
def test_a_process_ends_with_a_batch_that_costs_requests_their_answer(schedule: str) -> None:
    """They would wait for ever, and so would all that come after them for this model."""
    program = TRANSPORT.format(schedule=schedule)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert done.returncode == threads.EXIT_CODE
    assert json.loads(done.stderr.splitlines()[-1])["failed_thread"] == "completion-queue"


def test_all_threads_of_a_started_pool_are_there() -> None:
    before = threading.active_count()
    with threads.started_pool(5, "five") as pool:
        assert threading.active_count() == before + 5
        together = threading.Barrier(5)
        assert sorted(pool.map(lambda _: together.wait(10), range(5))) == [0, 1, 2, 3, 4]
    assert threading.active_count() == before


def test_a_pool_that_cannot_be_started_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    start, left = threading.Thread.start, iter(range(3))

    def start_three(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.started_pool(5, "five")
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
