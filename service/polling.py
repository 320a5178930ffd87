"""Something that is looked at again and again, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Poll:
    """Calls `look` every `interval_s` while the block lasts; an error of one look is logged and does not end it."""

    def __init__(self, interval_s: float, look: Callable[[], object], *, name: str) -> None:
        self._interval_s = interval_s
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._look()
            except Exception:
                log.exception("this is a bug: a look failed", extra={"what": self._thread.name})


class Changes:
    """Tells when files have changed and come to rest: whoever replaces several of them is not caught in the middle."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._taken = self._seen = self._look()

    def settled(self) -> bool:
        """Whether the files are other than when this was true last, and the same as at the last look."""
        now = self._look()
        at_rest, self._seen = now == self._seen, now
        if not at_rest or now == self._taken:
            return False
        self._taken = now
        return True

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stat, self._paths))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
