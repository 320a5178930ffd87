"""What a reconstruction costs: the sum over a row's elements, averaged over rows, as in the papers.

Keras averages over the elements too, so that a strength of a penalty carries over only with the number of elements.
Shape legend: B rows, D... the dimensions of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Factors of at least a half whose product is still far from the smallest float32: one logarithm for all of them.
_FACTORS = 16


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets [B, D...] to a scalar: the squared distance of a row, averaged over the rows."""
    return (outputs - targets).square().sum() / len(targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits and targets in 0..1 [B, D...] to a scalar, in nats; from logits, which cannot overflow."""
    total: Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return total / len(targets)


class _CrossEntropy(torch.autograd.Function):
    """The sum over all elements of max(x, 0) - x t - log p, where p is the larger of sigmoid(x) and sigmoid(-x).

    PyTorch's own takes a logarithm of every element, which costs as much as all matrix products of a small network.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        outputs = torch.sigmoid(logits)
        ctx.save_for_backward(outputs, targets)
        factors = torch.maximum(outputs, 1 - outputs).flatten()
        whole = len(factors) - len(factors) % _FACTORS
        certainty = factors[:whole].view(_FACTORS, -1).prod(0).log_().sum() + factors[whole:].log_().sum()
        return torch.relu(logits).addcmul_(logits, targets, value=-1).sum() - certainty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        outputs, targets = ctx.saved_tensors
        return (outputs - targets).mul_(gradient), None
