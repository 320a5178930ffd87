"""What trials found, as JSON: one file a row in `results/`, one record for each protocol and seed."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduction.bench import Figures, Outcome
from benchmarks.reproduction.rows import Protocol
from benchmarks.training import processor

FOLDER = Path(__file__).parent / "results"
_DIGITS = 6
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial. `seconds` is wall time, pretraining that an earlier trial did for it included."""

    row: str
    protocol: Protocol
    seed: int
    figures: Figures
    settings: dict[str, Any]
    seconds: float
    command: str
    hardware: str
    versions: str
    date: str


class Results:
    """The records in a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def of(self, row: str) -> list[Record]:
        """Of every protocol and seed that was run, in that order."""
        path = self.folder / f"{row}.json"
        if not path.exists():
            return []
        entries = json.loads(path.read_text(encoding="utf-8"))
        return sorted((Record(**entry) for entry in entries), key=lambda record: (record.protocol, record.seed))

    def find(self, row: str, protocol: Protocol, seed: int) -> Record | None:
        return next((one for one in self.of(row) if (one.protocol, one.seed) == (protocol, seed)), None)

    def add(self, record: Record) -> None:
        """Takes the place of a record of the same row, protocol and seed; the file is whole at any time, and of two
        processes that add to one row neither loses what the other adds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._add(record)
        finally:
            os.close(lock)

    def _add(self, record: Record) -> None:
        kept = [one for one in self.of(record.row) if (one.protocol, one.seed) != (record.protocol, record.seed)]
        entries = [vars(one) for one in sorted([*kept, record], key=lambda one: (one.protocol, one.seed))]
        part = self.folder / f"{record.row}.json.part"
        part.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        part.replace(self.folder / f"{record.row}.json")


def record(
    row: str, protocol: Protocol, seed: int, outcome: Outcome, seconds: float, device: torch.device = _CPU
) -> Record:
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return Record(
        row=row,
        protocol=protocol,
        seed=seed,
        figures={name: round(value, _DIGITS) for name, value in outcome.figures.items()},
        settings=outcome.settings,
        seconds=round(seconds + outcome.cached_s, 1),
        command=f"python -m benchmarks.reproduction run {row} --protocol {protocol} --seeds {seed}",
        hardware=f"{gpu}{processor()}, {os.cpu_count()} cores; threads: {torch.get_num_threads()}",
        versions=f"Python {platform.python_version()}, torch {importlib.metadata.version('torch')}, "
        f"scikit-learn {importlib.metadata.version('scikit-learn')}",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )
