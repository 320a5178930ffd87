"""How many calls are inside, and how they leave at a stop."""

from __future__ import annotations

import threading
import time
from functools import partial

from service.errors import Overloaded, Unavailable

_QUIET_S = 0.1
_LINGER_S = 2.0
_RETRY_AFTER_S = 0.1


class Admission:
    """Counts the calls of a transport; at most `max_requests` are inside. For any thread."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._refused = 0
        self._draining = False

    @property
    def inside(self) -> int:
        return self._inside

    def enter(self) -> None:
        """Let a call in, which must `leave`. Raises Unavailable at a stop and Overloaded where there are too many."""
        with self._lock:
            if self._draining:
                self._refused += 1
                self._changed.notify_all()
                raise Unavailable("DRAINING", "the service is stopping; send the request elsewhere")
            if self._inside >= self._max_requests:
                raise Overloaded(
                    "TOO_MANY_REQUESTS",
                    f"--max-concurrent-requests={self._max_requests} RPCs are under way; try again later",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._draining:
                self._changed.notify_all()

    def refuse(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._draining = True

    def wait_until_empty(self, until: float) -> None:
        """After `refuse`: wait for the calls inside, until that time on the monotonic clock, then for latecomers.

        grpcio cancels calls that have reached it and no handler when its server is stopped, and their callers cannot
        tell that they were not run. So they are refused by name for as long as they keep coming, within reason.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0, until - time.monotonic())
            linger_until = time.monotonic() + _LINGER_S
            seen = self._refused
            while self._changed.wait_for(partial(self._has_refused_more, seen), _QUIET_S):
                seen = self._refused
                if time.monotonic() >= linger_until:
                    return

    def _has_refused_more(self, than: int) -> bool:
        return self._refused > than
