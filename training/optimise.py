"""The loop that every phase of training shares: epochs, batches, learning rate, progress, the best epoch.

Shape legend: B rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Never

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import devices, recipes
from training.schedules import learning_rate
from training.session import Session

_MOMENTUM = 0.9
_SETTLE_STEPS = {"cpu": 1}  # reading a loss makes a GPU wait, so there it is done less often
_SETTLE_STEPS_ELSEWHERE = 50

Figures = dict[str, float]


def validation_total(figures: Mapping[str, float]) -> float:
    return figures["validation_loss"] + figures["validation_penalty"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase minimises.

    `batch_loss` takes the indices [B] of training rows and gives the loss and the penalty, whose sum is minimised;
    `validate` gives figures for the log, and `objective` of them is smallest in the best epoch, whose network the run
    keeps where `keeps_best`.
    """

    name: str
    parameters: Iterable[nn.Parameter]
    batch_loss: Callable[[Tensor], tuple[Tensor, Tensor]]
    validate: Callable[[], Figures]
    objective: Callable[[Mapping[str, float]], float] = validation_total
    keeps_best: bool = False


def run_phase(phase: Phase, settings: recipes.Optimisation, *, row_count: int, session: Session) -> None:
    """Train `phase.parameters`, from where the session stands; after every epoch a line in the log.

    With patience the phase ends with the weights of its best epoch. Raises Interrupted when asked to stop, after a
    checkpoint; Diverged when a loss is NaN or infinite, where the checkpoint of before is kept.
    """
    parameters = list(phase.parameters)
    optimiser = _optimiser(settings, parameters)
    if not session.enter(phase.name, optimiser):
        return
    rows_done = (session.position.epoch - 1) * row_count + session.position.step * settings.batch_rows
    with tqdm(
        total=settings.epochs * row_count,
        initial=min(rows_done, settings.epochs * row_count),
        unit=" rows",
        unit_scale=True,
        disable=None if session.world.leads else True,
    ) as progress:
        loop = _Loop(phase, settings, row_count, session, parameters, optimiser, progress)
        while not session.position.ended:
            loop.train_epoch()
            loop.end_epoch()


@dataclass
class _Loop:
    phase: Phase
    settings: recipes.Optimisation
    row_count: int
    session: Session
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    progress: tqdm[Never]
    # Of steps that were not yet read from the device: step, loss, penalty, share of all rows.
    pending: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.session.world
        self.batch_loss = world.parallel(self.phase.batch_loss, self.parameters)
        self.epoch_steps = math.ceil(self.row_count / self.settings.batch_rows)
        self.settle_steps = _SETTLE_STEPS.get(world.device.type, _SETTLE_STEPS_ELSEWHERE)
        wanted = self.settings.precision
        self.bfloat16 = wanted == "bfloat16" or (wanted == "auto" and devices.has_bfloat16(world.device))

    def train_epoch(self) -> None:
        """The steps of the epoch that are not done yet."""
        session, settings, world, position = self.session, self.settings, self.session.world, self.session.position
        self.progress.set_description(f"{self.phase.name}, epoch {position.epoch}/{settings.epochs}", refresh=False)
        for module in session.modules.values():
            module.train()
        started_s = time.monotonic() - position.seconds
        for indices in session.batches(self.row_count, settings.batch_rows):
            mine, weight = world.share(indices)
            self._set_rate()
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
                loss, penalty = self.batch_loss(mine)
            share = weight * len(indices) / world.size / self.row_count
            self.pending.append((position.step, loss.detach(), penalty.detach(), share))
            if len(self.pending) >= self.settle_steps:
                self.settle()
            self.optimiser.zero_grad()
            total = loss + penalty if world.size == 1 else (loss + penalty) * weight
            total.backward()  # type: ignore[no-untyped-call]
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
            self.optimiser.step()
            position.step += 1
            self.progress.update(len(indices))
            if position.step < self.epoch_steps:
                position.seconds = time.monotonic() - started_s
                session.keep(self.optimiser, self.settle, writes_best=self.phase.keeps_best)
        self.settle()
        position.seconds = time.monotonic() - started_s

    def end_epoch(self) -> None:
        session, settings, world, position = self.session, self.settings, self.session.world, self.session.position
        trained_s, validating_s = position.seconds, time.monotonic()
        figures: Figures = {}
        if world.leads:
            for module in session.modules.values():
                module.eval()
            with torch.no_grad():
                figures = self.phase.validate()
        objective = world.leaders(self.phase.objective(figures) if world.leads else 0.0)
        if not math.isfinite(objective):
            raise session.diverged(f"the loss of the validation rows is {objective}")
        better = position.best is None or objective < position.best
        if better:
            position.best, position.best_epoch = objective, position.epoch
            if self.phase.keeps_best or settings.patience is not None:
                session.remember_best()
        session.log(
            {
                "phase": self.phase.name,
                "epoch": position.epoch,
                "train_loss": world.total(position.loss),
                "train_penalty": world.total(position.penalty),
                **figures,
                "best": better,
                "learning_rate": self.optimiser.param_groups[0]["lr"],
                "rows_per_s": round(self.row_count / trained_s, 1),
                "seconds": round(trained_s + time.monotonic() - validating_s, 3),
            }
        )
        self.progress.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
        waited = position.epoch - position.best_epoch
        position.ended = position.epoch == settings.epochs or (
            settings.patience is not None and waited >= settings.patience
        )
        position.epoch, position.step = position.epoch + 1, 0
        position.loss = position.penalty = position.seconds = 0.0
        if position.ended:
            if settings.patience is not None:
                session.return_to_best()
            session.save(self.optimiser, writes_best=self.phase.keeps_best)
        session.keep(self.optimiser, self.settle, writes_best=self.phase.keeps_best)

    def settle(self) -> None:
        """Add up the losses of the steps since the last time, and see that they are numbers."""
        position = self.session.position
        done, self.pending = self.pending, []
        for step, loss, penalty, share in done:
            loss_value, penalty_value = loss.item(), penalty.item()
            if not math.isfinite(loss_value + penalty_value):
                position.step = step
                raise self.session.diverged(f"the loss is {loss_value}, the penalty {penalty_value}")
            position.loss += loss_value * share
            position.penalty += penalty_value * share

    def _set_rate(self) -> None:
        position = self.session.position
        step = (position.epoch - 1) * self.epoch_steps + position.step
        rate = learning_rate(self.settings, step, self.epoch_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate


def _optimiser(settings: recipes.Optimisation, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.learning_rate, momentum=_MOMENTUM, weight_decay=settings.weight_decay
        )
    return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
