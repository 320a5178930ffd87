"""From a run to a model package: graphs held to what PyTorch computes, golden outputs, manifest, card.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format
from torch import Tensor

from autoencoder.v1 import model_pb2
from service import packages
from training import card, data, recipes
from training.data import Dataset, Scaling
from training.errors import ParityError
from training.graphs import Decoder, Encoder, Graphs, session, to_onnx
from training.networks import Autoencoder
from training.precision import Precision
from training.reduction import MAX_PSNR_LOSS_DB, reduce
from training.runs import Run
from training.train import figures, require_same_rows, restore

ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-5, 1e-4
PARITY_BATCHES = (1, 2, 7, 64, 256)
GOLDEN_ROWS = 8

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "scikit-learn")
_OPERATIONS = (
    model_pb2.OPERATION_ENCODE,
    model_pb2.OPERATION_DECODE,
    model_pb2.OPERATION_RECONSTRUCT,
    model_pb2.OPERATION_INTERPOLATE,
)

_KINDS = {
    "image": model_pb2.TENSOR_KIND_IMAGE,
    "vector": model_pb2.TENSOR_KIND_VECTOR,
    "series": model_pb2.TENSOR_KIND_SERIES,
}


def export(
    run: Run,
    dataset: Dataset,
    models: Path,
    *,
    version: int | None = None,
    precision: Precision = "fp32",
    max_psnr_loss_db: float = MAX_PSNR_LOSS_DB,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the run's best network as a package under `models` and return its directory.

    Version: the given one, which is replaced where it exists, or one more than the largest. In less than fp32 the
    package is a model of its own, `NAME-fp16` or `NAME-int8`; what that costs and brings is told to `say`. Raises
    ParityError, and writes nothing, where the graphs do not compute what PyTorch computes, or where a lower precision
    costs more than `max_psnr_loss_db`.
    """
    recipe = run.recipe()
    require_same_rows(run, dataset)
    network = restore(run, dataset.row_shape)
    evaluation = figures(run, dataset, network)
    graphs = to_onnx(network, dataset.scaling)
    parity = check_parity(network, graphs, dataset.raw(dataset.test_rows[: max(PARITY_BATCHES)]), dataset.scaling)
    manifest = describe(recipe, network, dataset, evaluation)
    manifest.parity.CopyFrom(parity)
    if precision != "fp32":
        graphs = reduce(graphs, precision, dataset, manifest, max_psnr_loss_db=max_psnr_loss_db, say=say)
    manifest.version = packages.next_version(models, manifest.name) if version is None else version
    files = {
        packages.ENCODER: graphs.encoder,
        packages.DECODER: graphs.decoder,
        packages.GOLDEN: golden(network, dataset.raw(dataset.test_rows[:GOLDEN_ROWS]), dataset.scaling),
        "card.png": card.picture(recipe, network, dataset),
        "README.md": card.text(manifest).encode(),
    }
    models.mkdir(parents=True, exist_ok=True)
    return packages.write(models, manifest, files)


def check_parity(
    network: Autoencoder, graphs: Graphs, rows: Tensor, scaling: Scaling | None = None
) -> model_pb2.Parity:
    """Compare the graphs in onnxruntime with PyTorch, on raw rows [B, D...] in several batch sizes.

    Rows that come out are compared in units of the scaling.
    """
    encode, decode = Encoder(network, scaling), Decoder(network, scaling)
    unit = scaling.scale.numpy() if scaling else np.float32(1)
    parity = model_pb2.Parity(
        absolute_tolerance=ABSOLUTE_TOLERANCE, relative_tolerance=RELATIVE_TOLERANCE, batch_rows=PARITY_BATCHES
    )
    encoder, decoder = session(graphs.encoder), session(graphs.decoder)
    for count in PARITY_BATCHES:
        batch = rows[:count]
        with torch.no_grad():
            latents = encode(batch)
            outputs = decode(latents)
        for name, graph, given, expected, scale in (
            (packages.ENCODER, encoder, batch, latents, np.float32(1)),
            (packages.DECODER, decoder, latents, outputs, unit),
        ):
            got = graph.run(None, {graph.get_inputs()[0].name: given.contiguous().numpy()})[0]
            if got.shape != tuple(expected.shape):
                raise ParityError(f"{name}: gives shape {list(got.shape)}, PyTorch gives {list(expected.shape)}")
            got, wanted = got / scale, expected.numpy() / scale
            difference = float(np.max(np.abs(got - wanted)))
            if not np.allclose(got, wanted, atol=ABSOLUTE_TOLERANCE, rtol=RELATIVE_TOLERANCE):
                raise ParityError(
                    f"{name}: differs from PyTorch by {difference:.3g} on {len(batch)} rows, more than "
                    f"{ABSOLUTE_TOLERANCE:g} + {RELATIVE_TOLERANCE:g} x; nothing was exported"
                )
            parity.max_absolute_difference = max(parity.max_absolute_difference, difference)
    return parity


