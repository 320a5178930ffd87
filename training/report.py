"""A page one can look at: how training went, what the model does to pictures, what it learned, and the figures."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from training import pictures
from training.data import Dataset
from training.runs import Run
from training.train import figures as figures_of
from training.train import require_same_rows, restore

PAGE = "index.html"
_DPI = 90

# The figures that are shown beside those of the peers.
_ROWS = (
    ("squared error, sum of a row", "squared_error_sum"),
    ("explained variance", "explained_variance"),
    ("PSNR, dB", "psnr_db"),
    ("SSIM", "ssim"),
    ("pixel accuracy, both sides thresholded", "pixel_accuracy"),
    ("linear probe of the latents, accuracy", "linear_probe_accuracy"),
    ("5 nearest neighbours of the latents, accuracy", "knn_accuracy"),
)

_OVERVIEW = {
    "image": "Pictures, and a path between two latents",
    "series": "Windows, in their own units",
    "vector": "Rows, in their own units",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; }
"""


def report(run: Run, dataset: Dataset) -> Path:
    """Write the page and its pictures into the run's `report/` and return the page's path."""
    require_same_rows(run, dataset)
    recipe = run.recipe()
    network = restore(run, dataset.row_shape)
    metrics = figures_of(run, dataset, network)["metrics"]
    folder = run.report_folder
    folder.mkdir(exist_ok=True)
    figures: dict[str, tuple[str, Figure | None]] = {
        "losses": ("Losses", pictures.losses(run.metrics())),
        "pictures": (_OVERVIEW[dataset.kind], pictures.overview(recipe, network, dataset)),
        "features": ("Weights of the first layer (red is positive)", pictures.features(recipe, network, dataset)),
        "latents": ("Latent space", pictures.latent_space(network, dataset)),
    }
    parts = [f"<h1>{html.escape(recipe.model_name)}</h1>", f"<p>{html.escape(recipe.description)}</p>"]
    parts.append(_table(metrics))
    for name, (title, figure) in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=_DPI)
            parts.append(f'<h2>{title}</h2>\n<img src="{name}.png" alt="{title}">')
    recipe_text = json.dumps(recipe.model_dump(mode="json"), indent=2)
    parts.append(f"<h2>Recipe</h2>\n<pre>{html.escape(recipe_text)}</pre>")
    page = folder / PAGE
    page.write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{recipe.model_name}</title>\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n",
        encoding="utf-8",
    )
    return page


def _table(metrics: Mapping[str, float]) -> str:
    """The figures beside those of the peers, then the figures that have none."""
    peers = {"this model": "", f"PCA, {int(metrics['latent_units'])} units": "pca_"}
    if "noisy_psnr_db" in metrics:
        peers = {**peers, "noisy input": "noisy_", "denoised": "denoised_", "denoised by PCA": "pca_denoised_"}
    head = "".join(f"<th>{title}</th>" for title in ["figure, on the test rows", *peers])
    lines = [f"<tr>{head}</tr>"]
    shown = set()
    for title, name in _ROWS:
        keys = [prefix + name for prefix in peers.values()]
        shown.update(keys)
        if not any(key in metrics for key in keys):
            continue
        cells = "".join(f"<td>{metrics[key]:.4g}</td>" if key in metrics else "<td></td>" for key in keys)
        lines.append(f"<tr><td>{title}</td>{cells}</tr>")
    others = [
        f"<tr><td>{name.replace('_', ' ')}</td><td>{value:.4g}</td></tr>"
        for name, value in metrics.items()
        if name not in shown and not name.endswith("mean_squared_error")
    ]
    return f"<table>{''.join(lines)}</table>\n<table>{''.join(others)}</table>"
