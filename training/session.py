"""What a training keeps so that it can be stopped at any step and go on as if it had not been.

A checkpoint holds the weights of all modules, the optimiser's state, every generator of random numbers, the best
weights so far, and the position: phase, epoch, step, and the sums of the epoch that is being trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor, nn

from training import order
from training.checkpoints import under_prefix, with_prefix
from training.errors import Diverged, Interrupted
from training.runs import BEST, Run
from training.stopping import Stop
from training.world import World

CHECKPOINT_S = 30.0  # what a power failure may cost
_AGREE_STEPS = 16  # processes ask each other this often whether to save or to stop

_GO_ON, _SAVE, _STOP = 0, 1, 2


@dataclass(kw_only=True)
class Position:
    """Where a training is. Epochs count from 1; `step` counts what was done of the epoch; losses are sums so far."""

    phase: str = ""
    passed: list[str] = field(default_factory=list)
    epoch: int = 1
    step: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    ended: bool = False  # the phase
    log_lines: int = 0

    def __str__(self) -> str:
        return f"phase {self.phase!r}, epoch {self.epoch}, step {self.step}"


class Session:
    """One process's part in the training of one run: modules, random numbers, position, and when to save them.

    `facts` go into every checkpoint; `watch` is given every line of the log.
    """

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        generator: Generator,
        *,
        world: World | None = None,
        stop: Stop | None = None,
        checkpoint_s: float = CHECKPOINT_S,
        facts: Mapping[str, Any] | None = None,
        watch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.run = run
        self.world = world or World()
        self.position = Position()
        self.modules: dict[str, nn.Module] = {"network": network}
        self._generator = generator
        self._stop = stop or Stop()
        self._checkpoint_s = checkpoint_s
        self._facts = dict(facts or {})
        self._watch = watch
        self._saved_s = -checkpoint_s  # the first step is saved: a disk that takes nothing is found out now
        self._saved_at = "none was made"
        self._restored: dict[str, Tensor] = {}
        self._order_state = generator.get_state()
        self._state_in_epoch: Tensor | None = None
        self._best: dict[str, Tensor] = {}
        self._best_is_news = False

    def go_on(self, tensors: Mapping[str, Tensor], position: Position) -> None:
        """Continue from a checkpoint: the network now, the rest when its phase is entered."""
        self.position = position
        self._saved_at = str(position)
        if not self.world.leads:  # the sums in the checkpoint are those of all processes
            position.loss = position.penalty = 0.0
        self._restored = dict(tensors)
        self.modules["network"].load_state_dict(under_prefix("network", tensors))

    def adopt(self, name: str, module: nn.Module) -> None:
        """Make a module part of the checkpoints, and give it the weights it had where the session goes on."""
        self.modules[name] = module
        if weights := under_prefix(name, self._restored):
            module.load_state_dict(weights)

    def enter(self, phase: str, optimiser: torch.optim.Optimizer) -> bool:
        """Begin the phase, or go on with it where the checkpoint lies in it. False: it was passed before."""
        if phase in self.position.passed:
            return False
        if self._restored and phase == self.position.phase:
            self._restore(optimiser)
            return True
        before = self.position
        passed = [*before.passed, before.phase] if before.phase else []
        self.position = Position(phase=phase, passed=passed, log_lines=before.log_lines)
        self._best, self._best_is_news = {}, False
        return True

    def batches(self, row_count: int, batch_rows: int) -> Iterator[Tensor]:
        """Indices [B] of the batches of this epoch that are to come, in the order that it began with."""
        if self._state_in_epoch is None:
            self._order_state = self._generator.get_state()
            return order.batches(row_count, batch_rows, self._generator, self.world.agree)
        self._generator.set_state(self._order_state)
        batches = order.batches(row_count, batch_rows, self._generator, self.world.agree)
        self._generator.set_state(self._state_in_epoch)
        self._state_in_epoch = None
        return islice(batches, self.position.step, None)

    def log(self, entry: Mapping[str, Any]) -> None:
        self.position.log_lines += 1
        if self.world.leads:
            self.run.log(entry)
            if self._watch:
                self._watch(entry)

    def remember_best(self) -> None:
        self._best = {name: value.clone() for name, value in self._weights().items()}
        self._best_is_news = True

    def return_to_best(self) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(under_prefix(name, self._best))

    def keep(self, optimiser: torch.optim.Optimizer, before: Callable[[], None], *, writes_best: bool) -> None:
        """Save if it is time to or somebody asked to stop, which then raises Interrupted; `before` is called first."""
        if self.world.size > 1 and self.position.step % _AGREE_STEPS:
            return
        late = time.monotonic() - self._saved_s >= self._checkpoint_s
        verdict = self.world.largest(_STOP if self._stop.requested else _SAVE if late else _GO_ON)
        if verdict == _GO_ON:
            return
        before()
        self.save(optimiser, writes_best=writes_best)
        if verdict == _STOP:
            raise Interrupted(self.run.folder, self._stop.signal_number)

    def save(self, optimiser: torch.optim.Optimizer | None, *, writes_best: bool) -> None:
        """Write a checkpoint, and the best weights where they are new. Raises Diverged rather than keep a NaN."""
        if not all(bool(torch.isfinite(value).all()) for value in self._weights().values()):
            raise self.diverged("a weight is not a number any more")
        tensors = self._weights() | with_prefix("best", self._best) | self._random_states()
        if optimiser is not None:
            tensors |= {
                f"optimiser.{index}.{name}": value
                for index, state in optimiser.state_dict()["state"].items()
                for name, value in state.items()
                if value is not None
            }
        loss, penalty = self.world.total(self.position.loss), self.world.total(self.position.penalty)
        if self.world.leads:
            position = {**asdict(self.position), "loss": loss, "penalty": penalty}
            self.run.save_state(tensors, {**self._facts, "position": position})
            if writes_best and self._best_is_news:
                self.run.save(under_prefix("network", self._best), BEST)
                self._best_is_news = False
        self.world.wait()  # a process that ends early takes the others down, perhaps in the middle of writing
        self._saved_s = time.monotonic()
        self._saved_at = str(self.position)

    def diverged(self, what: str) -> Diverged:
        return Diverged(self.run.folder, what, str(self.position), self._saved_at)

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value.detach()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }

    def _random_states(self) -> dict[str, Tensor]:
        here = {"generator": self._generator.get_state(), "global": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            here["cuda"] = torch.cuda.get_rng_state(self.world.device)
        states = {"random.order": self._order_state}
        for name, state in here.items():
            states |= {f"random.{name}.{rank}": each for rank, each in enumerate(self.world.gather(state))}
        return states

    def _restore(self, optimiser: torch.optim.Optimizer) -> None:
        tensors, self._restored = self._restored, {}
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            # In the memory order of the parameter: fused optimisers walk both side by side.
            optimiser.state[parameter] = {
                name: torch.empty_like(parameter, requires_grad=False).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)
                for name, value in under_prefix(f"optimiser.{index}", tensors).items()
            }
        self._best = {
            name: torch.empty_like(own).copy_(tensors[f"best.{name}"])
            for name, own in self._weights().items()
            if f"best.{name}" in tensors
        }
        self._best_is_news = bool(self._best)
        own = {name: tensors[f"random.{name}.{self.world.rank}"] for name in ("generator", "global")}
        self._order_state = tensors["random.order"]
        if self.position.step:
            self._state_in_epoch = own["generator"]
        self._generator.set_state(own["generator"])
        torch.set_rng_state(own["global"])
        if self.world.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random.cuda.{self.world.rank}"], self.world.device)
