"""Recipes on the built-in digits, short enough for a test."""

from __future__ import annotations

from torch import nn

from training import recipes
from training.networks import Autoencoder, DenseAutoencoder

EPOCHS = 2


def short_recipe(name: str, *changes: tuple[str, object]) -> recipes.Recipe:
    all_changes = [("data.name", "digits"), *changes]
    recipe = recipes.load(name, all_changes)
    if isinstance(recipe.procedure, recipes.ClosedForm):
        return recipe
    return recipes.load(name, all_changes, epochs=EPOCHS)


def first_layer(network: Autoencoder) -> nn.Linear:
    assert isinstance(network, DenseAutoencoder)
    layer = network.encoder[0]
    assert isinstance(layer, nn.Linear)
    return layer
