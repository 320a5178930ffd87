"""Greedy pretraining: a tied sigmoid layer learns to reconstruct its clean input.

The papers' objective, with Adam and a cosine schedule where they used plain stochastic gradient descent: hundreds of
epochs less for the same objective. Shape legend: B rows, N inputs, L units.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from benchmarks.reproduction import descent
from benchmarks.reproduction.bench import Bench
from training import corruption, losses, networks, penalties, recipes
from training.networks import DenseAutoencoder

_ENCODING_ROWS = 2000
_LEAST_MEAN = 1e-3  # a pixel that is never lit would begin at minus infinity


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    units: int = 1000
    epochs: int = 15
    batch_rows: int = 250
    learning_rate: float = 1e-3
    corruption: Literal["none", "masking", "gaussian", "salt-and-pepper"] = "none"
    # Masking and salt and pepper: the share of elements; gaussian: the standard deviation, not clipped.
    level: float = 0.0
    # Times the sum of the squared weights, in nats a row.
    weight_decay: float = 0.0
    # Times the squared Frobenius norm of the encoder's Jacobian, in nats a row.
    contraction: float = 0.0
    # The decoder begins at the rows' mean, and every unit at `-offset` for the mean row: sparse, and no epoch is spent
    # on the mean. 0: biases begin at zero, as in the papers.
    offset: float = 0.0

    def settings(self) -> dict[str, Any]:
        """What differs from nothing: an objective's absent parts are left out."""
        return {name: value for name, value in asdict(self).items() if value not in (0.0, "none")}


def corrupt(settings: Pretraining, rows: Tensor, generator: Generator) -> Tensor:
    match settings.corruption:
        case "masking":
            return corruption.masking(rows, settings.level, generator)
        case "salt-and-pepper":
            return corruption.salt_and_pepper(rows, settings.level, generator)
        case "gaussian":  # the papers add it and do not clip
            return rows + settings.level * torch.randn(rows.shape, generator=generator, device=rows.device)
        case _:
            return rows


def train_layer(settings: Pretraining, rows: Tensor, generator: Generator, name: str) -> dict[str, Tensor]:
    """Weight [L, N] and bias [L] of the encoder of `train_network`, on the CPU."""
    return on_cpu(train_network(settings, rows, generator, name).encoder[0])


def train_network(settings: Pretraining, rows: Tensor, generator: Generator, name: str) -> DenseAutoencoder:
    """A sigmoid layer [N] -> [L] trained on rows [B, N] in 0..1; the decoder is its transpose with its own bias.

    Trained, and left, on the generator's device.
    """
    device = generator.device
    rows = rows.to(device)
    recipe = recipes.Dense(
        kind="dense", latent=settings.units, latent_activation="sigmoid", output_activation="sigmoid", tied=True
    )
    network = networks.build(recipe, (rows.shape[1],))
    assert isinstance(network, DenseAutoencoder), "a dense recipe; this is a bug"
    network.to(device)
    if settings.offset:
        begin_at_mean(network, rows, settings.offset)
    for _ in descent.epochs(
        name,
        lambda indices: objective(settings, network, rows[indices], generator),
        descent.adam(network.parameters(), settings.learning_rate, device),
        row_count=len(rows),
        batch_rows=settings.batch_rows,
        count=settings.epochs,
        schedule=descent.cosine,
        generator=generator,
    ):
        pass
    return network


def begin_at_mean(network: DenseAutoencoder, rows: Tensor, offset: float) -> None:
    """Biases of a tied layer: units are sigmoid(-offset) for the mean of rows [B, N], the decoder's its logit."""
    mean = rows.mean(0)
    layer = network.encoder[0]
    assert isinstance(layer, nn.Linear), "dense layers; this is a bug"
    assert network.tied_bias is not None, "a tied layer; this is a bug"
    with torch.no_grad():
        layer.bias.copy_(-(layer.weight @ mean) - offset)
        network.tied_bias[0].copy_(torch.logit(mean, eps=_LEAST_MEAN))


def objective(settings: Pretraining, network: DenseAutoencoder, batch: Tensor, generator: Generator) -> Tensor:
    """Cross-entropy of the clean batch [B, N], summed over its elements, and the penalties; a scalar in nats a row."""
    latents = network.encode(corrupt(settings, batch, generator))
    loss = losses.cross_entropy(network.logits(latents), batch)
    weight = network.input_weight()
    if settings.weight_decay:
        loss = loss + settings.weight_decay * weight.square().sum()
    if settings.contraction:
        loss = loss + settings.contraction * penalties.contractive(latents, weight)
    return loss


def pretrain(bench: Bench, data: str, rows: Tensor, layers: list[Pretraining]) -> tuple[list[nn.Linear], float]:
    """One layer after another, each on the clean output of those below; kept by `bench`. Rows [B, N].

    Gives the layers, on the CPU, and the seconds that were not spent now, because layers were there already.
    """
    trained: list[nn.Linear] = []
    cached_s = 0.0
    rows = rows.to(bench.device)
    for index in range(len(layers)):
        inputs, settings = rows, layers[index]
        torch.manual_seed(1000 * bench.seed + index)
        generator = bench.generator(index)
        make = partial(train_layer, settings, inputs, generator, f"{data} layer {index + 1}")
        key = {"data": data, "layers": [layer.settings() for layer in layers[: index + 1]]}
        tensors, spent_s = bench.cached(key, make)
        layer = nn.Linear(inputs.shape[1], settings.units)
        layer.load_state_dict(tensors)
        trained.append(layer)
        cached_s += spent_s
        if index + 1 < len(layers):
            rows = encode(copy.deepcopy(layer).to(bench.device), inputs)
    return trained, cached_s


def on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in module.state_dict().items()}


def encode(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Rows [B, N] to the layer's activations [B, L]."""
    with torch.no_grad():
        return torch.cat([torch.sigmoid(layer(chunk)) for chunk in torch.split(rows, _ENCODING_ROWS)])
