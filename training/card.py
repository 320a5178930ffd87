"""The card of a model package: one small picture and one page."""

from __future__ import annotations

import io

from autoencoder.v1 import model_pb2
from training import pictures, recipes
from training.data import Dataset
from training.networks import Autoencoder

_DPI = 60

_TERMS = {
    "mnist": "MNIST: copyright Y. LeCun and C. Cortes, commonly stated as CC BY-SA 3.0. The pictures on this card and "
    "the rows in `golden.npz` are from its test set.",
    "fashion-mnist": "Fashion-MNIST: MIT licence, copyright 2017 Zalando SE. The pictures on this card and the rows in "
    "`golden.npz` are from its test set.",
    "digits": "The pictures on this card and the rows in `golden.npz` are from the digits of scikit-learn: optical "
    "recognition of handwritten digits, E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY 4.0.",
}

_OWN = "The rows on this card and in `golden.npz` are test rows of that data."

_PICTURE = {
    model_pb2.TENSOR_KIND_IMAGE: "Pictures, what the model makes of them, and a path between two",
    model_pb2.TENSOR_KIND_VECTOR: "Rows and what the model makes of them",
    model_pb2.TENSOR_KIND_SERIES: "Windows and what the model makes of them",
}


def picture(recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset) -> bytes:
    """Test rows and what the model makes of them, as a PNG."""
    figure = pictures.overview(recipe, network, dataset)
    content = io.BytesIO()
    # Without the metadata of the library that drew it: the same picture is the same file.
    figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def text(manifest: model_pb2.Model) -> str:
    """The card in Markdown."""
    latent = " x ".join(map(str, manifest.latent.row_shape))
    rows = " x ".join(map(str, manifest.input.row_shape))
    columns = f"; columns: {', '.join(manifest.input.columns)}" if manifest.input.columns else ""
    operations = ", ".join(
        model_pb2.Operation.Name(operation).removeprefix("OPERATION_").lower() for operation in manifest.operations
    )
    # One's own data may have any name, that of a published set too.
    own = "path" in manifest.recipe["data"]  # type: ignore[operator]
    metrics = "\n".join(f"| {metric.name} | {metric.value:.6g} |" for metric in manifest.metrics)
    return f"""# {manifest.name}, version {manifest.version}

{manifest.description}

![{_PICTURE[manifest.input.kind]}](card.png)

- Row: {rows}, float32, {manifest.input.minimum:g} to {manifest.input.maximum:g}{columns}. Latent: {latent}, float32.
- Operations: {operations}.
- Data: {manifest.dataset.name}; {manifest.dataset.train_rows} rows to train on, {manifest.dataset.validation_rows} to
  choose by, {manifest.dataset.test_rows} to judge by.
- The graphs differ from PyTorch by {manifest.parity.max_absolute_difference:.2g} at most, on real rows.

{_OWN if own else _TERMS[manifest.dataset.name]}

| figure, on the test rows | value |
|---|---|
{metrics}

What each figure means stands in `docs/training.md`, and the recipe in `model.json`.
"""
