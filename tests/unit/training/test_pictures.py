"""What is drawn of rows that are no pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import networks, recipes
from training.pictures import overview
from training.train import load_dataset


def test_columns_of_any_size_are_drawn_in_deviations_and_named(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3)) * [1000, 0.01, 1] + [5e4, 0, 3]
    lines = "\n".join(",".join(map(repr, row)) for row in rows.tolist())
    (tmp_path / "own.csv").write_text(f"current,vibration,flow\n{lines}\n", encoding="utf-8")
    recipe = recipes.load("linear", [("data.path", str(tmp_path / "own.csv")), ("network.latent", 2)])
    dataset = load_dataset(recipe, None)
    torch.manual_seed(0)
    axes = overview(recipe, networks.build(recipe.network, dataset.row_shape), dataset).axes
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["current", "vibration", "flow"]
    assert axes[0].get_ylabel() == "deviations from the mean"
    drawn = np.array([axis.lines[0].get_ydata() for axis in axes])
    assert 0.3 < np.abs(drawn).mean() < 2
