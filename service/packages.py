"""Model packages on disk: `<models>/<name>/<version>/` with a manifest, two graphs and golden outputs.

`read` trusts nothing: it checks the manifest, the size and hash of every file, and the graphs' signatures before
anything is handed to onnxruntime, and it hands over the bytes that it checked, not a path. `write` builds a package in
a temporary directory and renames it, so that a reader never sees half of one. `models/README.md` describes the format.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from numpy.lib import format as npy

from autoencoder.v1 import model_pb2
from service import files, plans
from service.errors import PackageError
from service.graphs import check_graph
from service.plans import MANIFEST as MANIFEST
from service.plans import MAX_MANIFEST_BYTES, NAME, VERSION

ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
GOLDEN = "golden.npz"
REQUIRED_FILES = (ENCODER, DECODER, GOLDEN)

MAX_FILE_BYTES = 1 << 30
MAX_PACKAGE_BYTES = 2 << 30
MAX_GOLDEN_BYTES = 64 << 20
MAX_ELEMENTS_A_ROW = 1 << 24

# How far onnxruntime may be from the golden outputs, whichever provider runs the graphs (TF32 is not used). Packages in
# less than float32 say in the manifest by how much they are off.
GOLDEN_ATOL = 1e-4
GOLDEN_RTOL = 1e-3

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Rows [B, D...] with the latents [B, L...] and reconstructions [B, D...] that PyTorch gave for them."""

    rows: Rows
    latents: Rows
    reconstructions: Rows


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package whose every byte has been checked."""

    directory: Path
    manifest: model_pb2.Model
    encoder: bytes
    decoder: bytes
    golden: Golden

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.manifest.input.row_shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.manifest.latent.row_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return tuple(self.manifest.output.row_shape)

    @property
    def row_scale(self) -> Rows | None:
        """The unit of each element of a row [D...]; None where all are 1."""
        scale = np.asarray(self.manifest.row_scale, dtype=np.float32)
        return scale.reshape(self.input_shape) if len(scale) else None


def find(models: Path) -> list[Path]:
    """The directories of all packages under `models`, by name and version. Raises PackageError as `plans.find`."""
    return [models / name / str(version) for name, versions in plans.find(models).items() for version in versions]


def read(directory: Path) -> Package:
    """Read and check one package. Raises PackageError with the file and the rule."""
    return _read(directory, name=directory.parent.name, version=directory.name)


def _read(directory: Path, *, name: str, version: str) -> Package:
    manifest = _read_manifest(directory)
    if manifest.name != name or str(manifest.version) != version:
        raise PackageError(
            MANIFEST, f"name and version: {manifest.name}/{manifest.version}, but the directory is {name}/{version}"
        )
    contents = {file.name: read_listed(directory, file) for file in manifest.files}
    input_shape, latent_shape = tuple(manifest.input.row_shape), tuple(manifest.latent.row_shape)
    output_shape = tuple(manifest.output.row_shape)
    check_graph(ENCODER, contents[ENCODER], input_shape, latent_shape)
    check_graph(DECODER, contents[DECODER], latent_shape, output_shape)
    golden = _read_golden(contents[GOLDEN], input_shape, latent_shape, output_shape)
    return Package(
        directory=directory,
        manifest=manifest,
        encoder=contents[ENCODER],
        decoder=contents[DECODER],
        golden=golden,
    )


def check_golden(package: Package, encode: Callable[[Rows], Rows], decode: Callable[[Rows], Rows]) -> None:
    """Run the golden rows and compare. Raises PackageError where an output is not what PyTorch gave."""
    golden = package.golden
    tolerance = max(GOLDEN_ATOL, package.manifest.parity.golden_absolute_tolerance)
    latents = encode(golden.rows)
    unit = np.float32(1.0) if package.row_scale is None else package.row_scale
    for file, got, expected, scale in (
        (ENCODER, latents, golden.latents, np.float32(1.0)),
        (DECODER, decode(golden.latents), golden.reconstructions, unit),
    ):
        if got.shape != expected.shape:
            raise PackageError(file, f"golden rows gave shape {list(got.shape)}, not {list(expected.shape)}")
        if not np.allclose(got / scale, expected / scale, atol=tolerance, rtol=GOLDEN_RTOL):
            difference = float(np.max(np.abs(got - expected) / scale))
            raise PackageError(
                file,
                f"golden rows differ from {GOLDEN} by {difference:.3g} (tolerance {tolerance:g} + {GOLDEN_RTOL:g}·x)",
            )


def write(models: Path, manifest: model_pb2.Model, files: Mapping[str, bytes]) -> Path:
    """Write a package at `models/<name>/<version>` and return that directory; `manifest.files` is filled in.

    The package is read back and checked before it gets its name. An existing version is replaced.
    Raises PackageError where the package breaks a rule; then nothing is left behind.
    """
    complete = model_pb2.Model()
    complete.CopyFrom(manifest)
    del complete.files[:]
    for name in sorted(files):
        content = files[name]
        complete.files.add(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    _check_manifest(complete)
    target = models / complete.name / str(complete.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        package = staging / target.name
        package.mkdir()
        # `sort_keys` and a fixed indent: the same message is the same file.
        text = json_format.MessageToJson(complete, indent=2, sort_keys=True) + "\n"
        for name, content in [*files.items(), (MANIFEST, text.encode())]:
            with open(package / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _read(package, name=complete.name, version=target.name)
        if target.exists():
            target.rename(staging / "old")
        package.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def next_version(models: Path, name: str) -> int:
    """One more than the largest version of `name` under `models`, or 1."""
    directory = models / name
    versions = [int(path.name) for path in directory.glob("*") if VERSION.fullmatch(path.name)]
    return max(versions, default=0) + 1


def novelty(errors: Rows, quantiles: npt.NDArray[np.float32]) -> Rows:
    """Where reconstruction errors [B] lie in the validation rows' errors, 0 to 1, by linear interpolation."""
    return np.interp(errors, quantiles, np.linspace(0.0, 1.0, len(quantiles))).astype(np.float32)


