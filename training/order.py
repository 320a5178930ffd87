"""The order in which an epoch visits the training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

# Beyond so many rows the order is not one permutation of all, which would take 8 bytes a row and read a file in
# single rows from all over it.
SHUFFLED_ROWS = 1 << 20
# Blocks of neighbouring rows, of which so many are read and shuffled together.
BLOCK_ROWS = 1 << 12
BLOCKS = 64


def batches(
    row_count: int, batch_rows: int, generator: Generator, agree: Callable[[Tensor], Tensor] = lambda drawn: drawn
) -> Iterator[Tensor]:
    """Indices [B] of the rows of each batch, every row once, at random; the last batch may be smaller.

    Of more than a million rows the blocks of 4,096 come in random order, and the rows of 64 blocks are shuffled
    together: the memory that it takes does not grow with the rows. All that is drawn from the generator is drawn at
    once, so that what else draws while the epoch goes on does not change its order. `agree` gives what several
    processes have drawn the value that all go by.
    """
    device = generator.device
    if row_count <= SHUFFLED_ROWS:
        return iter(torch.split(agree(torch.randperm(row_count, generator=generator, device=device)), batch_rows))
    seed = int(agree(torch.randint(2**62, (), generator=generator, device=device)))
    return (rows.to(device) for rows in _of_blocks(row_count, batch_rows, Generator().manual_seed(seed)))


def _of_blocks(row_count: int, batch_rows: int, generator: Generator) -> Iterator[Tensor]:
    blocks = torch.randperm(-(-row_count // BLOCK_ROWS), generator=generator)
    left_over = torch.empty(0, dtype=torch.int64)
    for chosen in torch.split(blocks, BLOCKS):
        rows = (chosen[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS)).flatten()
        rows = rows[rows < row_count]
        rows = torch.cat([left_over, rows[torch.randperm(len(rows), generator=generator)]])
        whole = len(rows) // batch_rows * batch_rows
        if whole:
            yield from torch.split(rows[:whole], batch_rows)
        left_over = rows[whole:]
    if len(left_over):
        yield left_over
