"""Larochelle et al. 2007's variations of MNIST, drawn again by their definition: the published files are not at hand.

10,000 rows to train on, 2,000 to choose by and 50,000 to judge by, all drawn without replacement from MNIST's 70,000.
Shape legend: B rows, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.reproduction.bench import Bench
from training.data import Dataset

TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 10_000, 2_000, 50_000
# The sets are the same for every seed of a trial.
_SEED = 2007
_CHUNK_ROWS = 5_000


def load(bench: Bench, name: str) -> Dataset:
    """`basic`, `rot` or `bg-rand`; MNIST as it is for `mnist`."""
    whole = bench.dataset("mnist")
    if name == "mnist":
        return whole
    rows = torch.cat([whole.train_rows, whole.validation_rows, whole.test_rows])
    labels = torch.cat([whole.train_labels, whole.validation_labels, whole.test_labels])
    generator = Generator().manual_seed(_SEED)
    order = torch.randperm(len(rows), generator=generator)[: TRAIN_ROWS + VALIDATION_ROWS + TEST_ROWS]
    rows, labels = vary(name, rows[order], generator), labels[order]
    parts = [TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS]
    train, validation, test = torch.split(rows, parts)
    train_labels, validation_labels, test_labels = torch.split(labels, parts)
    return Dataset(
        name=name,
        train_rows=train,
        train_labels=train_labels,
        validation_rows=validation,
        validation_labels=validation_labels,
        test_rows=test,
        test_labels=test_labels,
    )


def vary(name: str, rows: Tensor, generator: Generator) -> Tensor:
    """Rows [B, H, W] in 0..1 as the set of that name shows them.

    rot: turned by an angle uniform in 0..2 pi, bilinear. bg-rand: every pixel is the larger of the digit's and a
    uniform one. Raises ValueError for another name.
    """
    match name:
        case "basic":
            return rows
        case "rot":
            return rotate(rows, 2 * math.pi * torch.rand(len(rows), generator=generator))
        case "bg-rand":
            return torch.maximum(rows, torch.rand(rows.shape, generator=generator))
    raise ValueError(f"set: must be basic, rot or bg-rand; got {name!r}")


def rotate(rows: Tensor, angles: Tensor) -> Tensor:
    """Rows [B, H, W] turned about their middle by angles [B] in radians; black comes in."""
    parts = []
    for chunk, angle in zip(torch.split(rows, _CHUNK_ROWS), torch.split(angles, _CHUNK_ROWS), strict=True):
        zero, cosine, sine = torch.zeros_like(angle), angle.cos(), angle.sin()
        turns = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).reshape(-1, 2, 3)
        grid = functional.affine_grid(turns, [len(chunk), 1, *chunk.shape[1:]], align_corners=False)
        parts.append(functional.grid_sample(chunk.unsqueeze(1), grid, align_corners=False).squeeze(1))
    return torch.cat(parts)
