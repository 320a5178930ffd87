"""What a training tells while it runs: its folder at the start and, where no terminal shows a bar, its epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

from training import recipes
from training.runs import Run

EVERY_S = 10.0  # of training, from one line to the next: logs are kept


def watch(run: Run, out: TextIO | None = None) -> Callable[[Mapping[str, Any]], None]:
    """Say where the run is; returns what is given each line of its log, and tells those that are due.

    Due is the first epoch of a phase, its last, and one that ends `EVERY_S` or more of training after the line before.
    """
    out = out or sys.stderr
    say = partial(print, file=out, flush=True)
    recipe = run.recipe()
    say(f"training {recipe.model_name}, run {run.folder}")
    lines = not out.isatty()
    waited_s, phase = 0.0, ""

    def tell(entry: Mapping[str, Any]) -> None:
        nonlocal waited_s, phase
        waited_s += entry["seconds"]
        epochs = _epochs(recipe.procedure, entry["phase"])
        if lines and (entry["phase"] != phase or entry["epoch"] == epochs or waited_s >= EVERY_S):
            say(_line(entry, epochs))
            waited_s, phase = 0.0, entry["phase"]

    return tell


def _line(entry: Mapping[str, Any], epochs: int) -> str:
    names = ["train_loss", *(name for name in entry if name.startswith("validation_"))]
    figures = [f"{name.replace('_', ' ')} {entry[name]:.5g}" for name in names if entry[name] or "penalty" not in name]
    best = ", the best so far" if entry["best"] else ""
    return (
        f"{entry['phase']}, epoch {entry['epoch']} of {epochs}: {', '.join(figures)}{best}; "
        f"{entry['rows_per_s']:,.0f} rows/s"
    )


def _epochs(procedure: recipes.Procedure, phase: str) -> int:
    """How many epochs the phase has at most."""
    assert not isinstance(procedure, recipes.ClosedForm), "has no epochs; this is a bug"
    own = getattr(procedure, phase.replace("-", ""), None)
    return own.epochs if isinstance(own, recipes.Optimisation) else procedure.epochs
