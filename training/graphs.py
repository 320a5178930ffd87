"""From a network to the two ONNX graphs of a package, and running them.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from service.devices import exact_integers
from training.data import Scaling
from training.networks import Autoencoder

OPSET = 20


class Encoder(nn.Module):
    """Raw rows [B, D...] to latents [B, L...]: with the scaling of the data set, where it has one."""

    def __init__(self, network: Autoencoder, scaling: Scaling | None) -> None:
        super().__init__()
        self.network = network
        self.scaling = _Scaling(scaling) if scaling else None

    def forward(self, rows: Tensor) -> Tensor:
        return self.network.encode(rows if self.scaling is None else (rows - self.scaling.shift) / self.scaling.scale)


class Decoder(nn.Module):
    """Latents [B, L...] to raw rows [B, D...]."""

    def __init__(self, network: Autoencoder, scaling: Scaling | None) -> None:
        super().__init__()
        self.network = network
        self.scaling = _Scaling(scaling) if scaling else None

    def forward(self, latents: Tensor) -> Tensor:
        rows = self.network.decode(latents)
        return rows if self.scaling is None else rows * self.scaling.scale + self.scaling.shift


class _Scaling(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("shift", scaling.shift)
        self.register_buffer("scale", scaling.scale)


@dataclass(frozen=True, kw_only=True)
class Graphs:
    encoder: bytes
    decoder: bytes


def to_onnx(network: Autoencoder, scaling: Scaling | None = None) -> Graphs:
    """The two graphs; the same weights give the same bytes, and nothing of this machine is in them."""
    network.eval()
    return Graphs(
        encoder=_graph(Encoder(network, scaling), network.row_shape, "rows", "latents"),
        decoder=_graph(Decoder(network, scaling), network.latent_shape, "latents", "rows"),
    )


def session(graph: bytes) -> Any:
    """On the CPU, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    exact_integers(options)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _graph(module: nn.Module, shape: tuple[int, ...], source: str, target: str) -> bytes:
    # An example batch of two: the exporter takes a dimension of one for a constant.
    example = torch.zeros(2, *shape)
    # It would say for every graph that torchvision, of which nothing is used here, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter calls its own deprecated parts.
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[source],
            output_names=[target],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None, "the exporter gives a program where it is not given a file; this is a bug"
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _strip(model: onnx.ModelProto) -> None:
    """Take out metadata and doc strings: they hold paths and source lines of the machine that exported."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph: onnx.GraphProto = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    items: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]
