"""The processes that train one network together: one alone, or those that torchrun started.

Every process holds the whole data set and the same weights, takes its share of each batch, and averages its gradients
with the others' (DistributedDataParallel), so that the batch of a recipe means the same on one machine as on many.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training import devices

BatchLoss = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others; a number that all must agree on is the leader's. All methods wait for all."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """The leader alone writes files and shows progress."""
        return self.rank == 0

    def share(self, indices: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a batch, and the weight that makes the mean of all processes' means that of all rows.

        With fewer rows than processes some take a row with the weight 0.
        """
        if self.size == 1:
            return indices, 1.0
        mine = indices[self.rank :: self.size]
        return (mine, len(mine) * self.size / len(indices)) if len(mine) else (indices[:1], 0.0)

    def agree(self, drawn: Tensor) -> Tensor:
        """What the leader has drawn, in place of what this process has."""
        if self.size > 1:
            distributed.broadcast(drawn, 0)
        return drawn

    def leaders_text(self, make: Callable[[], str]) -> str:
        """What `make` returns, which the leader alone calls."""
        text: list[str] = [make() if self.leads else ""]
        if self.size > 1:
            distributed.broadcast_object_list(text, 0, device=self.device)
        return text[0]

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def leaders(self, number: float) -> float:
        return self._together(number, lambda value: distributed.broadcast(value, 0))

    def largest(self, number: float) -> float:
        return self._together(number, lambda value: distributed.all_reduce(value, distributed.ReduceOp.MAX))

    def total(self, number: float) -> float:
        return self._together(number, distributed.all_reduce)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank, on the CPU; they have one shape."""
        if self.size == 1:
            return [tensor.cpu()]
        gathered = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        distributed.all_gather(gathered, tensor.to(self.device))
        return [each.cpu() for each in gathered]

    def parallel(self, batch_loss: BatchLoss, parameters: Sequence[nn.Parameter]) -> BatchLoss:
        """`batch_loss`, after whose backward pass the gradients of `parameters` are the mean over all processes."""
        if self.size == 1:
            return batch_loss
        wrapped: BatchLoss = DistributedDataParallel(_Loss(batch_loss, parameters))
        return wrapped

    def _together(self, number: float, act: Callable[[Tensor], object]) -> float:
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        act(value)
        return float(value)


@contextmanager
def join(device: devices.DeviceName) -> Iterator[World]:
    """The world that torchrun started this process in, or a world of one. Joined again inside, it is the same one."""
    if not distributed.is_torchelastic_launched():
        yield World(device=devices.choose(device))
        return
    # The backend depends on the device, which depends on the number that torchrun gave this process on its machine.
    chosen = devices.choose(device, distributed.get_node_local_rank(fallback_rank=0))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if distributed.is_initialized():
        yield World(rank=distributed.get_rank(), size=distributed.get_world_size(), device=chosen)
        return
    # This module's functions name the group of the moment of its import as their default. Imported after the group was
    # made, as an optimiser does, it keeps the group's threads alive to the end, where they can abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank=distributed.get_rank(), size=distributed.get_world_size(), device=chosen)
    finally:
        distributed.destroy_process_group()


class _Loss(nn.Module):
    """DistributedDataParallel averages the gradients of a module's parameters; a phase trains some of a network's."""

    def __init__(self, batch_loss: BatchLoss, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._batch_loss = batch_loss

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._batch_loss(indices)
