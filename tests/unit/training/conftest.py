from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.training.short import short_recipe
from training import data, recipes, train
from training.data import Dataset
from training.runs import Run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # networks of this size only wait for a second one
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return data.load("digits", folder=None, validation_share=0.1, seed=0)


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def digit_runs(digits: Dataset, runs_root: Path) -> dict[str, Run]:
    """Every recipe, trained on the digits for two epochs a phase."""
    return {name: train.train(short_recipe(name), digits, runs_root) for name in recipes.names()}
