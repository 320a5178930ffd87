"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_limit() -> int:
    """How many CPUs this process may use: the cgroup's quota where there is one, else its affinity; at least 1."""
    count = len(os.sched_getaffinity(0))
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            with open(quota_file) as file:
                words = file.read().split()
            if period_file:
                with open(period_file) as file:
                    words += file.read().split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and int(words[0]) > 0:
            return max(1, min(count, -(-int(words[0]) // int(words[1]))))
    return count


def worker_count(wanted: str, device: str) -> int:
    """How many processes `--workers` means: a number, or auto, a process a CPU, and one process on a GPU."""
    if wanted != "auto":
        return int(wanted)
    if device in ("cuda", "tensorrt") or (device == "auto" and Path("/dev/nvidiactl").exists()):
        return 1
    return cpu_limit()