def _read_manifest(directory: Path) -> model_pb2.Model:
    return parse_manifest(files.read(directory, MANIFEST, MAX_MANIFEST_BYTES))


def parse_manifest(content: bytes) -> model_pb2.Model:
    """The manifest, with all its rules checked but for those of the files' contents. Raises PackageError."""
    try:
        manifest = json_format.Parse(content.decode("utf-8"), model_pb2.Model(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(MANIFEST, f"is not the JSON of an autoencoder.v1.Model: {error}") from error
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: model_pb2.Model) -> None:
    def rule(holds: bool, text: str) -> None:
        if not holds:
            raise PackageError(MANIFEST, text)

    rule(
        bool(NAME.fullmatch(manifest.name)),
        f"name: lower-case letters, digits and hyphens, starting with a letter, at most 63; got {manifest.name!r}",
    )
    rule(bool(VERSION.fullmatch(str(manifest.version))), f"version: from 1 to 999999999; got {manifest.version}")
    for field, spec in (("input", manifest.input), ("latent", manifest.latent), ("output", manifest.output)):
        shape = list(spec.row_shape)
        rule(spec.dtype == model_pb2.DATA_TYPE_FLOAT32, f"{field}.dtype: must be DATA_TYPE_FLOAT32")
        rule(
            0 < len(shape) <= 4 and min(shape) >= 1 and math.prod(shape) <= MAX_ELEMENTS_A_ROW,
            f"{field}.rowShape: 1 to 4 dimensions, each at least 1, at most {MAX_ELEMENTS_A_ROW} elements; got {shape}",
        )
        rule(spec.kind in model_pb2.TensorKind.values()[1:], f"{field}.kind: must be given and known; got {spec.kind}")
        rule(
            math.isfinite(spec.minimum) and math.isfinite(spec.maximum) and spec.minimum <= spec.maximum,
            f"{field}: minimum {spec.minimum} must not be above maximum {spec.maximum}",
        )
    rule(
        list(manifest.input.row_shape) == list(manifest.output.row_shape),
        f"output.rowShape: must be the input's {list(manifest.input.row_shape)}; got {list(manifest.output.row_shape)}",
    )
    operations = list(manifest.operations)
    rule(
        bool(operations) and set(operations) <= set(model_pb2.Operation.values()[1:]),
        f"operations: at least one, all known; got {operations}",
    )
    rule(
        (model_pb2.OPERATION_DENOISE in operations) == manifest.HasField("corruption"),
        "operations: OPERATION_DENOISE must be listed exactly where there is a corruption",
    )
    quantiles = np.asarray(manifest.reconstruction_error_quantiles, dtype=np.float32)
    rule(
        len(quantiles) >= 2 and bool(np.isfinite(quantiles).all()) and bool((np.diff(quantiles) >= 0).all()),
        "reconstructionErrorQuantiles: at least two finite numbers that never fall",
    )
    rule(
        manifest.precision in model_pb2.Precision.values(), f"precision: must be a known one; got {manifest.precision}"
    )
    tolerance = manifest.parity.golden_absolute_tolerance
    lower = manifest.precision in (model_pb2.PRECISION_FLOAT16, model_pb2.PRECISION_INT8)
    rule(
        (math.isfinite(tolerance) and tolerance > 0) if lower else tolerance == 0,
        "parity.goldenAbsoluteTolerance: must be given, finite and above 0, exactly where precision is below FLOAT32; "
        f"got {tolerance}",
    )
    scale = np.asarray(manifest.row_scale, dtype=np.float32)
    elements = math.prod(manifest.input.row_shape)
    rule(
        len(scale) in (0, elements) and bool((np.isfinite(scale) & (scale > 0)).all()),
        f"rowScale: none, or {elements} finite numbers above 0, one for each element of a row; got {len(scale)}",
    )
    names = [file.name for file in manifest.files]
    rule(len(set(names)) == len(names), "files: a name is listed twice")
    for file in manifest.files:
        rule(
            bool(_FILE_NAME.fullmatch(file.name)) and file.name != MANIFEST,
            f"files: a plain name inside the package; got {file.name!r}",
        )
        rule(
            file.size_bytes <= MAX_FILE_BYTES,
            f"files: {file.name} has {file.size_bytes} bytes, more than {MAX_FILE_BYTES}",
        )
    for name in REQUIRED_FILES:
        rule(name in names, f"files: must list {name}")
    total = sum(file.size_bytes for file in manifest.files)
    rule(total <= MAX_PACKAGE_BYTES, f"files: {total} bytes together, more than {MAX_PACKAGE_BYTES}")


def read_listed(directory: Path, file: model_pb2.File) -> bytes:
    """A file of a package, which is what the manifest says. Raises PackageError."""
    content = files.read(directory, file.name, file.size_bytes)
    if len(content) != file.size_bytes:
        raise PackageError(file.name, f"has {len(content)} bytes, the manifest says {file.size_bytes}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise PackageError(file.name, f"sha256 is {digest}, the manifest says {file.sha256!r}")
    return content


def _claimed_bytes(archive: zipfile.ZipFile, name: str) -> int:
    """How large an array of an .npz says that it is: numpy makes room for that before it reads. 0 for what is none."""
    try:
        file = archive.open(f"{name}.npy")
    except KeyError:
        return 0
    with file:
        header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
    return math.prod(shape) * dtype.itemsize


def _read_golden(
    content: bytes, input_shape: tuple[int, ...], latent_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> Golden:
    expected = {"rows": input_shape, "latents": latent_shape, "reconstructions": output_shape}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
            if unpacked_bytes <= MAX_GOLDEN_BYTES:
                unpacked_bytes = max(unpacked_bytes, sum(_claimed_bytes(archive, name) for name in expected))
        if unpacked_bytes > MAX_GOLDEN_BYTES:
            raise PackageError(GOLDEN, f"unpacks to {unpacked_bytes} bytes, more than {MAX_GOLDEN_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in expected}
    except PackageError:
        raise
    except Exception as error:  # what zipfile, zlib, numpy and its header's tokenizer raise has no common base
        raise PackageError(GOLDEN, f"is not an .npz of {', '.join(expected)}: {error}") from error
    count = len(loaded["rows"]) if np.ndim(loaded["rows"]) else 0
    for name, shape in expected.items():
        array = np.asarray(loaded[name])  # a member that is no .npy comes as its bytes
        if array.dtype != np.float32 or array.shape != (count, *shape) or count < 1 or not np.isfinite(array).all():
            raise PackageError(
                GOLDEN, f"{name}: must be finite float32 [rows, {', '.join(map(str, shape))}] with at least one row"
            )
    return Golden(**loaded)
