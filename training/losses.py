"""What a reconstruction costs: the sum over a row's elements, averaged over rows, as in the papers.

Keras averages over the elements too, so that a strength of a penalty carries over only with the number of elements.
Shape legend: B rows, D... the dimensions of a row.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets [B, D...] to a scalar: the squared distance of a row, averaged over the rows."""
    return (outputs - targets).square().sum() / len(targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits and targets in 0..1 [B, D...] to a scalar, in nats; from logits, which cannot overflow."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)
