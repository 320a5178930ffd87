"""Every epoch visits every row once, whatever the size, and the memory for its order does not grow."""

from __future__ import annotations

import pytest
import torch

from training import order


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_small_sets_are_visited_in_one_permutation() -> None:
    got = list(order.batches(10, 4, generator()))
    assert [len(part) for part in got] == [4, 4, 2]
    assert torch.equal(torch.cat(got), torch.randperm(10, generator=generator()))


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("row_count", [101, 128, 500])
def test_large_sets_are_visited_whole_in_full_batches(
    row_count: int, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "SHUFFLED_ROWS", 100)
    monkeypatch.setattr(order, "BLOCK_ROWS", 8)
    monkeypatch.setattr(order, "BLOCKS", 3)
    source = generator()
    first, second = (list(order.batches(row_count, batch_rows, source)) for _ in range(2))
    for got in (first, second):
        assert [len(part) for part in got] == [len(part) for part in torch.split(torch.arange(row_count), batch_rows)]
        assert torch.equal(torch.cat(got).sort().values, torch.arange(row_count))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_what_else_is_drawn_meanwhile_does_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SHUFFLED_ROWS", 100)
    monkeypatch.setattr(order, "BLOCK_ROWS", 8)
    monkeypatch.setattr(order, "BLOCKS", 3)
    alone = torch.cat(list(order.batches(200, 16, generator())))
    source, among = generator(), []
    began = order.batches(200, 16, source)
    torch.rand(3, generator=source)
    for part in began:
        among.append(part)
        torch.rand(3, generator=source)
    assert torch.equal(torch.cat(among), alone)
