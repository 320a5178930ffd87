"""Each loss equals a value worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from training import losses


def test_squared_error_is_the_sum_of_a_row_averaged_over_rows() -> None:
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert losses.squared_error(outputs, targets).item() == pytest.approx((1 + 4 + 9) / 2)


def test_cross_entropy_is_the_sum_of_a_row_averaged_over_rows() -> None:
    probabilities = [[0.9, 0.2], [0.5, 0.5]]
    targets = [[1.0, 0.0], [0.25, 0.75]]
    expected = (-math.log(0.9) - math.log(0.8) + 2 * math.log(2)) / 2
    got = losses.cross_entropy(torch.tensor(probabilities).logit(), torch.tensor(targets))
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    got = losses.cross_entropy(torch.tensor([[1000.0, -1000.0]]), torch.tensor([[0.0, 0.0]]))
    assert got.item() == pytest.approx(1000.0)


def test_losses_keep_the_shape_of_pictures() -> None:
    outputs, targets = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    flat = losses.squared_error(outputs.flatten(1), targets.flatten(1))
    assert losses.squared_error(outputs, targets).item() == pytest.approx(flat.item())


@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (4, 16), (3, 8, 8), (2, 1000)])
def test_cross_entropy_and_its_gradient_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(shape, generator=generator)
    targets = torch.rand(shape, generator=generator)
    ours, reference = (logits.to(dtype, copy=True).requires_grad_() for dtype in (torch.float32, torch.float64))
    got = losses.cross_entropy(ours, targets)
    wanted = functional.binary_cross_entropy_with_logits(reference, targets.double(), reduction="sum") / len(targets)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    (3 * got).backward()  # type: ignore[no-untyped-call]
    (3 * wanted).backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(ours.grad.double(), reference.grad, atol=1e-6, rtol=1e-5)


def test_cross_entropy_of_what_is_not_a_number_is_not_a_number() -> None:
    for bad in (math.nan, math.inf):
        assert not math.isfinite(losses.cross_entropy(torch.tensor([[bad, 0.0]]), torch.zeros(1, 2)).item())
