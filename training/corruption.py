"""What is done to rows before they are encoded in training, and what Denoise undoes. Fresh for every batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from training import recipes


def corrupt(corruption: recipes.Corruption, rows: Tensor, generator: Generator) -> Tensor:
    """Corrupted rows, in the shape of `rows` and, where those lie in 0..1, in 0..1."""
    match corruption:
        case recipes.Masking():
            return masking(rows, corruption.level, generator)
        case recipes.Gaussian():
            return gaussian(rows, corruption.level, generator)
        case recipes.SaltAndPepper():
            return salt_and_pepper(rows, corruption.level, generator)
        case _:
            return rows


def masking(rows: Tensor, level: float, generator: Generator) -> Tensor:
    """Each element is set to 0 with probability `level`. The others stay as they are: this is not dropout."""
    return rows * (torch.rand(rows.shape, generator=generator, device=rows.device) >= level)


def gaussian(rows: Tensor, level: float, generator: Generator) -> Tensor:
    """Normal noise of standard deviation `level` is added, and the sum clipped to 0..1."""
    return (rows + level * torch.randn(rows.shape, generator=generator, device=rows.device)).clamp_(0, 1)


def salt_and_pepper(rows: Tensor, level: float, generator: Generator) -> Tensor:
    """Each element is set with probability `level`, to 0 or to 1 with the same probability."""
    draw = torch.rand(rows.shape, generator=generator, device=rows.device)
    return torch.where(draw < level, (draw < level / 2).to(rows.dtype), rows)
