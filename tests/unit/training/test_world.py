"""Two processes under torchrun give what one gives with the same batch; one of them writes; they can be stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.training.short import short_recipe
from tests.unit.training.together import RECIPES
from training import networks, train
from training.checkpoints import read
from training.data import Dataset
from training.runs import Run
from training.world import World

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what two processes left there."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.unit.training.together", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def runs(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in folder.glob("*/*/recipe.json")]


def test_two_processes_give_what_one_gives(
    folder: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "evaluate_run", lambda run, dataset: None)
    alone = train.train(short_recipe(*RECIPES["plain"]), digits, tmp_path)  # type: ignore[arg-type]
    (together,) = runs(folder / "plain")
    assert together.recipe() == alone.recipe()
    assert together.state()[1]["processes"] == 2
    one, two = (read(run.folder / "best.safetensors")[0] for run in (alone, together))
    begin = networks.build(alone.recipe().network, digits.row_shape).state_dict()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
        assert name in ("shift", "scale") or not torch.allclose(one[name], begin[name], atol=1e-3)
    for here, there in zip(together.metrics(), alone.metrics(), strict=True):
        for name in ("train_loss", "validation_loss", "learning_rate"):
            assert here[name] == pytest.approx(there[name], rel=1e-5)


def test_the_leader_alone_speaks_and_a_finished_run_stays_as_it_is(folder: Path) -> None:
    out = (folder / "stdout").read_text()
    assert out.count("export  python -m training export deep") == 1
    assert out.count("is finished; nothing was trained") == 1
    assert "'kl-sparsity' is about the mean over a whole batch" in (folder / "stderr").read_text()


def test_a_world_that_was_stopped_goes_on_to_the_same_weights(folder: Path) -> None:
    (whole,), (resumed,) = runs(folder / "whole"), runs(folder / "stopped")
    for name in ("last", "best", "classifier"):
        first, second = (read(run.folder / f"{name}.safetensors")[0] for run in (whole, resumed))
        assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [
        [(entry["phase"], entry["epoch"], entry["train_loss"]) for entry in run.metrics()] for run in (whole, resumed)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(("size", "rows"), [(1, 7), (2, 7), (3, 7), (4, 3), (7, 7)])
def test_shares_make_up_the_batch_and_their_weighted_means_its_mean(size: int, rows: int) -> None:
    batch = torch.arange(10, 10 + rows)
    shares = [World(rank=rank, size=size).share(batch) for rank in range(size)]
    assert sorted(int(row) for mine, weight in shares if weight for row in mine) == batch.tolist()
    mean = sum(float(mine.float().mean()) * weight for mine, weight in shares) / size
    assert mean == pytest.approx(float(batch.float().mean()))
