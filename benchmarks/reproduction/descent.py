"""Gradient descent over the rows of a set, epoch after epoch; on a GPU a step is one CUDA graph.

The networks here are small: launched one by one, the kernels of a step wait longer for Python than they compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Generator, Tensor, nn

from benchmarks.reproduction.bench import progress, say

# Of the step and of how many there are: what the learning rate is multiplied with.
Schedule = Callable[[int, int], float]
Loss = Callable[[Tensor], Tensor]

# PyTorch wants a few steps on the stream of a capture before it, which make what is made once.
_EAGER_STEPS = 3


def constant(step: int, count: int) -> float:
    return 1.0


def cosine(step: int, count: int) -> float:
    return (1 + math.cos(math.pi * step / count)) / 2


def adam(parameters: Iterable[nn.Parameter], rate: float, device: torch.device) -> torch.optim.Adam:
    # A rate that is a tensor can change between replays of a graph.
    lr = torch.tensor(rate, device=device)
    return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=device.type == "cuda")


def sgd(
    parameters: Iterable[nn.Parameter],
    rate: float,
    device: torch.device,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.SGD:
    lr = torch.tensor(rate, device=device)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def epochs(
    name: str,
    loss_of: Loss,
    optimiser: torch.optim.Optimizer,
    *,
    row_count: int,
    batch_rows: int,
    count: int,
    generator: Generator,
    schedule: Schedule = constant,
) -> Iterator[float]:
    """Descends along `loss_of`, the mean loss of rows by their indices [B]; gives an epoch's mean loss at its end.

    Rows are shuffled for each epoch. `loss_of` computes on the generator's device, has the same kernels for every batch
    of one size, and draws from `generator` or PyTorch's own.
    """
    device = generator.device
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    step_count, step = count * math.ceil(row_count / batch_rows), 0
    take = _Step(loss_of, optimiser, generator)
    for epoch in progress(name, count):
        total = torch.zeros((), device=device)
        order = torch.randperm(row_count, generator=generator, device=device)
        for indices in torch.split(order, batch_rows):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"].fill_(rate * schedule(step, step_count))
            total += take(indices) * (len(indices) / row_count)
            step += 1
        mean = float(total)
        say(f"{name} epoch {epoch + 1}/{count} loss {mean:.3f}")
        yield mean


class _Step:
    """A step of gradient descent with the rows of these indices; gives its loss."""

    def __init__(self, loss_of: Loss, optimiser: torch.optim.Optimizer, generator: Generator) -> None:
        self._loss_of = loss_of
        self._optimiser = optimiser
        self._generator = generator
        self._eager_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._indices = torch.empty(0)
        self._loss = torch.empty(())

    def __call__(self, indices: Tensor) -> Tensor:
        if indices.device.type != "cuda":
            return self._take(indices)
        if self._graph is None:
            if self._eager_steps < _EAGER_STEPS:
                self._eager_steps += 1
                return self._aside(indices)
            self._capture(indices)
        if self._graph is None or indices.shape != self._indices.shape:
            return self._take(indices)
        self._indices.copy_(indices)
        self._graph.replay()
        return self._loss

    def _take(self, indices: Tensor) -> Tensor:
        self._optimiser.zero_grad()
        loss = self._loss_of(indices)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return loss.detach()

    def _aside(self, indices: Tensor) -> Tensor:
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            loss = self._take(indices)
        current.wait_stream(stream)
        return loss

    def _capture(self, indices: Tensor) -> None:
        """Records a step without taking it."""
        self._indices = indices.clone()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            self._loss = self._take(self._indices)
        self._graph = graph
