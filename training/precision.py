"""Graphs in less than float32: in half precision, or in 8-bit integers with scales that were found on real rows.

Rows and latents stay float32 on the outside. Shape legend: B rows, D... the dimensions of a graph's input.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

CALIBRATION_ROWS = 1000
_CALIBRATION_BATCH_ROWS = 100
_MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})
_LAYERS = _MATRIX_PRODUCTS | {"Conv", "ConvTranspose"}

Array = npt.NDArray[np.float32]


def to_fp16(graph: bytes) -> bytes:
    """The graph with its weights and activations in half precision; values beyond its range become its largest."""
    with _quiet():
        model = OnnxModel(convert_float_to_float16(onnx.load_model_from_string(graph), keep_io_types=True))
        model.topological_sort()  # the converter puts its casts last
    return _standard(model.model)


def to_int8(graph: bytes, inputs: Array, *, latent_side: Literal["input", "output"]) -> bytes:
    """The graph with its layers in 8-bit integers, by static quantisation (Jacob et al. 2018).

    The largest and smallest activations on `inputs` [B, D...] give the scales; weights have one for each channel. A
    matrix product beside the latent stays in float32 where it is not the only layer: such latents have few elements,
    and each counts.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, made = (Path(folder) / name for name in ("given.onnx", "prepared.onnx", "made.onnx"))
        given.write_bytes(graph)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        layers = [node for node in onnx.load(prepared).graph.node if node.op_type in _LAYERS]
        beside_latent = layers[0] if latent_side == "input" else layers[-1]
        keeps = beside_latent.op_type in _MATRIX_PRODUCTS
        quantization.quantize_static(
            prepared,
            made,
            _Calibration(onnx.load(prepared).graph.input[0].name, inputs),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            # The fast kernels of x86 are for signed ones; `service.devices.exact_integers` keeps the others right.
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[beside_latent.name] if keeps and len(layers) > 1 else [],
        )
        return _standard(onnx.load(made))


def psnr_loss_db(rows: Array, before: Array, after: Array) -> float:
    """How much less the peak signal-to-noise ratio of `after` is than that of `before`, both [B, D...] in place of
    `rows`: 10 log10 of the ratio of their mean squared errors, whatever the range of the rows."""
    errors = [float(np.mean(np.square(made - rows, dtype=np.float64))) for made in (before, after)]
    least = float(np.finfo(np.float64).tiny)
    return float(10 * np.log10(max(errors[1], least) / max(errors[0], least)))


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, inputs: Array) -> None:
        self._batches = (
            {name: inputs[start : start + _CALIBRATION_BATCH_ROWS]}
            for start in range(0, len(inputs), _CALIBRATION_BATCH_ROWS)
        )

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._batches, None)


def _standard(model: onnx.ModelProto) -> bytes:
    """Bytes that are the same for the same graph, without what the converters leave behind."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "", "", ""
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in {"", "ai.onnx"} or opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


@contextmanager
def _quiet() -> Iterator[None]:
    # Both converters advise through the root logger.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
