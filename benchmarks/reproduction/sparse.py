"""UFLDL, exercise "Implement deep networks for digit classification": two sparse layers of 200 units, fine-tuned.

Shape legend: B rows, N inputs, L units.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Generator, Tensor, nn

from benchmarks.reproduction.bench import Bench, Outcome, progress, say
from benchmarks.reproduction.classifier import Classifier, FineTuning, error_percent, fine_tune
from benchmarks.reproduction.layers import encode
from benchmarks.reproduction.rows import Group, Paper, Row
from training import losses, networks, penalties, recipes
from training.networks import DenseAutoencoder

TEST_ROWS = 10_000
LAYERS = 2
# The softmax on frozen codes, before fine-tuning.
SOFTMAX = FineTuning(epochs=15, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine")
TUNING = FineTuning(epochs=30, learning_rate=0.1, momentum=0.9, weight_decay=1e-5, schedule="cosine")


@dataclass(frozen=True, kw_only=True)
class SparseLayer:
    """J = half the squared error + weight_decay / 2 times the squared weights + beta times KL(rho, mean activation)."""

    units: int = 200
    rho: float = 0.1
    weight_decay: float = 3e-3
    beta: float = 3.0
    epochs: int = 30
    # Large, as the penalty is of the mean activation over all rows.
    batch_rows: int = 1000
    learning_rate: float = 5e-3


def train_layer(settings: SparseLayer, rows: Tensor, generator: Generator, name: str) -> nn.Linear:
    """A sigmoid layer [N] -> [L] of rows [B, N] in 0..1; the decoder has weights of its own."""
    recipe = recipes.Dense(
        kind="dense", latent=settings.units, latent_activation="sigmoid", output_activation="sigmoid"
    )
    network = networks.build(recipe, (rows.shape[1],))
    assert isinstance(network, DenseAutoencoder), "a dense recipe; this is a bug"
    weights = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    step_count, step = settings.epochs * math.ceil(len(rows) / settings.batch_rows), 0
    for epoch in progress(name, settings.epochs):
        for indices in torch.split(torch.randperm(len(rows), generator=generator), settings.batch_rows):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / step_count)) / 2
            batch = rows[indices]
            latents = network.encode(batch)
            loss = losses.squared_error(network.decode(latents), batch) / 2
            loss = loss + settings.beta * penalties.kl_sparsity(latents, settings.rho)
            for weight in weights:
                loss = loss + settings.weight_decay / 2 * weight.square().sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
        say(f"{name} epoch {epoch + 1}/{settings.epochs} objective {float(loss.detach()):.3f}")
    layer = network.encoder[0]
    assert isinstance(layer, nn.Linear), "dense layers; this is a bug"
    return layer


def trial(bench: Bench) -> Outcome:
    dataset = bench.dataset("mnist")
    settings = SparseLayer()
    rows, layers = dataset.train_rows.flatten(1), []
    for index in range(LAYERS):
        layer = train_layer(settings, rows, bench.generator(index), f"sparse layer {index + 1}")
        layers.append(layer)
        rows = encode(layer, rows)
    mean_activation = float(rows.mean())
    classifier = Classifier(layers, dataset.class_count)
    for layer in layers:
        layer.requires_grad_(False)
    fine_tune(SOFTMAX, classifier, dataset, bench.generator(100))
    before = 100 - error_percent(classifier, dataset.test_rows, dataset.test_labels)
    for layer in layers:
        layer.requires_grad_(True)
    figures = fine_tune(TUNING, classifier, dataset, bench.generator(101))
    figures["test_accuracy_percent"] = 100 - figures["test_error_percent"]
    figures["test_accuracy_percent_before"] = before
    figures["second_layer_mean_activation"] = mean_activation
    record = {
        "layers": LAYERS,
        "pretraining": asdict(settings),
        "softmax": SOFTMAX.settings(),
        "fine-tuning": TUNING.settings(),
    }
    return Outcome(figures=figures, settings=record)


def group() -> Group:
    return Group(
        title="UFLDL: two sparse layers of 200 units on MNIST",
        text=(
            "Test accuracy of 784-200-200-10 by the exercise's objective (rho 0.1, weight decay 3e-3, beta 3, "
            "squared error): with a softmax on the frozen code, published 87.7 %, and after fine-tuning. The "
            "exercise minimises by L-BFGS; here it is Adam on batches of 1,000 rows, then stochastic gradient "
            "descent with momentum."
        ),
        unit="test accuracy, %",
        rows=(
            Row(
                name="ufldl-stacked",
                title="stacked sparse 200-200, fine-tuned",
                metric="test_accuracy_percent",
                form=".2f",
                better="higher",
                paper=Paper(value=97.6, test_rows=TEST_ROWS),
                trials={"paper": trial},
                wanted={"paper": 97.6},
                more=("test_accuracy_percent_before", "second_layer_mean_activation"),
            ),
        ),
    )
