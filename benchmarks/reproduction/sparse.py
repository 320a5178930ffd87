"""UFLDL, exercise "Implement deep networks for digit classification": two sparse layers of 200 units, fine-tuned.

Shape legend: B rows, N inputs, L units.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import partial

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor, nn

from benchmarks.reproduction import descent
from benchmarks.reproduction.bench import Bench, Outcome
from benchmarks.reproduction.classifier import Classifier, FineTuning, error_percent, fine_tune
from benchmarks.reproduction.layers import encode, on_cpu
from benchmarks.reproduction.rows import Group, Paper, Row
from training import losses, networks, penalties, recipes
from training.networks import DenseAutoencoder

TEST_ROWS = 10_000
LAYERS = 2
# Of the softmax on frozen codes, times half the sum of its squared weights, beside a mean loss; by L-BFGS, as there.
SOFTMAX_DECAY = 1e-4
SOFTMAX_ITERATIONS = 300
TUNING = FineTuning(epochs=20, learning_rate=0.1, momentum=0.9, weight_decay=1e-5, schedule="cosine")


@dataclass(frozen=True, kw_only=True)
class SparseLayer:
    """J = half the squared error + weight_decay / 2 times the squared weights + beta times KL(rho, mean activation)."""

    units: int = 200
    rho: float = 0.1
    weight_decay: float = 3e-3
    beta: float = 3.0
    epochs: int = 20
    # Large, as the penalty is of the mean activation over all rows.
    batch_rows: int = 1000
    learning_rate: float = 5e-3


def train_layer(settings: SparseLayer, rows: Tensor, generator: Generator, name: str) -> dict[str, Tensor]:
    """Weight [L, N] and bias [L] of a sigmoid layer of rows [B, N] in 0..1; the decoder has weights of its own."""
    device = generator.device
    rows = rows.to(device)
    recipe = recipes.Dense(
        kind="dense", latent=settings.units, latent_activation="sigmoid", output_activation="sigmoid"
    )
    network = networks.build(recipe, (rows.shape[1],))
    assert isinstance(network, DenseAutoencoder), "a dense recipe; this is a bug"
    weights = [parameter for parameter in network.parameters() if parameter.ndim == 2]

    def loss_of(indices: Tensor) -> Tensor:
        batch = rows[indices]
        latents = network.encode(batch)
        loss = losses.squared_error(network.decode(latents), batch) / 2
        loss = loss + settings.beta * penalties.kl_sparsity(latents, settings.rho)
        for weight in weights:
            loss = loss + settings.weight_decay / 2 * weight.square().sum()
        return loss

    network.to(device)
    for _ in descent.epochs(
        name,
        loss_of,
        descent.adam(network.parameters(), settings.learning_rate, device),
        row_count=len(rows),
        batch_rows=settings.batch_rows,
        count=settings.epochs,
        schedule=descent.cosine,
        generator=generator,
    ):
        pass
    return on_cpu(network.encoder[0])


def fit_softmax(output: nn.Linear, codes: Tensor, labels: Tensor) -> None:
    """Sets the classifier on top [L] -> [K] to the optimum for codes [B, L]."""
    strength = 1 / (SOFTMAX_DECAY * len(codes))
    with warnings.catch_warnings():
        # Ended by the number of iterations, as the exercise is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=SOFTMAX_ITERATIONS).fit(codes.numpy(), labels.numpy())
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(fitted.coef_))
        output.bias.copy_(torch.from_numpy(fitted.intercept_))


def trial(bench: Bench) -> Outcome:
    dataset = bench.dataset("mnist")
    settings = SparseLayer()
    rows, layers = dataset.train_rows.flatten(1), []
    cached_s = 0.0
    for index in range(LAYERS):
        make = partial(train_layer, settings, rows, bench.generator(index), f"sparse layer {index + 1}")
        tensors, spent_s = bench.cached({"sparse": asdict(settings), "layer": index}, make)
        layer = nn.Linear(rows.shape[1], settings.units)
        layer.load_state_dict(tensors)
        layers.append(layer)
        rows = encode(layer, rows)
        cached_s += spent_s
    mean_activation = float(rows.mean())
    classifier = Classifier(layers, dataset.class_count)
    fit_softmax(classifier.output, rows, dataset.train_labels)
    before = 100 - error_percent(classifier, dataset.test_rows, dataset.test_labels)
    figures = fine_tune(TUNING, classifier, dataset, bench.generator(101))
    figures["test_accuracy_percent"] = 100 - figures["test_error_percent"]
    figures["test_accuracy_percent_before"] = before
    figures["second_layer_mean_activation"] = mean_activation
    record = {
        "layers": LAYERS,
        "pretraining": asdict(settings),
        "softmax": {"weight_decay": SOFTMAX_DECAY, "iterations": SOFTMAX_ITERATIONS},
        "fine-tuning": TUNING.settings(),
    }
    return Outcome(figures=figures, settings=record, cached_s=cached_s)


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
