"""What a trial gets: where the data is, its seed, and a place where pretrained layers are kept.

Shape legend: B rows, N elements of a row.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from training import data
from training.data import Dataset

Figures = dict[str, float]

# The papers hold out 10,000 of MNIST's 60,000 training rows, to choose by.
VALIDATION_SHARE = 1 / 6
# Validation rows are the same for every seed, so that seeds differ by what is drawn in training alone.
SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`figures` by name, and the `settings` they came from, as they should stand in the record.

    `cached_s`: seconds of training that an earlier trial spent for this one.
    """

    figures: Figures
    settings: dict[str, Any]
    cached_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    seed: int
    data_dir: Path | None
    # Pretrained layers, on the CPU, by the hash of what made them; None keeps none.
    cache: Path | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def dataset(self, name: str) -> Dataset:
        """50,000 rows to train on, 10,000 to choose by, 10,000 to judge by."""
        return data.load(name, folder=self.data_dir, validation_share=VALIDATION_SHARE, seed=SPLIT_SEED)

    def generator(self, purpose: int = 0, device: torch.device | None = None) -> Generator:
        """On the bench's device, unless told another: what it is given to computes where it is."""
        return Generator(device or self.device).manual_seed(1000 * self.seed + purpose)

    def cached(self, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], float]:
        """The tensors that `make` returns, and the seconds that it took where they were made earlier by the same `key`.

        0 seconds where they are made now: then they are in the wall time of the trial.
        """
        if self.cache is None:
            return make(), 0.0
        text = json.dumps({**key, "seed": self.seed, "device": self.device.type}, sort_keys=True)
        path = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            started_s = time.monotonic()
            tensors = make()
            spent_s = time.monotonic() - started_s
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            metadata = {"key": text, "seconds": repr(spent_s)}
            safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
            part.replace(path)
            return tensors, 0.0
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, float(metadata["seconds"])


def progress(name: str, epochs: int) -> tqdm[int]:
    """A bar over epochs, on a terminal."""
    return tqdm(range(epochs), desc=name, unit="epoch", disable=None)


def say(text: str) -> None:
    """A line in the log of a run without a terminal; a bar shows the same on one."""
    if not sys.stderr.isatty():
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
