"""Model packages in the layouts of other runtimes: a Triton model repository, or plain ONNX files.

In a Triton repository each operation is a model, named as the Open Inference Protocol names it here (MODEL.encode) and
with the same tensors, so that a client moves by changing the address. What is more than the two graphs stays behind:
errors, novelties and distances, UINT8 rows, and interpolation.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from autoencoder.v1 import model_pb2
from service import packages
from service.packages import Package
from training.errors import LayoutError

MAX_BATCH_ROWS = 256

# In an ensemble, what goes in and what comes out must not have one name.
_ENSEMBLES = {
    model_pb2.OPERATION_RECONSTRUCT: ("reconstruct", "reconstructions"),
    model_pb2.OPERATION_DENOISE: ("denoise", "clean"),
}


def convert(package: Path, layout: str, out: Path) -> list[Path]:
    """Write a package, which is verified first, into the directory `out` in one of LAYOUTS; returns what was written.

    Raises PackageError, or LayoutError where something of that name is in `out` already; then nothing is written.
    """
    return LAYOUTS[layout](packages.read(package.resolve()), out)


def write_onnx(package: Package, out: Path) -> list[Path]:
    """`encoder.onnx`, `decoder.onnx`, the card `model.json` and `golden.npz`, rows with what must come out."""
    names = (packages.ENCODER, packages.DECODER, packages.MANIFEST, packages.GOLDEN)
    return _place(out, {Path(name): (package.directory / name).read_bytes() for name in names})


def write_triton(package: Package, out: Path) -> list[Path]:
    """A model each for encode and decode, and ensembles of both for reconstruct and denoise."""
    card = package.manifest
    version = str(card.version)
    encode, decode = f"{card.name}.encode", f"{card.name}.decode"
    graphs = {encode: package.encoder, decode: package.decoder}
    ports = {name: _ports(content) for name, content in graphs.items()}
    rows, latents = list(card.input.row_shape), list(card.latent.row_shape)
    files: dict[Path, bytes] = {}
    for name, content in graphs.items():
        (source, target) = ports[name]
        dims = (rows, latents) if name == encode else (latents, rows)
        files[Path(name, version, "model.onnx")] = content
        files[Path(name, "config.pbtxt")] = _graph_config(name, (source, dims[0]), (target, dims[1])).encode()
    for operation, (name, output) in _ENSEMBLES.items():
        if operation in card.operations:
            full_name = f"{card.name}.{name}"
            config = _ensemble_config(full_name, int(version), encode, decode, ports, rows, output)
            # Triton wants a directory of the version, and there is nothing to put in it.
            files[Path(full_name, version, ".keep")] = b""
            files[Path(full_name, "config.pbtxt")] = config.encode()
    return _place(out, files)


LAYOUTS: Mapping[str, Callable[[Package, Path], list[Path]]] = {"triton": write_triton, "onnx": write_onnx}


def _place(out: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Put files and folders into `out`, each whole or not at all. Raises LayoutError where one is there."""
    tops = sorted({file.parts[0] for file in files})
    for top in tops:
        if (out / top).exists():
            raise LayoutError(f"{out / top}: is there already; remove it or write elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=out))
    try:
        for file, content in files.items():
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).write_bytes(content)
        for top in tops:
            os.rename(staging / top, out / top)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [out / top for top in tops]


def _ports(content: bytes) -> tuple[str, str]:
    """The names of a graph's only input and output; `packages.read` has seen to that."""
    graph = onnx.load_from_string(content).graph
    weights = {each.name for each in graph.initializer}
    (source,) = (each.name for each in graph.input if each.name not in weights)
    return source, graph.output[0].name


def _graph_config(name: str, source: tuple[str, list[int]], target: tuple[str, list[int]]) -> str:
    return f"""\
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {MAX_BATCH_ROWS}
input [{_port(*source)}]
output [{_port(*target)}]
dynamic_batching {{ }}
"""


def _ensemble_config(
    name: str,
    version: int,
    encode: str,
    decode: str,
    ports: Mapping[str, tuple[str, str]],
    rows: list[int],
    output: str,
) -> str:
    def step(model: str, source: str, target: str) -> str:
        inner_source, inner_target = ports[model]
        return f"""
    {{
      model_name: "{model}"
      model_version: {version}
      input_map {{ key: "{inner_source}" value: "{source}" }}
      output_map {{ key: "{inner_target}" value: "{target}" }}
    }}"""

    return f"""\
name: "{name}"
platform: "ensemble"
max_batch_size: {MAX_BATCH_ROWS}
input [{_port("rows", rows)}]
output [{_port(output, rows)}]
ensemble_scheduling {{
  step [{step(encode, "rows", "latents")},{step(decode, "latents", output)}
  ]
}}
"""


def _port(name: str, dims: list[int]) -> str:
    return f'{{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }}'
