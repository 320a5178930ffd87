"""A process does not outlive one of its threads."""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


def end_with_any() -> None:
    """Have the process end at once, with `EXIT_CODE`, when an error ends one of its threads.

    Whatever the thread did is not done any more: without the one that takes the calls, say, the process would say that
    it serves and never answer. Its clients try again elsewhere, and whoever started it starts another. This happens
    where memory runs out in the libraries' own loops; an event that is lost there cannot be got back.
    """
    threading.excepthook = _end


def _end(facts: threading.ExceptHookArgs) -> None:
    try:
        name = facts.thread.name if facts.thread is not None else ""
        error = facts.exc_value
        log.critical(
            "a thread has failed: the process ends",
            extra={"failed_thread": name, "reason": repr(error)},
            exc_info=error if error is not None else False,
        )
    finally:
        os._exit(EXIT_CODE)
