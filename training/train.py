"""Training from a recipe to a run: data, network, procedure, evaluation; and going on with one that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training import data, evaluate, networks, overrides, preparation, procedures, recipes, stopping
from training.data import Dataset
from training.errors import RecipeError, RunError
from training.match import require_match
from training.networks import Autoencoder
from training.runs import BEST, CLASSIFIER, LAST, Run
from training.session import CHECKPOINT_S, Position, Session
from training.world import World

# Far apart, so that the processes of one training and trainings of neighbouring seeds draw different numbers.
_SEED_STEP = 1_000_003

Watch = Callable[[Run], Callable[[Mapping[str, Any]], None]]


def load_dataset(recipe: recipes.Recipe, folder: Path | None) -> Dataset:
    """The recipe's data set. Raises DataError, and RecipeError where the recipe does not fit it."""
    settings = recipe.data
    if settings.path is None:
        dataset = data.load(settings.name, folder=folder, validation_share=settings.validation_share, seed=recipe.seed)
    else:
        dataset = preparation.load(settings, seed=recipe.seed)
    require_match(recipe, dataset)
    return dataset


def train(
    recipe: recipes.Recipe,
    dataset: Dataset,
    runs_root: Path,
    *,
    world: World | None = None,
    watch: Watch | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> Run:
    """Train and evaluate; the same recipe, seed, machine and number of threads give the same weights.

    `watch`, given the run, makes what every line of the log is shown to. Raises Interrupted on Ctrl-C and SIGTERM,
    after a checkpoint, from which `resume` goes on, and Diverged when a loss is NaN or infinite.
    """
    return _perform(recipe, dataset, world or World(), runs_root, None, watch, checkpoint_s)


def resume(run: Run, dataset: Dataset, *, world: World | None = None, watch: Watch | None = None) -> Run:
    """Go on with a training that was stopped, to the weights that it would have had.

    As many threads compute as did then. Raises RunError where it is finished, has no whole checkpoint, is being trained
    by another process, or was begun with another recipe, other rows, other versions, on another kind of device or with
    another number of processes.
    """
    return _perform(run.recipe(), dataset, world or World(), run.folder.parent.parent, run, watch, CHECKPOINT_S)


def _perform(
    recipe: recipes.Recipe,
    dataset: Dataset,
    world: World,
    runs_root: Path,
    begun: Run | None,
    watch: Watch | None,
    checkpoint_s: float,
) -> Run:
    if world.size > 1 and recipe.penalty.kind == "kl-sparsity":
        raise RecipeError(
            "penalty.kind: 'kl-sparsity' is about the mean over a whole batch, which no process sees where several "
            f"train together; got {world.size} processes"
        )
    gpus = [world.device] if world.device.type == "cuda" else []
    with ExitStack() as held, torch.random.fork_rng(devices=gpus):
        if begun and world.leads:
            held.enter_context(begun.held())
        tensors, position = _last_state(begun, recipe, dataset, world) if begun else ({}, None)
        facts = surroundings(recipe, dataset, world)
        torch.manual_seed(recipe.seed)
        # A network that cannot be built from the recipe is refused before there is a folder.
        network = networks.build(recipe.network, dataset.row_shape)
        network.fit_normalisation(recipe.network.normalisation, dataset.train_rows)
        network.to(world.device)
        run = begun or Run(Path(world.leaders_text(lambda: str(Run.create(runs_root, recipe).folder))))
        if not begun and world.leads:
            held.enter_context(run.held())
        seed = recipe.seed + world.rank * _SEED_STEP
        if world.rank:
            torch.manual_seed(seed)
        generator = torch.Generator(world.device).manual_seed(seed)
        if position and world.leads:
            run.rewind(position.log_lines)
        with stopping.on_signals() as stop:
            session = Session(
                run,
                network,
                generator,
                world=world,
                stop=stop,
                checkpoint_s=checkpoint_s,
                facts=facts,
                watch=watch(run) if watch and world.leads else None,
            )
            if position:
                session.go_on(tensors, position)
            procedures.perform(
                procedures.Context(
                    recipe=recipe, dataset=dataset.to(world.device), session=session, generator=generator
                )
            )
        if world.leads:
            if not run.has(BEST):
                run.save(network, BEST)
            evaluate_run(run, dataset)
            run.finish(facts)
    return run


def newest_of(recipe: recipes.Recipe, runs_root: Path) -> Run | None:
    """The newest run of exactly this recipe that has a checkpoint, if there is one."""
    for run in reversed(Run.all(runs_root, recipe.name)):
        try:
            if run.recipe() == recipe:
                return run
        except RecipeError:  # another release's
            continue
    return None


def surroundings(recipe: recipes.Recipe, dataset: Dataset, world: World) -> dict[str, Any]:
    """What must be as it was for a training to go on as if it had not been stopped."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": world.device.type,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


def _last_state(
    run: Run, recipe: recipes.Recipe, dataset: Dataset, world: World
) -> tuple[dict[str, torch.Tensor], Position]:
    tensors, facts = run.state()
    if facts.get("finished"):
        raise RunError(f"{run.folder}: is finished; there is nothing to go on with")
    if "position" not in facts:
        raise RunError(f"{run.folder}: its last checkpoint holds weights only, so that nothing can go on from it")
    position = Position(**facts.pop("position"))
    torch.set_num_threads(facts["threads"])
    then, now = overrides.flat(facts), overrides.flat(surroundings(recipe, dataset, world))
    different = [
        f"  {key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if different:
        raise RunError(
            f"{run.folder}: cannot go on, because it would not become what it would have been. Put back what differs, "
            "or begin anew:\n" + "\n".join(different)
        )
    return tensors, position


def require_same_rows(run: Run, dataset: Dataset) -> None:
    """Raises RunError where a run was trained on other rows than the data set's, of a file that changed, say."""
    if run.recipe().data.name != dataset.name:
        raise RunError(f"{run.folder}: was trained on {run.recipe().data.name}, not on {dataset.name}")
    then = run.state()[1].get("data", {}).get("fingerprint") if run.has(LAST) else None
    if then not in (None, now := dataset.fingerprint()):
        raise RunError(
            f"{run.folder}: was trained on other rows of {dataset.name}: SHA-256 {then[:16]}..., now {now[:16]}...; "
            "put them back, or train again"
        )


def restore(run: Run, row_shape: tuple[int, ...]) -> Autoencoder:
    """The network of a run in evaluation mode: its best checkpoint, or the last where there is no best."""
    network = networks.build(run.recipe().network, row_shape)
    run.restore(network, BEST if run.has(BEST) else LAST)
    return network.eval()


def evaluate_run(run: Run, dataset: Dataset) -> evaluate.Evaluation:
    """Measure the run's network on the test rows and keep the figures in the run."""
    evaluation = _measure(run, dataset, restore(run, dataset.row_shape))
    run.save_evaluation(evaluation.to_json())
    return evaluation


def figures(run: Run, dataset: Dataset, network: Autoencoder) -> dict[str, Any]:
    """The evaluation that a finished run keeps; of another, which may go on, one of `network` as it was restored."""
    kept = run.evaluation() if not run.has(LAST) or run.finished else None
    return kept or _measure(run, dataset, network).to_json()


def _measure(run: Run, dataset: Dataset, network: Autoencoder) -> evaluate.Evaluation:
    classifier = None
    if run.has(CLASSIFIER):
        classifier = nn.Linear(network.latent_shape[0], dataset.class_count)
        run.restore(classifier, CLASSIFIER)
    return evaluate.evaluate(run.recipe(), network, dataset, classifier)
