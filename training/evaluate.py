"""How good a trained network is, on the test rows, beside PCA of the same code size and beside the noisy input.

`docs/training.md` defines every figure. Shape legend: B rows, D... the dimensions of a row, N their product,
L... the dimensions of a latent, M its elements.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from training import recipes
from training.corruption import corrupt
from training.data import Dataset
from training.networks import Autoencoder
from training.penalties import contractive_estimate
from training.procedures import (
    EVALUATION_ROWS,
    classification_accuracy,
    encode_chunks,
    mean_activation,
    principal_components,
)

PROBE_ROWS = 20_000
PROBE_ITERATIONS = 100
NEIGHBOURS = 5
PCA_ROWS, PCA_ELEMENTS = 60_000, 50_000_000
JACOBIAN_ROWS = 200
QUANTILE_COUNT = 101
DENOISING_SEED = 20_000
THRESHOLD = 0.5

_LEAST_ERROR = 1e-12  # a perfect copy has 120 dB, not infinity
_DEAD_RANGE = 1e-3
_SMALL_IMAGE, _LEAST_IMAGE = 16, 5
_JACOBIAN_CHUNK_ELEMENTS = 1 << 18  # of the Jacobians that are computed together
_MOST_JACOBIAN_ELEMENTS = 1 << 22  # of one row; a larger one takes minutes and gigabytes a row, and is estimated
_JACOBIAN_PROJECTIONS = 16
_JACOBIAN_SEED = 30_000

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` by name, and the quantiles of the validation rows' reconstruction error (mean square a row)."""

    metrics: dict[str, float]
    quantiles: list[float]

    def to_json(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "reconstruction_error_quantiles": self.quantiles}


def evaluate(
    recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset, classifier: nn.Linear | None
) -> Evaluation:
    """All figures of a network in evaluation mode; `classifier` [M] -> [K] is the one it was fine-tuned with."""
    network.eval()
    rows = dataset.test_rows
    similarity = picture_metrics if dataset.kind == "image" else row_metrics
    metrics = similarity(reconstruct(network, rows), rows)
    if network.output_activation == "sigmoid":
        metrics["cross_entropy"] = cross_entropy(network, rows, rows)
    if dataset.kind == "image":
        metrics["cross_entropy_floor"] = float((torch.special.entr(rows) + torch.special.entr(1 - rows)).mean())
        metrics["all_black_pixel_accuracy"] = float((rows <= THRESHOLD).float().mean())
    train_rows, train_labels = dataset.sample(PROBE_ROWS)
    latents = encode(network, rows)
    # A rare class need not be among the rows that the classifiers are fitted to.
    has_classes = dataset.has_classes and bool((train_labels != train_labels[0]).any())
    if has_classes:
        metrics |= code_metrics(encode(network, train_rows), train_labels, latents, dataset.test_labels)
    metrics["mean_activation"] = float(latents.mean())
    if recipe.penalty.kind == "kl-sparsity":
        metrics["train_mean_activation"] = mean_activation(network, dataset.train_rows)
    metrics["dead_units"] = dead_units(latents)
    metrics["jacobian_norm"] = jacobian_norm(network, rows[:JACOBIAN_ROWS])
    metrics["latent_units"] = math.prod(network.latent_shape)
    if classifier is not None:
        metrics["classifier_accuracy"] = classification_accuracy(network, classifier, rows, dataset.test_labels)

    pca = PeerPCA(dataset.sample(pca_rows(dataset))[0], math.prod(network.latent_shape))
    peer = similarity(pca.reconstruct(rows), rows)
    if has_classes:
        peer |= code_metrics(pca.encode(train_rows), train_labels, pca.encode(rows), dataset.test_labels)
    metrics |= prefixed("pca", peer)
    if recipe.corruption.kind != "none":
        noisy = corrupt(recipe.corruption, rows, torch.Generator().manual_seed(DENOISING_SEED))
        metrics |= prefixed("noisy", similarity(noisy, rows))
        metrics |= prefixed("denoised", similarity(reconstruct(network, noisy), rows))
        if network.output_activation == "sigmoid":
            metrics["denoised_cross_entropy"] = cross_entropy(network, noisy, rows)
        metrics |= prefixed("pca_denoised", similarity(pca.reconstruct(noisy), rows))

    validation = dataset.validation_rows
    errors = (reconstruct(network, validation) - validation).square().flatten(1).mean(1)
    quantiles = np.quantile(errors.numpy().astype(np.float64), np.linspace(0, 1, QUANTILE_COUNT))
    return Evaluation(metrics={name: float(value) for name, value in metrics.items()}, quantiles=quantiles.tolist())


