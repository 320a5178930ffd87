"""The learning rate of a step."""

from __future__ import annotations

import math

from training import recipes


def learning_rate(settings: recipes.Optimisation, step: int, epoch_steps: int) -> float:
    """The rate of step `step`, counted from 0 over the whole phase, where an epoch has `epoch_steps` steps.

    A warm-up rises in a line to `settings.learning_rate`; the schedule takes its course over the steps after it.
    """
    warmup = round(settings.warmup_epochs * epoch_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    after, count = step - warmup, settings.epochs * epoch_steps - warmup
    match settings.schedule:
        case "cosine":
            return settings.learning_rate * (1 + math.cos(math.pi * after / count)) / 2
        case "step":
            assert settings.step_epochs is not None, "checked by the recipe; this is a bug"
            assert settings.step_factor is not None, "checked by the recipe; this is a bug"
            return settings.learning_rate * settings.step_factor ** (after // (settings.step_epochs * epoch_steps))
        case _:
            return settings.learning_rate
