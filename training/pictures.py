"""The pictures of reports and cards, drawn with matplotlib without a display.

Shape legend: B rows, H height, W width, M elements of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
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
_SCATTER_ROWS, _LEAST_SCATTER_ROWS = 2000, 5
_EXAMPLES = 10
_CURVES = 6  # panels in a line, and lines of them
_NAMED_COLUMNS = 16  # with more, names would not find room
_WIDE = 5  # above this ratio of the largest loss to the smallest the scale is logarithmic
_DECADES = 100  # above this one, only powers of ten are written at it


def overview(recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset) -> Figure:
    """Test rows as they are, corrupted, and as the model gives them back; of images also a path between two."""
    rows = dataset.test_rows[examples(dataset)]
    lines = [("original", rows)]
    given = rows
    if recipe.corruption.kind != "none":
        given = corrupt(recipe.corruption, rows, torch.Generator().manual_seed(DENOISING_SEED))
        lines.append(("corrupted", given))
    with torch.no_grad():
        lines.append(("denoised" if recipe.corruption.kind != "none" else "reconstructed", network(given)))
    if dataset.kind == "series":
        return series_curves([(name, dataset.raw(values)) for name, values in lines], dataset)
    if dataset.kind == "vector":
        return vector_curves(lines, dataset)
    first, second = (2, 7) if len(rows) > 7 else (0, len(rows) - 1)
    lines.append(("interpolated", interpolation(network, rows[first], rows[second])))
    return strips(lines)


def series_curves(lines: Sequence[tuple[str, Tensor]], dataset: Dataset) -> Figure:
    """Named raw rows [B, W, C] over one another: a panel a row and column."""
    rows, columns = min(_CURVES, len(lines[0][1])), min(_CURVES, dataset.row_shape[-1])
    figure = Figure(figsize=(2.6 * rows + 0.6, 1.5 * columns + 0.6), layout="constrained")
    axes = figure.subplots(columns, rows, squeeze=False)
    for column, line in enumerate(axes):
        for row, axis in enumerate(line):
            for name, values in lines:
                axis.plot(values[row, :, column].numpy(), label=name, lw=1)
            axis.tick_params(labelsize=7)
        if dataset.columns:
            line[0].set_ylabel(dataset.columns[column], fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=8)
    return figure


def vector_curves(lines: Sequence[tuple[str, Tensor]], dataset: Dataset) -> Figure:
    """Named rows [B, C], as they are trained on, over one another: a panel a row."""
    rows, columns = min(_CURVES, len(lines[0][1])), dataset.row_shape[0]
    figure = Figure(figsize=(2.6 * rows + 0.6, 3.2), layout="constrained")
    axes = figure.subplots(1, rows, squeeze=False, sharey=True)[0]
    for row, axis in enumerate(axes):
        for name, values in lines:
            axis.plot(values[row].numpy(), label=name, lw=1, marker=".")
        axis.tick_params(labelsize=7)
        if dataset.columns and columns <= _NAMED_COLUMNS:
            axis.set_xticks(range(columns), dataset.columns, rotation=90)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel("deviations from the mean" if dataset.scaling else "value", fontsize=8)
    figure.supxlabel("column", fontsize=8)
    return figure


def strips(lines: Sequence[tuple[str, Tensor]]) -> Figure:
    """Named lines of pictures [B, H, W], or [B, H, W, colours], one under the other."""
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
    """Rows on the straight line between the latents of two rows [D...]."""
    with torch.no_grad():
        a, b = network.encode(torch.stack([first, second]))
        weights = torch.linspace(0, 1, _STEPS).reshape(-1, *[1] * a.ndim)
        return network.decode(torch.lerp(a, b, weights))


def scale_losses(axis: Axes) -> None:
    """A logarithmic scale where the losses drawn so far need it, with ticks written out."""
    values = [value for line in axis.lines for value in np.asarray(line.get_ydata(), dtype=float)]
    if values and 0 < min(values) < max(values) / _WIDE:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < _DECADES * min(values) else (1,)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


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
        axis.set(title=phase, xlabel="epoch", ylabel="loss, sum of a row")
        scale_losses(axis)
        axis.grid(visible=True, which="both", alpha=0.25)
        handles, labels = axis.get_legend_handles_labels()
        if "validation_accuracy" in entries[0]:
            other = axis.twinx()
            accuracy = [entry["validation_accuracy"] for entry in entries]
            (line,) = other.plot(epochs, accuracy, color="tab:green")
            other.set_ylabel("validation accuracy")
            handles, labels = [*handles, line], [*labels, "validation accuracy"]
        # Losses fall to the lower right; an accuracy rises to the upper right.
        axis.legend(handles, labels, loc="center right" if "validation_accuracy" in entries[0] else "upper right")
    return figure


def features(recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset) -> Figure | None:
    """The weights of the first layer's units as pictures, each scaled to its own largest weight; red is positive.

    Weights of colours are averaged. None for rows that are no pictures.
    """
    if dataset.kind != "image":
        return None
    weights = network.input_weight().detach()
    height, width, *colours = network.row_shape
    if isinstance(recipe.network, recipes.Convolutional):
        kernel = recipe.network.kernel
        weights = weights.reshape(len(weights), -1, kernel * kernel).mean(1)
        height, width = kernel, kernel
    elif colours:
        weights = weights.reshape(len(weights), height * width, -1).mean(2)
    # The units with the largest weights: a unit that learned nothing looks like noise.
    order = weights.norm(dim=1).argsort(descending=True)[:_FEATURES]
    columns = min(16, len(order))
    lines = -(-len(order) // columns)
    figure = Figure(figsize=(0.75 * columns, 0.75 * lines))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, order, strict=False):
        weight = weights[index].reshape(height, width).numpy()
        bound = max(float(np.abs(weight).max()), 1e-12)
        axis.imshow(weight, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01, wspace=0.08, hspace=0.08)
    return figure


def latent_space(network: Autoencoder, dataset: Dataset) -> Figure | None:
    """Latents of test rows in two dimensions, by PCA and by t-SNE, coloured by class; None for a handful of rows."""
    count = min(_SCATTER_ROWS, len(dataset.test_rows))
    if count < _LEAST_SCATTER_ROWS:
        return None
    latents = encode(network, dataset.test_rows[:count]).numpy()
    labels = dataset.test_labels[:count].numpy() if dataset.has_classes else None
    figure = Figure(figsize=(11, 5), layout="constrained")
    narrow = PCA(min(50, *latents.shape), random_state=0).fit_transform(latents)
    settings: dict[str, Any] = {"perplexity": min(30.0, (count - 1) / 3)}
    if narrow.shape[1] < 2:
        settings["init"] = "random"
    neighbours = TSNE(random_state=0, **settings).fit_transform(narrow)
    flat = {"first two principal components": narrow[:, :2], "t-SNE": neighbours}
    most = max(10, dataset.class_count)
    for axis, (title, points) in zip(figure.subplots(1, 2), flat.items(), strict=True):
        colour: dict[str, Any] = {}
        if labels is not None:
            colours = "tab10" if most == 10 else "turbo"
            colour = {"c": labels, "cmap": colours, "vmin": -0.5, "vmax": most - 0.5}
        dots = axis.scatter(points[:, 0], points[:, -1], s=6, **colour)
        axis.set(title=f"{title}, {count} test rows", xticks=[], yticks=[])
    if labels is not None:
        figure.colorbar(dots, ax=figure.axes, ticks=range(0, most, -(-most // 20)), label="class")
    return figure


def examples(dataset: Dataset) -> Tensor:
    """The indices of ten test rows at most: the first of each class, or evenly spread ones without classes."""
    labels = dataset.test_labels
    if not dataset.has_classes:
        count = min(_EXAMPLES, len(dataset.test_rows))
        return torch.linspace(0, len(dataset.test_rows) - 1, count).long()
    return torch.stack([(labels == label).nonzero()[0, 0] for label in sorted(set(labels.tolist()))[:_EXAMPLES]])
