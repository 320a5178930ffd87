"""Training on a real GPU: it learns what the CPU learns, and goes on as if it had not been stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.training.short import short_recipe
from training import data, devices, train
from training.checkpoints import read
from training.errors import DeviceError, Interrupted
from training.runs import Run
from training.session import Session
from training.stopping import Stop
from training.world import World

pytestmark = pytest.mark.gpu


@pytest.fixture
def world() -> World:
    try:
        return World(device=devices.choose("cuda"))
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["deep", "conv", "contractive", "stacked"])
def test_a_gpu_learns_what_the_cpu_learns(name: str, world: World, tmp_path: Path) -> None:
    rows = data.load("digits", folder=None, validation_share=0.1, seed=0)
    first, second = (train.train(short_recipe(name), rows, tmp_path, world=each) for each in (world, World()))
    for here, there in zip(first.metrics(), second.metrics(), strict=True):
        assert here["train_loss"] == pytest.approx(there["train_loss"], rel=0.1)  # the order of the rows differs


def test_stopped_on_a_gpu_it_goes_on_to_the_same_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data.load("digits", folder=None, validation_share=0.1, seed=0)
    recipe = short_recipe("denoising")
    whole = train.train(recipe, rows, tmp_path / "whole", world=world)
    real = Session.keep
    with monkeypatch.context() as patch:

        def keep(self: Session, *arguments: object, **named: object) -> None:
            self._stop = Stop(2)
            real(self, *arguments, **named)  # type: ignore[arg-type]

        patch.setattr(Session, "keep", keep)
        with pytest.raises(Interrupted):
            train.train(recipe, rows, tmp_path / "stopped", world=world)
    run = train.resume(Run.newest(tmp_path / "stopped", "denoising"), rows, world=world)
    first, second = (read(each.folder / "last.safetensors")[0] for each in (run, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)
