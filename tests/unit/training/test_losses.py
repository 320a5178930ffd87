"""Each loss equals a value worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

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
