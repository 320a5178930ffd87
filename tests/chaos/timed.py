"""The service with a watch on its refusals and answers: python -m tests.chaos.timed FLAGS...

A request comes into the kernel's buffer, and it is the loop's thread that reads it there, when it has nothing else to
do. So its time begins, at the latest, when that thread last found nothing to read (as the loop does, after two polls),
and ends when its refusal or its answer is handed to grpc. Told in the log at the end, for each: by the clock, and by the
time that the thread was running, which leaves out what others on the machine took from it.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from service import grpc_core

grpc_core.poll_connections(os.environ)

from service import __main__, completion_queue, rpcs  # noqa: E402
from service.errors import Overloaded, ServiceError  # noqa: E402

EVENT = "calls timed"

Times = tuple[float, float]


def now() -> Times:
    return time.monotonic(), time.thread_time()


class Watch:
    """Beside the loop, in its thread."""

    def __init__(self) -> None:
        self.refusals: list[Times] = []
        self.answers: list[Times] = []
        self.idle_since = now()
        self._empty_polls = 0

    def polling(self, poll: Callable[[float], Any]) -> Callable[[float], Any]:
        def timed(deadline: float) -> Any:
            event = poll(deadline)
            self._empty_polls = self._empty_polls + 1 if event.tag is None else 0
            if self._empty_polls >= 2:
                self.idle_since = now()
            return event

        return timed


def main() -> int:
    watch = Watch()
    run = completion_queue._Loop._run

    class TimedCall(rpcs.UnaryRpc):
        def begin(self) -> None:
            self._idle_since = watch.idle_since
            super().begin()

        def _end_with(self, error: ServiceError) -> None:
            super()._end_with(error)
            if isinstance(error, Overloaded):
                watch.refusals.append(self._taken())

        def _answer(self, build: Callable[[], Message]) -> None:
            super()._answer(build)
            watch.answers.append(self._taken())

        def _taken(self) -> Times:
            clock_s, thread_s = now()
            return clock_s - self._idle_since[0], thread_s - self._idle_since[1]

    def timed_run(loop: Any) -> None:
        loop._poll = watch.polling(loop._poll)
        run(loop)

    vars(completion_queue)["UnaryRpc"] = TimedCall
    vars(completion_queue)["_Loop"]._run = timed_run
    code = __main__.main()
    facts = {
        "refusals_clock_s": [clock_s for clock_s, _ in watch.refusals],
        "refusals_thread_s": [thread_s for _, thread_s in watch.refusals],
        "answers_thread_s": [thread_s for _, thread_s in watch.answers],
        # What full collections leave out: in them, all threads wait.
        "settled_objects": gc.get_freeze_count(),
    }
    logging.getLogger(__name__).info(EVENT, extra=facts)
    return code


if __name__ == "__main__":
    sys.exit(main())
