"""Threads: a process does not outlive one of its own, and those that calls need are there from the start."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from service.errors import Overloaded

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
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


def no_thread() -> Overloaded:
    return Overloaded(
        "NO_THREAD", "no thread could be started for this call; try again later", retry_after_s=_RETRY_AFTER_S
    )


def started_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, all of which are running.

    A pool by itself starts one when it is first needed: where threads or memory have run out, the call that needs it
    gets none, and `Thread.start` waits for ever for one that finds no memory to begin. Raises RuntimeError.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_there = threading.Barrier(count)
    try:
        begun = [pool.submit(all_there.wait) for _ in range(count)]
    except BaseException:
        all_there.abort()
        raise
    for each in begun:
        each.result()
    return pool