def pca_rows(dataset: Dataset) -> int:
    """How many training rows PCA is fitted to at most."""
    return max(1, min(PCA_ROWS, PCA_ELEMENTS // math.prod(dataset.row_shape)))


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def encode(network: Autoencoder, rows: Tensor) -> Tensor:
    """Rows [B, D...] to flat latents [B, M]."""
    return torch.cat([chunk.flatten(1) for chunk in encode_chunks(network, rows)])


def reconstruct(network: Autoencoder, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network.decode(chunk) for chunk in encode_chunks(network, rows)])


def row_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How close rows [B, D...] are to what they should be, and how much of their variance about their mean is kept."""
    squares = (outputs - targets).square().double()
    mean = float(squares.mean())
    variance = float((targets - targets.mean(0)).square().double().mean())
    return {
        "squared_error_sum": float(squares.sum() / len(targets)),
        "mean_squared_error": mean,
        "explained_variance": 1 - mean / max(variance, _LEAST_ERROR),
    }


def picture_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How close pictures [B, H, W], or [B, H, W, colours], are to what they should be; `ssim` of 5 pixels or more."""
    squares = (outputs - targets).square()
    mean = float(squares.double().mean())
    similarity = {"ssim": ssim(outputs, targets)} if min(targets.shape[1:3]) >= _LEAST_IMAGE else {}
    return {
        "squared_error_sum": float(squares.double().sum() / len(targets)),
        "mean_squared_error": mean,
        "psnr_db": -10 * math.log10(max(mean, _LEAST_ERROR)),
        **similarity,
        "pixel_accuracy": float(((outputs > THRESHOLD) == (targets > THRESHOLD)).float().mean()),
    }


def ssim(outputs: Tensor, targets: Tensor) -> float:
    """Mean structural similarity of pictures [B, H, W], or [B, H, W, colours], in 0..1, by a Gaussian window.

    The window of the original paper, 11 pixels wide (sigma 1.5), does not fit a picture of 8 pixels, which gets 5.
    Every pixel counts, with the picture mirrored at its edges; the paper, and scikit-image, count whole windows alone.
    """
    sigma = 0.5 if min(targets.shape[1:3]) < _SMALL_IMAGE else 1.5
    total = 0.0
    for output, target in zip(
        torch.split(outputs.clamp(0, 1), EVALUATION_ROWS), torch.split(targets, EVALUATION_ROWS), strict=True
    ):
        similarity = structural_similarity_index_measure(
            _channels_first(output), _channels_first(target), sigma=sigma, data_range=1.0, reduction="sum"
        )
        assert isinstance(similarity, Tensor)
        total += float(similarity)
    return total / len(targets)


def _channels_first(pictures: Tensor) -> Tensor:
    return pictures.unsqueeze(1) if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2)


def cross_entropy(network: Autoencoder, inputs: Tensor, targets: Tensor) -> float:
    """The mean over all elements, in nats, as Keras gives it."""
    total = 0.0
    with torch.no_grad():
        for chunk, target in zip(
            torch.split(inputs, EVALUATION_ROWS), torch.split(targets, EVALUATION_ROWS), strict=True
        ):
            logits = network.logits(network.encode(chunk))
            total += float(functional.binary_cross_entropy_with_logits(logits, target, reduction="sum"))
    return total / targets.numel()


def code_metrics(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict[str, float]:
    """How much of the class can be read off flat latents [B, M]: by a linear classifier, by the nearest neighbours."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)))
    with warnings.catch_warnings():
        # Stopping early is part of the figure's definition.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train.numpy(), train_labels.numpy())
    neighbours.fit(train.numpy(), train_labels.numpy())
    return {
        "linear_probe_accuracy": float(probe.score(test.numpy(), test_labels.numpy())),
        "knn_accuracy": float(neighbours.score(test.numpy(), test_labels.numpy())),
    }


def dead_units(latents: Tensor) -> float:
    """How many elements of the flat latents [B, M] hardly change over the rows."""
    return float(((latents.amax(0) - latents.amin(0)) < _DEAD_RANGE).sum())


def jacobians(network: Autoencoder, rows: Tensor, *, keep_graph: bool = False) -> Tensor:
    """d latent / d row of each row [B, D...], as [B, M, N]."""

    def encode_one(row: Tensor) -> Tensor:
        return network.encode(row.unsqueeze(0)).flatten()

    result: Tensor = torch.func.vmap(torch.func.jacrev(encode_one))(rows).flatten(2)
    return result if keep_graph else result.detach()


def jacobian_norm(network: Autoencoder, rows: Tensor) -> float:
    """The Frobenius norm of d latent / d row, averaged over the rows; of large ones an estimate."""
    size = math.prod(network.latent_shape) * math.prod(network.row_shape)
    if size > _MOST_JACOBIAN_ELEMENTS:
        return _jacobian_norm_estimate(network, rows)
    chunk_rows = max(1, _JACOBIAN_CHUNK_ELEMENTS // size)
    norms = [jacobians(network, chunk).norm(dim=(1, 2)) for chunk in torch.split(rows, chunk_rows)]
    return float(torch.cat(norms).mean())


def _jacobian_norm_estimate(network: Autoencoder, rows: Tensor) -> float:
    """The same by random projections, row by row: see `penalties.contractive_estimate`."""
    generator = torch.Generator().manual_seed(_JACOBIAN_SEED)
    squares = [
        contractive_estimate(network, row, _JACOBIAN_PROJECTIONS, generator).detach() for row in torch.split(rows, 1)
    ]
    return float(torch.stack(squares).sqrt().mean())


class PeerPCA:
    """Principal components fitted to clean training rows, as many as the code has units or the rows allow."""

    def __init__(self, rows: Tensor, units: int) -> None:
        flat = rows.flatten(1).numpy()
        self._pca = principal_components(flat, min(units, *flat.shape))

    def encode(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._pca.transform(rows.flatten(1).numpy()).astype(np.float32))

    def reconstruct(self, rows: Tensor) -> Tensor:
        flat = self._pca.inverse_transform(self._pca.transform(rows.flatten(1).numpy()))
        return torch.from_numpy(flat.astype(np.float32)).reshape(rows.shape)
