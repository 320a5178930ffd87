"""The loop of gradient descent that the reproduction's trials share."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from benchmarks.reproduction import descent

CPU = torch.device("cpu")


def test_an_epoch_takes_every_row_once_and_gives_the_mean_of_its_losses() -> None:
    seen: list[list[int]] = []
    weight = nn.Parameter(torch.zeros(()))

    def loss_of(indices: Tensor) -> Tensor:
        seen.append(indices.tolist())
        return indices.double().mean() + 0 * weight

    losses = list(
        descent.epochs(
            "rows",
            loss_of,
            descent.sgd([weight], 0.1, CPU),
            row_count=10,
            batch_rows=4,
            count=2,
            generator=Generator().manual_seed(0),
        )
    )
    assert losses == pytest.approx([4.5, 4.5]), "the last batch of two rows counts half as much"
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    first, second = ([row for batch in epoch for row in batch] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second, "shuffled anew"


@pytest.mark.parametrize("optimiser", [descent.adam, descent.sgd])
def test_it_descends_to_the_minimum(optimiser: type) -> None:
    rows = torch.randn(256, 3, generator=Generator().manual_seed(1))
    wanted = torch.tensor([1.0, -2.0, 0.5])
    weight = nn.Parameter(torch.zeros(3))
    *_, last = descent.epochs(
        "line",
        lambda indices: (rows[indices] @ (weight - wanted)).square().mean(),
        optimiser([weight], 0.05, CPU),
        row_count=len(rows),
        batch_rows=32,
        count=40,
        schedule=descent.cosine,
        generator=Generator().manual_seed(2),
    )
    assert last < 1e-4
    torch.testing.assert_close(weight.detach(), wanted, atol=1e-2, rtol=0)


def test_the_rate_follows_the_schedule() -> None:
    rates: list[float] = []
    weight = nn.Parameter(torch.zeros(()))
    optimiser = descent.sgd([weight], 0.5, CPU)

    def loss_of(indices: Tensor) -> Tensor:
        rates.append(float(optimiser.param_groups[0]["lr"]))
        return weight * 1.0

    for _ in descent.epochs(
        "rate",
        loss_of,
        optimiser,
        row_count=4,
        batch_rows=2,
        count=2,
        schedule=descent.cosine,
        generator=Generator().manual_seed(0),
    ):
        pass
    assert rates == pytest.approx([0.5, 0.5 * 0.853553, 0.25, 0.5 * 0.146447], rel=1e-4)
    assert weight.item() == pytest.approx(-sum(rates), rel=1e-4)
