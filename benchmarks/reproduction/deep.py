"""Hinton & Salakhutdinov 2006: MNIST through 784-1000-500-250-30 and back; squared error summed over a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.reproduction import descent
from benchmarks.reproduction.bench import Bench, Figures, Outcome
from benchmarks.reproduction.rows import Group, Paper, Row
from training import losses, networks, recipes
from training.evaluate import PeerPCA, picture_metrics, reconstruct
from training.procedures import shift

CODE_UNITS = 30
NETWORK = recipes.Dense(
    kind="dense",
    hidden=(1000, 500, 250),
    latent=CODE_UNITS,
    activation="relu",
    latent_activation="linear",
    output_activation="sigmoid",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    epochs: int = 60
    batch_rows: int = 200
    learning_rate: float = 2e-3
    # Of each batch: moved by up to a pixel, each row its own way.
    shifted_share: float = 0.5
    # Of the epochs: the learning rate rises over these, then falls to 0 by a cosine.
    warmup_share: float = 0.04


def pca_trial(bench: Bench) -> Outcome:
    """Principal components fitted to all 60,000 training rows."""
    whole = bench.dataset("mnist")
    pca = PeerPCA(torch.cat([whole.train_rows, whole.validation_rows]), CODE_UNITS)
    return Outcome(figures=pictures(pca.reconstruct(whole.test_rows), whole.test_rows), settings={"units": CODE_UNITS})


def trial(bench: Bench) -> Outcome:
    """Trained at once from Glorot's initialisation; nothing is chosen, so that all 60,000 rows are trained on."""
    settings = Settings()
    whole = bench.dataset("mnist")
    rows = torch.cat([whole.train_rows, whole.validation_rows]).to(bench.device)
    network = networks.build(NETWORK, whole.row_shape).to(bench.device)
    generator = bench.generator()

    def loss_of(indices: Tensor) -> Tensor:
        batch = rows[indices]
        shifted = int(settings.shifted_share * len(batch))
        batch = torch.cat([shift(batch[:shifted], 1, generator), batch[shifted:]])
        return losses.squared_error(network(batch), batch)

    def schedule(step: int, count: int) -> float:
        return min((step + 1) / (settings.warmup_share * count), descent.cosine(step, count))

    *_, error = descent.epochs(
        "deep",
        loss_of,
        descent.adam(network.parameters(), settings.learning_rate, bench.device),
        row_count=len(rows),
        batch_rows=settings.batch_rows,
        count=settings.epochs,
        schedule=schedule,
        generator=generator,
    )
    network.eval().cpu()
    figures = pictures(reconstruct(network, whole.test_rows), whole.test_rows)
    figures["last_epoch_training_error"] = error
    return Outcome(figures=figures, settings={**asdict(settings), "network": NETWORK.model_dump(mode="json")})


def pictures(outputs: torch.Tensor, targets: torch.Tensor) -> Figures:
    metrics = picture_metrics(outputs, targets)
    return {name: metrics[name] for name in ("squared_error_sum", "psnr_db", "ssim", "pixel_accuracy")}


def group() -> Group:
    more = ("psnr_db", "ssim", "pixel_accuracy", "last_epoch_training_error")
    return Group(
        title="Hinton & Salakhutdinov 2006: 784-1000-500-250-30 on MNIST",
        text=(
            "Squared error of a test picture, summed over its pixels. The paper pretrained logistic units as "
            "restricted Boltzmann machines and fine-tuned them by conjugate gradients on cross-entropy. Ours has "
            "the same widths and linear code, but ReLU units, no pretraining, Adam with a cosine schedule on the "
            "squared error, and trains on all 60,000 rows for a fixed number of epochs, half of them moved by up to a "
            "pixel (augmentation, which the paper did not use)."
        ),
        unit="squared error",
        rows=(
            Row(
                name="hinton-pca",
                title="PCA, 30 components",
                metric="squared_error_sum",
                form=".2f",
                better="lower",
                paper=Paper(value=13.87),
                trials={"paper": pca_trial},
                wanted={"paper": 13.87},
                more=more,
            ),
            Row(
                name="hinton-deep",
                title="deep autoencoder, 30 units",
                metric="squared_error_sum",
                form=".2f",
                better="lower",
                paper=Paper(value=3.0),
                trials={"ours": trial},
                wanted={"ours": 3.0},
                more=more,
            ),
        ),
    )
