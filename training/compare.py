"""Runs beside each other: a table of what differs and what came of it, and their curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from training import overrides
from training.pictures import scale_losses
from training.runs import Run

_FIGURES = (
    "squared_error_sum",
    "psnr_db",
    "denoised_psnr_db",
    "ssim",
    "cross_entropy",
    "pixel_accuracy",
    "linear_probe_accuracy",
    "knn_accuracy",
    "classifier_accuracy",
    "dead_units",
)


def table(runs: Sequence[Run]) -> str:
    """One column a run: the values of the recipe that differ, state and time, each phase's best epoch, the figures."""
    columns = [_column(run) for run in runs]
    recipes = [overrides.flat(run.recipe().model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe if key != "description"))
    lines = [("run", [f"{run.folder.parent.name}/{run.folder.name}" for run in runs])]
    for key in keys:
        values = [json.dumps(recipe[key]) if key in recipe else "" for recipe in recipes]
        if len(set(values)) > 1:
            lines.append((key, values))
    names = dict.fromkeys(name for column in columns for name in column)
    lines += [(name, [column.get(name, "") for column in columns]) for name in names]
    widths = [max(len(row[1][place]) for row in lines) for place in range(len(runs))]
    head = max(len(name) for name, _ in lines)
    return "\n".join(
        f"{name:<{head}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in lines
    )


def curves(runs: Sequence[Run]) -> Figure:
    """A panel for every name of a phase, with each run's losses of training (dashed) and validation."""
    logs = [run.metrics() for run in runs]
    phases = list(dict.fromkeys(entry["phase"] for log in logs for entry in log)) or ["no epoch was finished"]
    figure = Figure(figsize=(6.4 * len(phases), 4.4), layout="constrained")
    for axis, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        for number, (run, log) in enumerate(zip(runs, logs, strict=True)):
            entries = [entry for entry in log if entry["phase"] == phase]
            epochs = [entry["epoch"] for entry in entries]
            for side, style in (("train", "--"), ("validation", "-")):
                if entries and f"{side}_loss" in entries[0]:
                    totals = [entry[f"{side}_loss"] + entry[f"{side}_penalty"] for entry in entries]
                    label = f"{run.folder.parent.name}/{run.folder.name}, {side}"
                    axis.plot(epochs, totals, style, color=f"C{number}", label=label)
        axis.set(title=phase, xlabel="epoch", ylabel="loss and penalty, sum of a row")
        scale_losses(axis)
        if axis.lines:
            axis.legend()
    return figure


def _column(run: Run) -> dict[str, str]:
    log, evaluation = run.metrics(), run.evaluation()
    phases = list(dict.fromkeys(entry["phase"] for entry in log))
    cells = {
        "finished": "yes" if run.finished else "no",
        "training, seconds": f"{sum(entry['seconds'] for entry in log):.1f}",
    }
    for phase in phases:
        entries = [entry for entry in log if entry["phase"] == phase]
        best = [entry for entry in entries if entry["best"]][-1]
        cells[f"{phase}: best epoch"] = f"{best['epoch']} of {entries[-1]['epoch']}"
        for name, value in best.items():
            if name.startswith("validation_"):
                cells[f"{phase}: {name.replace('_', ' ')}"] = _number(value)
    if evaluation:
        cells |= {
            f"test: {name}": _number(evaluation["metrics"][name]) for name in _FIGURES if name in evaluation["metrics"]
        }
    return cells


def _number(value: Any) -> str:
    return f"{value:.5g}"
