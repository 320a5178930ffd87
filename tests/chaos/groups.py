"""A control group that bounds the memory of the processes in it, for the time of a block.

Of version 2 where its memory controller is there, else of version 1 (Linux, admin-guide/cgroup-v2 and cgroup-v1/memory).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest import SkipTest

# What `grouped` puts itself into.
VARIABLE = "CHAOS_GROUP"


@dataclass(frozen=True)
class _Version:
    parent: Path
    usage: str
    limit: str
    # Has a line `oom_kill N`.
    events: str


_VERSIONS = (
    _Version(Path("/sys/fs/cgroup"), "memory.current", "memory.max", "memory.events"),
    _Version(Path("/sys/fs/cgroup/memory"), "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"),
)


class MemoryGroup:
    """Without a limit until one is set. Raises SkipTest where none can be made."""

    def __enter__(self) -> Self:
        for version in _VERSIONS:
            self._version, self.path = version, version.parent / f"hourglass-chaos-{os.getpid()}"
            try:
                self.path.mkdir()
            except OSError:
                continue
            if (self.path / version.limit).exists():
                return self
            self.path.rmdir()
        raise SkipTest("needs the right to make a control group with a limit of memory")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.path.rmdir()

    @property
    def usage_bytes(self) -> int:
        return int((self.path / self._version.usage).read_text())

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        lines = (self.path / self._version.events).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def limit(self, size_bytes: int) -> None:
        (self.path / self._version.limit).write_text(str(size_bytes))
