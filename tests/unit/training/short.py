"""Recipes on the built-in digits, short enough for a test."""

from __future__ import annotations

from torch import nn

from training import recipes
from training.networks import Autoencoder, DenseAutoencoder

EPOCHS = 2


def short_recipe(name: str, *overrides: tuple[str, object]) -> recipes.Recipe:
    all_overrides = [("data.name", "digits"), *overrides]
    recipe = recipes.load(name, all_overrides)
    if not isinstance(recipe.procedure, recipes.ClosedForm):
        all_overrides += recipes.epochs_overrides(recipe, EPOCHS)
    return recipes.load(name, all_overrides)


def first_layer(network: Autoencoder) -> nn.Linear:
    assert isinstance(network, DenseAutoencoder)
    layer = network.encoder[0]
    assert isinstance(layer, nn.Linear)
    return layer
