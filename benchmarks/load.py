"""What every benchmark of a server needs: h2load, and processes that stay on their cores and end as a whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
END_S = 10.0  # how long a process that was asked to end may take


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests in flight: as many on each connection as streams says."""

    connections: int
    streams: int = 1

    @property
    def in_flight(self) -> int:
        return self.connections * self.streams


@dataclass(frozen=True, kw_only=True)
class Count:
    """What h2load counted. Bytes are those of answers' bodies (DATA frames), those of the warm-up included."""

    requests_per_s: float
    succeeded: int
    failed: int
    data_bytes: int


def h2load(
    url: str,
    body: Path,
    load: Load,
    *,
    seconds: float | None = None,
    requests: int | None = None,
    headers: Sequence[str] = (),
    http1: bool = False,
) -> Count:
    """Posts the body again and again: for so many seconds (after a warm-up of 0.3 s), or so many times.

    h2load counts HTTP statuses: a gRPC call that failed has 200 as well, so look at the bytes, or ask the server.
    Raises ValueError if its output says less than that it ran, subprocess.CalledProcessError if it failed.
    """
    if (seconds is None) == (requests is None):
        raise ValueError("either seconds or requests says how long the load lasts")
    length = (
        ["--requests", str(requests)]
        if seconds is None
        else ["--duration", f"{int(seconds * 1000)}ms", "--warm-up-time", "300ms"]
    )
    command = [
        "h2load", "--clients", str(load.connections), "--max-concurrent-streams", str(load.streams), "--threads", "1",
        *length, "--data", str(body), *(argument for header in headers for argument in ("--header", header)),
        *(["--h1"] if http1 else []), url,
    ]  # fmt: skip
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(output: str) -> Count:
    """h2load's own account of a run."""
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    totals = re.search(r"requests: .* (\d+) succeeded, (\d+) failed", output)
    data = re.search(r"traffic: .* [\d.]+\w+ \((\d+)\) data", output)
    if rate is None or totals is None or data is None:
        raise ValueError(f"h2load gave no figures: {output}")
    return Count(
        requests_per_s=float(rate[1]), succeeded=int(totals[1]), failed=int(totals[2]), data_bytes=int(data[1])
    )


@contextmanager
def process(
    command: Sequence[str],
    cores: set[int],
    *,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, on these cores, with all that it starts; ended, all of it, with the block.

    Its lines are in log, or, without one, to be read from its stdout. Its stdin stays open until the end. SIGTERM ends
    the block too, where it is the main thread's.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]
    with open(log or os.devnull, "wb") as file:
        server = subprocess.Popen(
            pinned, cwd=ROOT, env=None if environment is None else {**os.environ, **environment},
            stdin=subprocess.PIPE, stdout=file if log else subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield server
    finally:
        end(server)


def _leave(number: int, frame: object) -> NoReturn:
    """As an exception, so that whatever is open is closed."""
    raise SystemExit(128 + number)


def end(server: subprocess.Popen[str]) -> None:
    """Asks the leader of a session to end, then kills what is left of its family."""
    members = family(server.pid)
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.communicate(timeout=END_S)
    deadline = time.monotonic() + END_S
    while (left := (members | family(server.pid)) & running()) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    server.communicate()
    if left:
        raise RuntimeError(f"processes that outlive SIGKILL: {sorted(left)}")


def family(leader: int) -> set[int]:
    """The processes of the leader's session and all their descendants: some servers' children begin sessions too."""
    parents = processes()
    members = {pid for pid, (_, session) in parents.items() if session == leader}
    while more := {pid for pid, (parent, _) in parents.items() if parent in members} - members:
        members |= more
    return members


def running() -> set[int]:
    return set(processes())


def processes() -> dict[int, tuple[int, int]]:
    """Parent and session by process, of those that have not ended."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything: state, parent, process group, session.
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), int(session))
    return found
