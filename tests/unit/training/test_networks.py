"""Networks take and give rows in their own shape, with the normalisation inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.training.short import first_layer, short_recipe
from training import networks, recipes
from training.errors import RecipeError


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("shape", [(8, 8), (28, 28)])
def test_every_recipe_maps_rows_to_latents_and_back(name: str, shape: tuple[int, int]) -> None:
    network = networks.build(short_recipe(name).network, shape)
    rows = torch.rand(3, *shape)
    latents = network.encode(rows)
    assert latents.shape == (3, *network.latent_shape)
    assert network.decode(latents).shape == rows.shape


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    network = networks.build(recipes.load("undercomplete").network, (28, 28))
    bound = (6 / (784 + 32)) ** 0.5
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
            assert not module.bias.any()


def test_the_keras_models_have_the_published_numbers_of_weights() -> None:
    denoiser = {"channels": [32, 32], "decoder_channels": [32, 32], "kernel": 3}
    changes = [(f"network.{key}", value) for key, value in denoiser.items()]
    for recipe, count in ((recipes.load("conv"), 4385), (recipes.load("denoising-conv", changes), 28353)):
        network = networks.build(recipe.network, (28, 28))
        assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_tied_weights_are_the_same_weights() -> None:
    network = networks.build(recipes.load("contractive").network, (28, 28))
    assert sum(parameter.numel() for parameter in network.parameters()) == 784 * 256 + 256 + 784


@pytest.mark.parametrize("kind", ["centre", "standardise"])
def test_decode_undoes_the_normalisation(kind: str) -> None:
    rows = 0.2 + 0.5 * torch.rand(500, 4, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 0, 0] = 0.7  # an element that never changes must not be divided by zero
    recipe = recipes.Linear(kind="linear", latent=16, tied=True, normalisation=kind)  # type: ignore[arg-type]
    network = networks.build(recipe, (4, 4))
    network.fit_normalisation(kind, rows)
    with torch.no_grad():
        first_layer(network).weight.copy_(torch.eye(16))
    latents = network.encode(rows).detach()
    assert latents.mean(0).abs().max() < 1e-5
    if kind == "standardise":
        assert latents.std(0)[1:].mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(network.decode(latents), rows, atol=1e-5)


def test_doublings_that_miss_the_row_are_an_error_that_names_the_key() -> None:
    recipe = recipes.Convolutional(kind="convolutional", channels=(4, 4, 4), decoder_channels=(4, 4))
    with pytest.raises(
        RecipeError, match=r"network.decoder_channels: 2 doublings .*\[4, 4\] to \[16, 16\].*\[28, 28\]"
    ):
        networks.build(recipe, (28, 28))


@pytest.mark.parametrize("steps", [16, 33, 50])
@pytest.mark.parametrize("levels", [1, 3])
def test_windows_of_any_length_come_back(steps: int, levels: int) -> None:
    network = networks.build(recipes.Conv1d(kind="conv1d", channels=(6,) * levels), (steps, 3))
    rows = torch.randn(2, steps, 3)
    latents = network.encode(rows)
    assert latents.shape == (2, *network.latent_shape) == (2, 6, -(-steps // 2**levels))
    assert network.decode(latents).shape == rows.shape


def test_a_convolution_over_time_sees_its_neighbourhood_of_steps_in_every_column() -> None:
    network = networks.build(recipes.Conv1d(kind="conv1d", channels=(4,), kernel=3), (20, 3))
    rows = torch.zeros(1, 20, 3)
    for column in range(3):
        moved = rows.clone()
        moved[0, 10, column] = 1
        changed = (network.encode(moved) != network.encode(rows)).any(1).flatten().nonzero().flatten().tolist()
        assert changed == [5]  # of stride 2 and three steps wide: step 10 is the middle of latent step 5 only


def test_conv1d_learns_a_series() -> None:
    torch.manual_seed(0)
    network = networks.build(recipes.Conv1d(kind="conv1d", channels=(8, 4)), (32, 2))
    phase = 6 * torch.rand(64, 1)
    time = torch.arange(32) / 4
    rows = torch.stack([torch.sin(time + phase), torch.cos(time + phase)], dim=2)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (network(rows) - rows).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05 * rows.var().item()


@pytest.mark.parametrize(
    ("recipe", "shape", "words"),
    [
        (recipes.Conv1d(kind="conv1d", channels=(4,)), (8,), r"'conv1d' needs rows of steps and columns; got \[8\]"),
        (
            recipes.Convolutional(kind="convolutional", channels=(4,), decoder_channels=(4,)),
            (8,),
            r"'convolutional' needs rows of height and width.* got \[8\]",
        ),
    ],
)
def test_a_network_of_another_kind_of_rows_is_refused(
    recipe: recipes.Network, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        networks.build(recipe, shape)


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_colours_come_back_as_colours(upsampling: str) -> None:
    recipe = recipes.Convolutional(
        kind="convolutional",
        channels=(4, 5),
        decoder_channels=(4, 4),
        upsampling=upsampling,  # type: ignore[arg-type]
    )
    network = networks.build(recipe, (8, 12, 3))
    rows = torch.rand(2, 8, 12, 3)
    assert network.encode(rows).shape == (2, 5, 2, 3)
    assert network.decode(network.encode(rows)).shape == rows.shape
