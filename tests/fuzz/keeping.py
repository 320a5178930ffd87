"""Which inputs are worth keeping: the shortest that together reach all lines of ours that any of them reaches."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import driver, targets

_OURS = tuple(f"{driver.ROOT / folder}/" for folder in ("service", "training", "client/hourglass"))

Arc = tuple[str, int, int]


def keep(name: str, found: Path) -> int:
    """Put those of the files in `found` that reach a new step from line to line into the corpus. Returns how many."""
    with tempfile.TemporaryDirectory() as folder, targets.load(name).opened(Path(folder)) as one:
        reached: set[Arc] = set()
        for path in driver.corpus(name):
            reached |= _arcs(one, path.read_bytes())
        kept = 0
        for data in sorted((path.read_bytes() for path in found.iterdir()), key=lambda data: (len(data), data)):
            try:
                arcs = _arcs(one, data)
            except Exception:  # found already: it is among the artifacts
                continue
            if not arcs <= reached:
                reached |= arcs
                kept += 1
                target = driver.CORPUS / name
                target.mkdir(parents=True, exist_ok=True)
                (target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        return kept


def seed() -> None:
    """Write the seeds of all targets into the corpus."""
    for name in targets.NAMES:
        (driver.CORPUS / name).mkdir(parents=True, exist_ok=True)
        for input_name, data in targets.load(name).seeds().items():
            (driver.CORPUS / name / input_name).write_bytes(data)


def _arcs(one: Callable[[bytes], None], data: bytes) -> set[Arc]:
    arcs: set[Arc] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return None
        if event == "line":
            arcs.add((file, last.get(id(frame), 0), frame.f_lineno))
            last[id(frame)] = frame.f_lineno
        elif event == "return":
            last.pop(id(frame), None)
        return trace

    sys.settrace(trace)
    try:
        one(data)
    finally:
        sys.settrace(None)
    return arcs
