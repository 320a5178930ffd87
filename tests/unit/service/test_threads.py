from __future__ import annotations

import json
import subprocess
import sys

from service import threads

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
    assert "in fail\nMemoryError: no more" in event["traceback"]
