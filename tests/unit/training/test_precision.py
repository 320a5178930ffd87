"""Graphs in less than float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from service.graphs import check_graph
from training import networks, precision, recipes
from training.graphs import Graphs, session, to_onnx

Array = npt.NDArray[np.float32]
ROW = (8, 8)


@pytest.fixture(scope="module", params=["dense", "deep", "conv"])
def graphs(request: pytest.FixtureRequest) -> Graphs:
    torch.manual_seed(0)
    dense: dict[str, Any] = {"kind": "dense", "latent": 6, "output_activation": "sigmoid"}
    recipe: Any = {
        "dense": recipes.Dense(**dense),
        "deep": recipes.Dense(**dense, hidden=(32, 16), activation="relu"),
        "conv": recipes.Convolutional(kind="convolutional", channels=(4, 2), decoder_channels=(2, 4)),
    }[request.param]
    return to_onnx(networks.build(recipe, ROW))


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(0).random((300, *ROW), np.float32)


def run(graph: bytes, inputs: Array) -> Array:
    loaded = session(graph)
    outputs: Array = loaded.run(None, {loaded.get_inputs()[0].name: inputs})[0]
    return outputs


def weight_bytes(graph: bytes) -> int:
    return sum(len(weight.raw_data) for weight in onnx.load_model_from_string(graph).graph.initializer)


def test_half_precision_is_half_the_bytes_and_nearly_the_same(graphs: Graphs, rows: Array) -> None:
    made = precision.to_fp16(graphs.encoder)
    latents, expected = run(made, rows), run(graphs.encoder, rows)
    assert latents.dtype == np.float32
    assert not np.array_equal(latents, expected)
    np.testing.assert_allclose(latents, expected, atol=2e-2)
    assert weight_bytes(made) < 0.6 * weight_bytes(graphs.encoder)
    check_graph("encoder.onnx", made, ROW, latents.shape[1:])


def test_8_bit_layers_are_close_and_stand_alone(graphs: Graphs, rows: Array) -> None:
    expected = run(graphs.encoder, rows)
    encoder = precision.to_int8(graphs.encoder, rows, latent_side="output")
    decoder = precision.to_int8(graphs.decoder, expected, latent_side="input")
    latents = run(encoder, rows)
    outputs = run(decoder, latents)
    assert 0 < np.abs(latents - expected).max() < 0.1 * np.ptp(expected)
    assert precision.psnr_loss_db(rows, run(graphs.decoder, expected), outputs) < 0.1
    for graph, shapes in ((encoder, (ROW, latents.shape[1:])), (decoder, (latents.shape[1:], ROW))):
        check_graph("graph.onnx", graph, *shapes)
        types = {node.op_type for node in onnx.load_model_from_string(graph).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= types
        # Of two dimensions and more: unsigned weights would be slower than float32.
        kinds = {weight.data_type for weight in onnx.load_model_from_string(graph).graph.initializer if weight.dims[1:]}
        assert onnx.TensorProto.INT8 in kinds
        assert onnx.TensorProto.UINT8 not in kinds


def test_the_same_graph_gives_the_same_bytes(graphs: Graphs, rows: Array) -> None:
    assert precision.to_fp16(graphs.encoder) == precision.to_fp16(graphs.encoder)
    first, second = (precision.to_int8(graphs.encoder, rows, latent_side="output") for _ in range(2))
    assert first == second


def test_scales_come_from_the_calibration_rows(graphs: Graphs, rows: Array) -> None:
    expected = run(graphs.encoder, rows)
    errors = []
    for calibration in (rows, 0.05 * rows):
        made = run(precision.to_int8(graphs.encoder, calibration, latent_side="output"), rows)
        errors.append(float(np.abs(made - expected).mean()))
    assert errors[1] > 3 * errors[0]


def test_a_loss_is_in_decibels_and_knows_no_range() -> None:
    rows = np.zeros((4, 3), np.float32)
    off, twice = rows + 1, rows + 2
    assert precision.psnr_loss_db(rows, off, twice) == pytest.approx(6.0206, abs=1e-3)
    assert precision.psnr_loss_db(100 * rows, 100 * off, 100 * twice) == pytest.approx(6.0206, abs=1e-3)
    assert precision.psnr_loss_db(rows, rows, rows) == 0
