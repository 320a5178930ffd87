"""The loop that every phase of training shares: epochs, batches, learning rate, progress, checkpoints.

Shape legend: B rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from training import order, recipes
from training.runs import BEST, LAST, Run

_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase minimises.

    `batch_loss` takes the indices [B] of training rows and gives the loss and the penalty, whose sum is minimised;
    `validate` gives figures for the log, among them `validation_loss` and `validation_penalty` where the phase
    chooses the best epoch by their sum (`keeps_best`).
    """

    name: str
    module: nn.Module
    parameters: Iterable[nn.Parameter]
    batch_loss: Callable[[Tensor], tuple[Tensor, Tensor]]
    validate: Callable[[], dict[str, float]]
    keeps_best: bool = False


def run_phase(
    phase: Phase,
    settings: recipes.Optimisation,
    *,
    row_count: int,
    network: nn.Module,
    run: Run,
    generator: Generator,
) -> None:
    """Train `phase.parameters`; after every epoch a line in the log and the weights of `network` as `last`."""
    parameters = list(phase.parameters)
    optimiser = _optimiser(settings, parameters)
    batches = math.ceil(row_count / settings.batch_rows)
    step_count = settings.epochs * batches
    best = math.inf
    step = 0
    with tqdm(total=settings.epochs, desc=phase.name, unit="epoch", disable=None) as progress:
        for epoch in range(1, settings.epochs + 1):
            started_s = time.monotonic()
            phase.module.train()
            sums = torch.zeros(2)
            for indices in order.batches(row_count, settings.batch_rows, generator):
                if settings.schedule == "cosine":
                    for group in optimiser.param_groups:
                        group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / step_count)) / 2
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"):
                    loss, penalty = phase.batch_loss(indices)
                optimiser.zero_grad()
                (loss + penalty).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                sums += torch.stack([loss.detach(), penalty.detach()]) * (len(indices) / row_count)
                step += 1
            phase.module.eval()
            with torch.no_grad():
                figures = phase.validate()
            entry = {"phase": phase.name, "epoch": epoch, "train_loss": sums[0].item(), "train_penalty": sums[1].item()}
            run.log({**entry, **figures, "seconds": round(time.monotonic() - started_s, 3)})
            run.save(network, LAST)
            if phase.keeps_best:
                objective = figures["validation_loss"] + figures["validation_penalty"]
                if objective < best:
                    best = objective
                    run.save(network, BEST)
            progress.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            progress.update()


def _optimiser(settings: recipes.Optimisation, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.learning_rate, momentum=_MOMENTUM, weight_decay=settings.weight_decay
        )
    return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
