"""Training from a recipe to a run: data, network, procedure, evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training import data, evaluate, networks, preparation, procedures, recipes
from training.data import Dataset
from training.errors import Interrupted
from training.match import require_match
from training.networks import Autoencoder
from training.runs import BEST, CLASSIFIER, LAST, Run


def load_dataset(recipe: recipes.Recipe, folder: Path | None) -> Dataset:
    """The recipe's data set. Raises DataError, and RecipeError where the recipe does not fit it."""
    settings = recipe.data
    if settings.path is None:
        dataset = data.load(settings.name, folder=folder, validation_share=settings.validation_share, seed=recipe.seed)
    else:
        dataset = preparation.load(settings, seed=recipe.seed)
    require_match(recipe, dataset)
    return dataset


def train(recipe: recipes.Recipe, dataset: Dataset, runs_root: Path) -> Run:
    """Train and evaluate; the same recipe, seed, machine and number of threads give the same weights.

    Raises Interrupted on Ctrl-C, with the run, whose `last` checkpoint holds the weights of that moment.
    """
    # A network that cannot be built from the recipe is refused before there is a folder.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = networks.build(recipe.network, dataset.row_shape)
        network.fit_normalisation(recipe.network.normalisation, dataset.train_rows)
        run = Run.create(runs_root, recipe)
        context = procedures.Context(
            recipe=recipe,
            dataset=dataset,
            network=network,
            run=run,
            generator=torch.Generator().manual_seed(recipe.seed),
        )
        try:
            procedures.perform(context)
            if not run.has(BEST):
                run.save(network, BEST)
            evaluate_run(run, dataset)
        except KeyboardInterrupt:
            run.save(network, LAST)
            raise Interrupted(run.folder, recipe.name) from None
    return run


def restore(run: Run, row_shape: tuple[int, ...]) -> Autoencoder:
    """The network of a run in evaluation mode: its best checkpoint, or the last where there is no best."""
    network = networks.build(run.recipe().network, row_shape)
    run.restore(network, BEST if run.has(BEST) else LAST)
    return network.eval()


def evaluate_run(run: Run, dataset: Dataset) -> evaluate.Evaluation:
    """Measure the run's network on the test rows and keep the figures in the run."""
    network = restore(run, dataset.row_shape)
    classifier = None
    if run.has(CLASSIFIER):
        classifier = nn.Linear(network.latent_shape[0], dataset.class_count)
        run.restore(classifier, CLASSIFIER)
    evaluation = evaluate.evaluate(run.recipe(), network, dataset, classifier)
    run.save_evaluation(evaluation.to_json())
    return evaluation
