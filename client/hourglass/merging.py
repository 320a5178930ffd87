"""Small calls of one event loop, sent together.

Calls of one kind that are made at the same time are put into one message, as many rows as fit: a thousand tasks that
encode a row each cost a few messages. There is no timer: a call that comes alone goes out in the next turn of the event
loop, and what comes while `max_in_flight` messages are under way goes with the next.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from functools import partial
from typing import Any

from hourglass.errors import DeadlineExceeded, HourglassError, InvalidArgument
from hourglass.jobs import Deadline, Job, Part

Send = Callable[[str, Any, Deadline], Awaitable[Any]]


class _Member:
    """One call that waits, with the context that it was made in. `alone`: not to be merged with others again."""

    def __init__(self, job: Job[Any], deadline: Deadline) -> None:
        self.job = job
        self.deadline = deadline
        self.alone = False
        self.context = copy_context()
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class Merger:
    """Sends at most `max_in_flight` messages at a time with `send`. Of one event loop."""

    def __init__(self, send: Send, *, max_in_flight: int) -> None:
        self._send = send
        self._max_in_flight = max_in_flight
        self._waiting: dict[Hashable, deque[_Member]] = {}
        self._scheduled = False
        self._messages: set[asyncio.Task[None]] = set()

    async def run(self, job: Job[Any], deadline: Deadline) -> None:
        """Have the answer of a job that fits into one message, and may share it. Raises what the call raises."""
        member = _Member(job, deadline)
        timer = None
        if deadline.timeout_s is not None:
            # From now on, not from when the message goes out, nor by the longest deadline of those who share it.
            loop = asyncio.get_running_loop()
            timer = loop.call_later(deadline.end - deadline.now(), member.fail, _too_late(deadline))
        self._wait(member)
        try:
            await member.answered
        finally:
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """Wait for the messages, which end when their channel is closed."""
        while self._messages or self._waiting:
            await asyncio.gather(*self._messages, return_exceptions=True)
            await asyncio.sleep(0)  # what waited is begun, and fails at once

    def _wait(self, member: _Member) -> None:
        self._waiting.setdefault(member.job.merge_key, deque()).append(member)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._waiting and len(self._messages) < self._max_in_flight:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._messages) < self._max_in_flight:
            # The kinds take turns.
            key, queue = next(iter(self._waiting.items()))
            del self._waiting[key]
            members = _take(queue)
            if queue:
                self._waiting[key] = queue
            if members:
                message = asyncio.get_running_loop().create_task(self._message(members), context=members[0].context)
                self._messages.add(message)
                message.add_done_callback(self._ended)
                for member in members:
                    member.answered.add_done_callback(partial(_leave, message, members))

    def _ended(self, message: asyncio.Task[None]) -> None:
        self._messages.discard(message)
        self._schedule()

    async def _message(self, members: list[_Member]) -> None:
        jobs = [member.job for member in members]
        deadline = max((member.deadline for member in members), key=lambda deadline: deadline.end)
        try:
            response = await self._send(jobs[0].method, jobs[0].merged_request(jobs), deadline)
            start = 0
            for member in members:
                job = member.job
                # Whoever went away may use its `out` for something else by now.
                if not member.answered.done():
                    job.accept(Part(0, job.total, None), response, start=start, total=sum(job.total for job in jobs))
                    member.answered.set_result(None)
                start += job.total
        except InvalidArgument as error:
            if len(members) == 1:
                members[0].fail(error)
                return
            # The fault of one of them: each is told of its own.
            for member in members:
                if not member.answered.done():
                    member.alone = True
                    self._wait(member)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            for member in members:
                member.fail(_own(error))


def _take(queue: deque[_Member]) -> list[_Member]:
    """Those that go into the next message, in the order of their coming."""
    members: list[_Member] = []
    rows = 0
    while queue:
        member = queue[0]
        if member.answered.done():  # its task was cancelled
            queue.popleft()
            continue
        rows += member.job.total
        if members and (rows > member.job.message_rows or member.alone or members[0].alone):
            break
        members.append(queue.popleft())
    return members


def _leave(message: asyncio.Task[None], members: list[_Member], _: asyncio.Future[None]) -> None:
    """A message that nobody waits for any more is cancelled."""
    if all(member.answered.done() for member in members):
        message.cancel()


def _too_late(deadline: Deadline) -> DeadlineExceeded:
    return DeadlineExceeded(f"timeout_s={deadline.timeout_s} passed before the answer came")


def _own(error: BaseException) -> BaseException:
    """An error for one of several who are told the same: a traceback belongs to one task."""
    if not isinstance(error, HourglassError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
