"""What a reconstruction costs: the sum over a row's elements, averaged over rows, as in the papers.

Keras averages over the elements too, so that a strength of a penalty carries over only with the number of elements.
Shape legend: B rows, D... the dimensions of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets [B, D...] to a scalar: the squared distance of a row, averaged over the rows."""
    return (outputs - targets).square().sum() / len(targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits and targets in 0..1 [B, D...] to a scalar, in nats; from logits, which cannot overflow. In float32, and to
    be differentiated once, by the logits."""
    total: Tensor = _CrossEntropy.apply(logits.float(), targets)  # type: ignore[no-untyped-call]
    return total / len(targets)


_FACTORS = 64  # none below one half: 2**-64 is within float32's range, with room


class _CrossEntropy(torch.autograd.Function):
    """The sum over all elements of softplus(x) - x t, whose derivative is sigmoid(x) - t.

    With p = sigmoid(x), softplus(x) is max(x, 0) - log(max(p, 1 - p)): the sigmoid serves for both the value and the
    derivative, and the logarithms are of numbers from one half to one, of which 64 can be multiplied first. PyTorch's
    own function takes two exponentials and a logarithm of each element, which on a CPU last longer than the layers of
    a small network.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.sigmoid(logits)
        context.save_for_backward(probabilities, targets)
        surest = (probabilities - 0.5).abs_().add_(0.5).flatten()
        whole = len(surest) // _FACTORS * _FACTORS
        products = surest[:whole].view(_FACTORS, whole // _FACTORS).prod(0)
        logarithms = products.log_().sum() + surest[whole:].log().sum()
        return logits.clamp(min=0).sum() - logarithms - torch.dot(logits.flatten(), targets.flatten())

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = context.saved_tensors
        return (probabilities - targets).mul_(gradient), None
