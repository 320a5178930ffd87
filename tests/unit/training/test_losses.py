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


@pytest.mark.parametrize("row_count", [64, 3])  # 3 x 784 elements: some are left over by groups of 64
@pytest.mark.parametrize("spread", [0.01, 4.0, 60.0])
def test_cross_entropy_and_its_gradient_are_those_of_pytorch(spread: float, row_count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(row_count, 28, 28, generator=generator)
    targets[::2] = targets[::2].round()
    logits = torch.randn(row_count, 28, 28, generator=generator) * spread
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = losses.cross_entropy(ours, targets)
    expected = functional.binary_cross_entropy_with_logits(theirs.double(), targets.double(), reduction="sum")
    expected = expected / row_count
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=6e-7 / row_count)


def test_cross_entropy_of_half_precision_is_in_float32() -> None:
    logits, targets = torch.randn(8, 5, dtype=torch.bfloat16, requires_grad=True), torch.rand(8, 5)
    loss = losses.cross_entropy(logits, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
