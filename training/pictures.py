"""The pictures of reports and cards, drawn with matplotlib without a display.

Shape legend: B rows, H height, W width, M elements of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from training import recipes
from training.corruption import corrupt
from training.data import Dataset
from training.evaluate import DENOISING_SEED, encode
from training.networks import Autoencoder

_STEPS = 10
_FEATURES = 64
_SCATTER_ROWS = 2000


def overview(recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset) -> Figure:
    """One example of each class as it is, corrupted, and as the model gives it back; and a path between two."""
    rows = dataset.test_rows[class_examples(dataset)]
    lines = [("original", rows)]
    given = rows
    if recipe.corruption.kind != "none":
        given = corrupt(recipe.corruption, rows, torch.Generator().manual_seed(DENOISING_SEED))
        lines.append(("corrupted", given))
    with torch.no_grad():
        lines.append(("denoised" if recipe.corruption.kind != "none" else "reconstructed", network(given)))
    lines.append(("interpolated", interpolation(network, rows[2], rows[7])))
    return strips(lines)


def strips(lines: Sequence[tuple[str, Tensor]]) -> Figure:
    """Named lines of pictures [B, H, W], one under the other."""
    columns = max(len(rows) for _, rows in lines)
    figure = Figure(figsize=(0.95 * columns + 1.4, 0.95 * len(lines)))
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for line, (name, rows) in zip(axes, lines, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, row in zip(line, rows, strict=False):
            axis.imshow(row.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=11)
    figure.subplots_adjust(
        left=1.4 / (0.95 * columns + 1.4), right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.06
    )
    return figure


def interpolation(network: Autoencoder, first: Tensor, second: Tensor) -> Tensor:
    """Rows on the straight line between the latents of two rows [H, W]."""
    with torch.no_grad():
        a, b = network.encode(torch.stack([first, second]))
        weights = torch.linspace(0, 1, _STEPS).reshape(-1, *[1] * a.ndim)
        return network.decode(torch.lerp(a, b, weights))


def losses(metrics: Sequence[dict[str, Any]]) -> Figure | None:
    """The log of a run, a panel a phase; None for a procedure without epochs."""
    phases = list(dict.fromkeys(entry["phase"] for entry in metrics))
    if not phases:
        return None
    figure = Figure(figsize=(5 * len(phases), 3.4), layout="constrained")
    for axis, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        entries = [entry for entry in metrics if entry["phase"] == phase]
        epochs = [entry["epoch"] for entry in entries]
        axis.plot(epochs, [entry["train_loss"] for entry in entries], label="training loss")
        if "validation_loss" in entries[0]:
            axis.plot(epochs, [entry["validation_loss"] for entry in entries], label="validation loss")
        if any(entry["train_penalty"] for entry in entries):
            axis.plot(epochs, [entry["train_penalty"] for entry in entries], label="penalty (weighted)", ls=":")
        axis.set(title=phase, xlabel="epoch", yscale="log")
        axis.grid(visible=True, which="both", alpha=0.25)
        handles, labels = axis.get_legend_handles_labels()
        if "validation_accuracy" in entries[0]:
            other = axis.twinx()
            accuracy = [entry["validation_accuracy"] for entry in entries]
            (line,) = other.plot(epochs, accuracy, color="tab:green")
            other.set_ylabel("validation accuracy")
            handles, labels = [*handles, line], [*labels, "validation accuracy"]
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(handles, labels, loc="center right")
    return figure


def features(recipe: recipes.Recipe, network: Autoencoder) -> Figure:
    """The weights of the first layer's units as pictures, each scaled to its own largest weight; red is positive."""
    weights = network.input_weight().detach()
    shape = network.row_shape
    if isinstance(recipe.network, recipes.Convolutional):
        shape = (recipe.network.kernel, recipe.network.kernel)
    # The units with the largest weights: a unit that learned nothing looks like noise.
    order = weights.norm(dim=1).argsort(descending=True)[:_FEATURES]
    columns = min(16, len(order))
    lines = -(-len(order) // columns)
    figure = Figure(figsize=(0.75 * columns, 0.75 * lines))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, order, strict=False):
        weight = weights[index].reshape(shape).numpy()
        bound = max(float(np.abs(weight).max()), 1e-12)
        axis.imshow(weight, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01, wspace=0.08, hspace=0.08)
    return figure


def latent_space(network: Autoencoder, dataset: Dataset) -> Figure:
    """Latents of test rows in two dimensions, by PCA and by t-SNE, coloured by class."""
    count = min(_SCATTER_ROWS, len(dataset.test_rows))
    latents = encode(network, dataset.test_rows[:count]).numpy()
    labels = dataset.test_labels[:count].numpy()
    figure = Figure(figsize=(11, 5), layout="constrained")
    narrow = PCA(min(50, *latents.shape), random_state=0).fit_transform(latents)
    flat = {"first two principal components": narrow[:, :2], "t-SNE": TSNE(random_state=0).fit_transform(narrow)}
    for axis, (title, points) in zip(figure.subplots(1, 2), flat.items(), strict=True):
        dots = axis.scatter(points[:, 0], points[:, -1], c=labels, cmap="tab10", s=6, vmin=-0.5, vmax=9.5)
        axis.set(title=f"{title}, {count} test rows", xticks=[], yticks=[])
    figure.colorbar(dots, ax=figure.axes, ticks=range(10), label="class")
    return figure


def class_examples(dataset: Dataset) -> Tensor:
    """The index of the first test row of each class."""
    return torch.stack([(dataset.test_labels == label).nonzero()[0, 0] for label in range(dataset.class_count)])
