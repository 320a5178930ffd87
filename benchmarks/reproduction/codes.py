"""What codes are good for: few labels, a linear probe, neighbours, novelty, each beside raw pixels and PCA.

Shape legend: B rows, N elements of a row, L features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.reproduction.bench import Bench, Figures, Outcome, say
from benchmarks.reproduction.contractive import VARIANTS
from benchmarks.reproduction.layers import Pretraining, encode, pretrain, train_network
from benchmarks.reproduction.rows import Group, Paper, Row, Trial
from training.data import Dataset
from training.evaluate import PROBE_ROWS, PeerPCA, code_metrics

LABELS_A_CLASS = (1, 10, 100)
DRAWS = 10
UNITS = 32
SMALL = Pretraining(units=UNITS, epochs=15, learning_rate=2e-3)
DATA = ("mnist", "fashion-mnist")
# Features are brought to this mean squared norm, so that one strength of the classifier's penalty suits all.
_SQUARED_NORM = 100.0

Encoder = Callable[[Tensor], Tensor]


def pixels(bench: Bench, dataset: Dataset) -> tuple[Encoder, float]:
    return lambda rows: rows.flatten(1), 0.0


def components(bench: Bench, dataset: Dataset) -> tuple[Encoder, float]:
    return PeerPCA(dataset.train_rows, UNITS).encode, 0.0


def layer(settings: Pretraining) -> Callable[[Bench, Dataset], tuple[Encoder, float]]:
    def make(bench: Bench, dataset: Dataset) -> tuple[Encoder, float]:
        (trained,), cached_s = pretrain(bench, dataset.name, dataset.train_rows.flatten(1), [settings])
        return lambda rows: encode(trained, rows.flatten(1)), cached_s

    return make


FEATURES: dict[str, tuple[str, Callable[[Bench, Dataset], tuple[Encoder, float]]]] = {
    "pixels": ("raw pixels", pixels),
    "pca": (f"PCA, {UNITS}", components),
    "ae": (f"autoencoder, {UNITS}", layer(SMALL)),
    "dae": ("denoising autoencoder, 1,000", layer(VARIANTS["dae-gaussian"])),
    "cae": ("contractive autoencoder, 1,000", layer(VARIANTS["cae"])),
}


def code_trial(data: str, kind: str) -> Trial:
    def run(bench: Bench) -> Outcome:
        dataset = bench.dataset(data)
        encoder, cached_s = FEATURES[kind][1](bench, dataset)
        train, test = encoder(dataset.train_rows), encoder(dataset.test_rows)
        figures: Figures = {}
        for count in LABELS_A_CLASS:
            figures[f"accuracy_{count * dataset.class_count}_labels"] = few_labels(
                train,
                dataset.train_labels,
                test,
                dataset.test_labels,
                count,
                bench.generator(200 + count, torch.device("cpu")),
            )
            say(f"{data} {kind}: {figures}")
        figures |= code_metrics(train[:PROBE_ROWS], dataset.train_labels[:PROBE_ROWS], test, dataset.test_labels)
        figures = {name: 100 * value for name, value in figures.items()}
        return Outcome(figures=figures, settings={"features": kind, "draws": DRAWS}, cached_s=cached_s)

    return run


def few_labels(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, a_class: int, generator: Generator
) -> float:
    """Test accuracy of logistic regression on so many labelled rows [B, L] a class, averaged over draws of them."""
    middle = train.mean(0)
    scale = float((_SQUARED_NORM / (train - middle).square().sum(1).mean()).sqrt())
    scaled, scaled_test = ((train - middle) * scale).numpy(), ((test - middle) * scale).numpy()
    accuracies = []
    for _ in range(DRAWS):
        order = torch.randperm(len(labels), generator=generator)
        drawn = torch.cat([order[labels[order] == k][:a_class] for k in range(int(labels.max()) + 1)]).numpy()
        probe = LogisticRegression(max_iter=500).fit(scaled[drawn], labels.numpy()[drawn])
        accuracies.append(float(probe.score(scaled_test, test_labels.numpy())))
    return mean(accuracies)


def pca_error(rows: Tensor, bench: Bench) -> Encoder:
    pca = PeerPCA(rows, UNITS)
    return lambda test: (pca.reconstruct(test) - test).square().flatten(1).sum(1)


def network_error(settings: Pretraining) -> Callable[[Tensor, Bench], Encoder]:
    def make(rows: Tensor, bench: Bench) -> Encoder:
        network = train_network(settings, rows.flatten(1), bench.generator(300), "novelty")

        def error(test: Tensor) -> Tensor:
            flat = test.flatten(1).to(bench.device)
            with torch.no_grad():
                logits = network.logits(network.encode(flat))
            return functional.binary_cross_entropy_with_logits(logits, flat, reduction="none").sum(1).cpu()

        return error

    return make


NOVELTY: dict[str, tuple[str, Callable[[Tensor, Bench], Encoder]]] = {
    "pca": (f"PCA, {UNITS}", pca_error),
    "ae": (f"autoencoder, {UNITS}", network_error(SMALL)),
}


def novelty_trial(data: str, kind: str) -> Trial:
    def run(bench: Bench) -> Outcome:
        dataset = bench.dataset(data)
        areas: list[float] = []
        for left_out in range(dataset.class_count):
            torch.manual_seed(bench.seed)
            error = NOVELTY[kind][1](dataset.train_rows[dataset.train_labels != left_out], bench)
            novel: npt.NDArray[np.bool_] = (dataset.test_labels == left_out).numpy()
            areas.append(float(roc_auc_score(novel, error(dataset.test_rows).numpy())))
            say(f"novelty, {data} without {left_out}: {areas[-1]:.3f}")
        figures = {"auroc": mean(areas), "least_auroc": min(areas), "largest_auroc": max(areas)}
        return Outcome(figures=figures, settings={"score": kind, "units": UNITS})

    return run


def code_group() -> Group:
    rows = tuple(
        Row(
            name=f"codes-{data}-{kind}",
            title=f"{data}: {title}",
            metric="accuracy_100_labels",
            form=".2f",
            better="higher",
            paper=Paper(value=None, note="none"),
            trials={"ours": code_trial(data, kind)},
            wanted={},
            more=("accuracy_10_labels", "accuracy_1000_labels", "linear_probe_accuracy", "knn_accuracy"),
        )
        for data in DATA
        for kind, (title, _) in FEATURES.items()
    )
    return Group(
        title="Codes: few labels, a linear probe, neighbours",
        text=(
            "Test accuracy of logistic regression on codes that were learned without labels, with 100 labelled "
            "rows (10 a class; mean over ten draws); below with 10 and 1,000 labels, and, as docs/training.md "
            "defines them, by a linear probe and by 5 neighbours among 20,000 rows. The encoders see 50,000 "
            "training rows without labels. There is no published figure; raw pixels and PCA are what a code has "
            "to beat."
        ),
        unit="accuracy with 100 labels, %",
        rows=rows,
    )


def novelty_group() -> Group:
    rows = tuple(
        Row(
            name=f"novelty-{data}-{kind}",
            title=f"{data}: {title}",
            metric="auroc",
            form=".3f",
            better="higher",
            paper=Paper(value=None, note="none"),
            trials={"ours": novelty_trial(data, kind)},
            wanted={},
            more=("least_auroc", "largest_auroc"),
        )
        for data in DATA
        for kind, (title, _) in NOVELTY.items()
    )
    return Group(
        title="Novelty: one class left out of training",
        text=(
            "Area under the ROC curve of a test row's reconstruction error as a sign that it belongs to the class "
            "that was left out of training, averaged over the ten classes; the least and the largest of them "
            "below. Squared error for PCA, cross-entropy for the autoencoder, which is tied, sigmoid, of the same "
            "code size."
        ),
        unit="AUROC",
        rows=rows,
    )
