"""Fine-tuning: a softmax on pretrained sigmoid layers, all of it trained on the labels by stochastic gradient descent.

Shape legend: B rows, H height, W width, N their product, L units, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.reproduction import descent
from benchmarks.reproduction.bench import Bench, Figures, say
from benchmarks.reproduction.redrawn import rotate
from training.data import Dataset
from training.procedures import shift

_EVALUATION_ROWS = 2000


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    epochs: int
    learning_rate: float
    batch_rows: int = 100
    momentum: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    dropout: float = 0.0
    input_dropout: float = 0.0
    weight_decay: float = 0.0
    # Each row is moved by up to so many pixels, down or up and right or left.
    shift_pixels: int = 0
    # Each row is turned by up to so many degrees, either way.
    turn_degrees: float = 0.0
    # Epochs without a better validation error after which it ends; 0: never.
    patience: int = 0

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != 0}


class Classifier(nn.Module):
    """Sigmoid layers and a softmax on top, which begins at zero. Takes flat rows [B, N], gives logits [B, K]."""

    def __init__(self, layers: list[nn.Linear], class_count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(layers[-1].out_features, class_count)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, rows: Tensor, dropout: float = 0.0) -> Tensor:
        for layer in self.layers:
            rows = torch.sigmoid(layer(rows))
            if dropout:
                rows = functional.dropout(rows, dropout)
        logits: Tensor = self.output(rows)
        return logits


def error_percent(classifier: Classifier, rows: Tensor, labels: Tensor) -> float:
    """Of rows [B, H, W] with labels [B]: how many in a hundred get another label."""
    device = classifier.output.weight.device
    with torch.no_grad():
        misses = sum(
            int((classifier(chunk.to(device).flatten(1)).argmax(1) != wanted.to(device)).sum())
            for chunk, wanted in zip(
                torch.split(rows, _EVALUATION_ROWS), torch.split(labels, _EVALUATION_ROWS), strict=True
            )
        )
    return 100 * misses / len(rows)


def augment(settings: FineTuning, rows: Tensor, generator: Generator) -> Tensor:
    """Rows [B, H, W] as the settings move and turn them, each otherwise."""
    if settings.turn_degrees:
        most = math.radians(settings.turn_degrees)
        rows = rotate(rows, most * (2 * torch.rand(len(rows), generator=generator, device=rows.device) - 1))
    if settings.shift_pixels:
        rows = shift(rows, settings.shift_pixels, generator)
    return rows


def fine_tune(settings: FineTuning, classifier: Classifier, dataset: Dataset, generator: Generator) -> Figures:
    """Trains `classifier` and leaves it at the epoch with the least validation error; test rows are touched once.

    Computes, and leaves the classifier, on the generator's device.
    """
    device = generator.device
    classifier.to(device)
    dataset = dataset.to(device)
    rows, labels = dataset.train_rows, dataset.train_labels

    def loss_of(indices: Tensor) -> Tensor:
        batch = augment(settings, rows[indices], generator).flatten(1)
        if settings.input_dropout:
            batch = functional.dropout(batch, settings.input_dropout)
        return functional.cross_entropy(classifier(batch, settings.dropout), labels[indices])

    optimiser = descent.sgd(
        classifier.parameters(),
        settings.learning_rate,
        device,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    taken = descent.epochs(
        "fine-tuning",
        loss_of,
        optimiser,
        row_count=len(rows),
        batch_rows=settings.batch_rows,
        count=settings.epochs,
        schedule=descent.cosine if settings.schedule == "cosine" else descent.constant,
        generator=generator,
    )
    best, best_epoch, best_state = math.inf, 0, copy.deepcopy(classifier.state_dict())
    for epoch, _ in enumerate(taken, 1):
        error = error_percent(classifier, dataset.validation_rows, dataset.validation_labels)
        say(f"fine-tuning epoch {epoch}/{settings.epochs} validation error {error:.2f} %")
        if error <= best:
            best, best_epoch, best_state = error, epoch, copy.deepcopy(classifier.state_dict())
        elif settings.patience and epoch - best_epoch >= settings.patience:
            break
    classifier.load_state_dict(best_state)
    return {
        "test_error_percent": error_percent(classifier, dataset.test_rows, dataset.test_labels),
        "validation_error_percent": best,
        "epoch": best_epoch,
        "epochs": epoch,
    }


def fine_tune_by_each(
    tunings: Sequence[FineTuning], layers: list[nn.Linear], dataset: Dataset, bench: Bench
) -> tuple[FineTuning, Figures]:
    """Fine-tunes the pretrained layers anew by each, and gives the one with the least validation error."""

    def one(settings: FineTuning) -> tuple[FineTuning, Figures]:
        classifier = Classifier(copy.deepcopy(layers), dataset.class_count)
        return settings, fine_tune(settings, classifier, dataset, bench.generator(100))

    return min(map(one, tunings), key=lambda tuned: tuned[1]["validation_error_percent"])
