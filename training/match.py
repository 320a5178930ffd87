"""Whether a recipe fits its data: what depends on both, and would else fail late or train to nonsense."""

from __future__ import annotations

import math

import torch

from training import recipes
from training.data import Dataset
from training.errors import RecipeError

_CHUNK_ROWS = 4096


def require_match(recipe: recipes.Recipe, dataset: Dataset) -> None:
    """Raises RecipeError that names the key, the rule and what the data hold."""
    network = recipe.network
    what = f"{dataset.name} holds rows of kind {dataset.kind!r}, shape {list(dataset.row_shape)}"
    if isinstance(network, recipes.Convolutional) and dataset.kind != "image":
        raise RecipeError(f"network.kind: 'convolutional' is for images ('conv1d' is for series); {what}")
    if isinstance(network, recipes.Conv1d) and dataset.kind != "series":
        raise RecipeError(f"network.kind: 'conv1d' is for series; {what}")
    output = getattr(network, "output_activation", "linear")
    bounded = output == "sigmoid" or recipe.corruption.kind in ("gaussian", "salt-and-pepper")
    if bounded and not _lies_in_unit(dataset):
        corruption = f"corruption.kind: {recipe.corruption.kind!r}"
        key = "network.output_activation: 'sigmoid'" if output == "sigmoid" else corruption
        scaled = " once they are standardised" if dataset.scaling else ""
        raise RecipeError(
            f"{key} needs values from 0 to 1, but those of {dataset.name} lie outside{scaled}; "
            "`python -m training inspect DATA --write RECIPE.toml` writes a recipe that fits"
        )
    procedure = recipe.procedure
    if isinstance(procedure, recipes.Greedy) and procedure.finetuning is not None:
        if not dataset.has_classes:
            raise RecipeError(f"procedure.finetuning: needs labels of at least two classes; {dataset.name} has none")
        if procedure.finetuning.shift_share and (dataset.kind != "image" or len(dataset.row_shape) != 2):
            raise RecipeError(f"procedure.finetuning.shift_share: moves grey images, else it must be 0; {what}")
    if isinstance(procedure, recipes.ClosedForm):
        most = min(len(dataset.train_rows), math.prod(dataset.row_shape))
        if isinstance(network, recipes.Linear) and network.latent > most:
            raise RecipeError(f"network.latent: {dataset.name} has at most {most} components; got {network.latent}")


def _lies_in_unit(dataset: Dataset) -> bool:
    if dataset.scaling is None:
        return dataset.minimum >= 0 and dataset.maximum <= 1
    return all(chunk.min() >= 0 and chunk.max() <= 1 for chunk in torch.split(dataset.train_rows, _CHUNK_ROWS))
