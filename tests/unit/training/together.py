"""What each process does in test_world.py, started by torchrun: `python -m tests.unit.training.together FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.unit.training.short import short_recipe
from training import data, train
from training.__main__ import main
from training.errors import Interrupted
from training.runs import Run
from training.session import Session
from training.stopping import Stop
from training.world import World, join

RECIPES = {
    "plain": ("deep", ("procedure.batch_rows", 100)),
    "greedy": ("stacked", ("corruption", {"kind": "masking", "level": 0.3}), ("procedure.batch_rows", 300)),
}
# In the second layer; processes agree to stop at steps that are a multiple of 16, or at the end of an epoch.
STOP_AT_KEEP = 12


def plain(folder: Path) -> None:
    """As a user does it; the first process alone prints."""
    arguments = ["train", "deep", "--data", "digits", "--epochs", "2", "--set", "procedure.batch_rows=100"]
    assert main([*arguments, "--out", str(folder), "--device", "cpu"]) == 0
    assert main([*arguments, "--out", str(folder), "--device", "cpu", "--resume"]) == 0
    assert main(["train", "sparse", "--data", "digits", "--out", str(folder), "--device", "cpu"]) == 1


def stopped(folder: Path, world: World) -> None:
    """Stopped in one of the processes, gone on with in all."""
    rows = data.load("digits", folder=None, validation_share=0.1, seed=0)
    recipe = short_recipe(*RECIPES["greedy"])  # type: ignore[arg-type]
    train.train(recipe, rows, folder / "whole", world=world)
    real, done = Session.keep, 0

    def keep(self: Session, *arguments: object, **named: object) -> None:
        nonlocal done
        done += 1
        if done == STOP_AT_KEEP and world.rank == 1:
            self._stop = Stop(15)
        real(self, *arguments, **named)  # type: ignore[arg-type]

    Session.keep = keep  # type: ignore[method-assign]
    try:
        train.train(recipe, rows, folder / "stopped", world=world)
    except Interrupted:
        Session.keep = real  # type: ignore[method-assign]
        train.resume(Run.newest(folder / "stopped", "stacked"), rows, world=world)
    else:
        raise AssertionError("nothing was stopped")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train.evaluate_run = lambda run, dataset: run.save_evaluation({"metrics": {}})  # type: ignore[assignment, return-value]
    with join("cpu") as everybody:
        plain(Path(sys.argv[1]) / "plain")
        stopped(Path(sys.argv[1]), everybody)
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert not any("gloo" in name for name in names), f"threads outlive their world: {names}"