def golden(network: Autoencoder, rows: Tensor, scaling: Scaling | None = None) -> bytes:
    """`golden.npz`: raw rows [B, D...] with what PyTorch makes of them."""
    with torch.no_grad():
        latents = Encoder(network, scaling)(rows)
        outputs = Decoder(network, scaling)(latents)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        rows=rows.contiguous().numpy(),
        latents=latents.contiguous().numpy(),
        reconstructions=outputs.contiguous().numpy(),
    )
    return content.getvalue()


def describe(
    recipe: recipes.Recipe, network: Autoencoder, dataset: Dataset, evaluation: dict[str, Any]
) -> model_pb2.Model:
    """The manifest without version, files and parity."""
    model = model_pb2.Model(
        name=recipe.model_name,
        variant=recipe.name,
        description=recipe.description,
        operations=_OPERATIONS,
        reconstruction_error_quantiles=evaluation["reconstruction_error_quantiles"],
        library_versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        git_commit=_git_commit(),
    )
    table = recipe.model_dump(mode="json")
    # Of a built-in set the other keys say nothing.
    keys = {"name", "validation_share"} if recipe.data.path is None else None
    table["data"] = recipe.data.model_dump(mode="json", exclude_none=True, include=keys)
    if recipe.data.path is not None:  # where it lies on this machine is nobody's business
        table["data"]["path"] = Path(recipe.data.path).name
    json_format.ParseDict(table, model.recipe)
    for spec in (model.input, model.output):
        spec.CopyFrom(_spec(dataset.row_shape, dataset.minimum, dataset.maximum, _KINDS[dataset.kind]))
        spec.columns.extend(dataset.columns)
    if dataset.scaling is not None:
        model.row_scale.extend(dataset.scaling.scale.flatten().tolist())
    least, most = _latent_range(recipe)
    model.latent.CopyFrom(_spec(network.latent_shape, least, most, model_pb2.TENSOR_KIND_VECTOR))
    if not isinstance(recipe.corruption, recipes.NoCorruption):
        model.operations.append(model_pb2.OPERATION_DENOISE)
        model.corruption.kind = recipe.corruption.kind
        model.corruption.level = recipe.corruption.level
    model.dataset.CopyFrom(
        model_pb2.Dataset(
            name=dataset.name,
            fingerprint=dataset.fingerprint(),
            train_rows=len(dataset.train_rows),
            validation_rows=len(dataset.validation_rows),
            test_rows=len(dataset.test_rows),
        )
    )
    for name, value in sorted(evaluation["metrics"].items()):
        model.metrics.add(name=name, value=value)
    model.create_time.GetCurrentTime()
    model.create_time.nanos = 0
    return model


def _spec(shape: tuple[int, ...], least: float, most: float, kind: model_pb2.TensorKind) -> model_pb2.TensorSpec:
    return model_pb2.TensorSpec(
        dtype=model_pb2.DATA_TYPE_FLOAT32, row_shape=shape, minimum=least, maximum=most, kind=kind
    )


def _latent_range(recipe: recipes.Recipe) -> tuple[float, float]:
    """The range of the latent's activation; equal bounds where it has none."""
    activation = getattr(recipe.network, "latent_activation", "linear")
    return {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(activation, (0.0, 0.0))


def _git_commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(data.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
