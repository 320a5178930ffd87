"""All recipes, one after the other, into `models/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training import recipes
from training.errors import RunError
from training.export import export
from training.report import report
from training.runs import Run
from training.train import Watch, load_dataset, train
from training.world import World

VERSION = 1


def make_zoo(
    chosen: list[recipes.Recipe],
    *,
    data_folder: Path | None,
    runs: Path,
    models: Path,
    world: World,
    watch: Watch,
    say: Callable[[str], None],
) -> list[Run]:
    """Train, export as version 1 and report each recipe; a package that is there already is replaced."""
    if world.size > 1:
        raise RunError(f"zoo: exports and reports too, which one process does; got {world.size} under torchrun")
    made = []
    for number, recipe in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {recipe.model_name}: {recipe.description}")
        dataset = load_dataset(recipe, data_folder)
        run = train(recipe, dataset, runs, world=world, watch=watch)
        package = export(run, dataset, models, version=VERSION)
        say(f"  {package}, {package_bytes(package) / 1e6:.2f} MB; {report(run, dataset)}")
        made.append(run)
    return made


def package_bytes(package: Path) -> int:
    return sum(path.stat().st_size for path in package.iterdir())
