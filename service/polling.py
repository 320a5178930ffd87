"""Something that is looked at again and again, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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
