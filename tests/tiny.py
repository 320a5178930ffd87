"""A model package small enough to make in a test, of plain matrix products whose results numpy can check.

Shape legend: B rows.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoencoder.v1 import model_pb2
from service import packages

Rows = npt.NDArray[np.float32]

ROW_SHAPE = (4, 4)
ELEMENTS = 16
LATENT = 3

_random = np.random.default_rng(7)
ENCODER_WEIGHTS: Rows = (_random.normal(size=(ELEMENTS, LATENT)) / 4).astype(np.float32)
DECODER_WEIGHTS: Rows = _random.normal(size=(LATENT, ELEMENTS)).astype(np.float32)


def encode(rows: Rows) -> Rows:
    """[B, 4, 4] to [B, 3], as the package's encoder does it."""
    result: Rows = rows.reshape(len(rows), ELEMENTS) @ ENCODER_WEIGHTS
    return result


def decode(latents: Rows) -> Rows:
    """[B, 3] to [B, 4, 4], as the package's decoder does it."""
    result: Rows = (latents @ DECODER_WEIGHTS).reshape(len(latents), *ROW_SHAPE)
    return result


def rows(count: int, seed: int = 0) -> Rows:
    """Rows [count, 4, 4] in 0..1, every one different from every other."""
    return np.random.default_rng(seed).random((count, *ROW_SHAPE), dtype=np.float32)


def graph(
    weights: Rows, in_shape: tuple[int, ...], out_shape: tuple[int, ...], in_name: str, out_name: str
) -> onnx.ModelProto:
    """A graph that flattens rows, multiplies them by `weights`, and gives them their shape."""
    nodes = [
        helper.make_node("Reshape", [in_name, "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Reshape", ["product", "out_shape"], [out_name]),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(in_name, TensorProto.FLOAT, ["batch", *in_shape])],
            [helper.make_tensor_value_info(out_name, TensorProto.FLOAT, ["batch", *out_shape])],
            [
                numpy_helper.from_array(np.array([-1, weights.shape[0]], np.int64), "flat_shape"),
                numpy_helper.from_array(weights, "weights"),
                numpy_helper.from_array(np.array([-1, *out_shape], np.int64), "out_shape"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def encoder() -> onnx.ModelProto:
    return graph(ENCODER_WEIGHTS, ROW_SHAPE, (LATENT,), "rows", "latents")


def decoder() -> onnx.ModelProto:
    return graph(DECODER_WEIGHTS, (LATENT,), ROW_SHAPE, "latents", "rows")


def manifest(name: str = "tiny", version: int = 1, *, denoises: bool = True) -> model_pb2.Model:
    """The manifest of a package, without its files."""
    operations = [
        model_pb2.OPERATION_ENCODE,
        model_pb2.OPERATION_DECODE,
        model_pb2.OPERATION_RECONSTRUCT,
        model_pb2.OPERATION_INTERPOLATE,
    ]
    model = model_pb2.Model(
        name=name,
        version=version,
        variant="linear",
        description="Two matrix products.",
        input=_spec(ROW_SHAPE, model_pb2.TENSOR_KIND_IMAGE),
        latent=_spec((LATENT,), model_pb2.TENSOR_KIND_VECTOR),
        output=_spec(ROW_SHAPE, model_pb2.TENSOR_KIND_IMAGE),
        operations=operations,
        reconstruction_error_quantiles=np.linspace(0.0, 2.0, 11).tolist(),
    )
    if denoises:
        model.operations.append(model_pb2.OPERATION_DENOISE)
        model.corruption.kind = "masking"
        model.corruption.level = 0.25
    return model


def files() -> dict[str, bytes]:
    """The files of a package, golden outputs included."""
    golden_rows = rows(5, seed=99)
    latents = encode(golden_rows)
    return {
        packages.ENCODER: encoder().SerializeToString(),
        packages.DECODER: decoder().SerializeToString(),
        packages.GOLDEN: npz(rows=golden_rows, latents=latents, reconstructions=decode(latents)),
    }


def write(models: Path, name: str = "tiny", version: int = 1, *, denoises: bool = True) -> Path:
    """Write a package under `models` and return its directory."""
    return packages.write(models, manifest(name, version, denoises=denoises), files())


def write_vectors(models: Path, name: str, elements: int, latent: int) -> Path:
    """Write a package of rows [elements] and latents [latent], and return its directory."""
    random = np.random.default_rng(elements)
    weights = random.normal(size=(elements, latent)).astype(np.float32)
    golden_rows = random.random((5, elements), dtype=np.float32)
    latents = golden_rows @ weights
    reconstructions = latents @ weights.T
    model = manifest(name, denoises=False)
    vector = model_pb2.TENSOR_KIND_VECTOR
    for spec, shape in ((model.input, elements), (model.latent, latent), (model.output, elements)):
        spec.CopyFrom(_spec((shape,), vector))
    content = {
        packages.ENCODER: graph(weights, (elements,), (latent,), "rows", "latents").SerializeToString(),
        packages.DECODER: graph(weights.T.copy(), (latent,), (elements,), "latents", "rows").SerializeToString(),
        packages.GOLDEN: npz(rows=golden_rows, latents=latents, reconstructions=reconstructions),
    }
    return packages.write(models, model, content)


def npz(**arrays: npt.NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _spec(shape: tuple[int, ...], kind: model_pb2.TensorKind) -> model_pb2.TensorSpec:
    return model_pb2.TensorSpec(dtype=model_pb2.DATA_TYPE_FLOAT32, row_shape=shape, minimum=0.0, maximum=1.0, kind=kind)
