"""A model package run by onnxruntime in this process, without a service: the same calls, the same numbers.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format

from autoencoder.v1 import model_pb2
from hourglass import tensors
from hourglass.errors import InvalidArgument, NotFound
from hourglass.files import CommandError
from hourglass.results import Denoised, Execution, ModelCard, Reconstruction
from hourglass.tensors import Array

# Input, latents and output of so many rows stay in a processor's cache.
_BATCH_ROWS = 256
_PROVIDER = "CPUExecutionProvider"
_UINT8_SCALE = np.float32(1.0 / 255.0)
_MANIFEST = "model.json"
_PROCESSOR = Path("/proc/cpuinfo")
_PROCESSOR_BYTES = 1 << 13  # holds what is said of the first of many


class InProcess:
    """The calls of a `Client` that a batch job makes, on one package and the CPU; for any number of threads, each of
    which computes on one core. `threads`: how many the caller means to use.

    Raises CommandError where onnxruntime or the package is missing, or a file is not the one that the manifest lists.
    """

    def __init__(self, directory: Path, *, threads: int) -> None:
        # onnxruntime's builds for Linux report to their vendor unless told not to, before they are loaded.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise CommandError(
                "onnxruntime is not installed; --package needs: pip install 'hourglass-client[onnxruntime]'"
            ) from error
        self.threads = threads
        # `digest` tells a package from another of the same name and version.
        self._card, self.digest = _read(directory)
        self._elements = self._card.input.shape
        message = self._card.message
        self._scale = np.asarray(message.row_scale, np.float32).reshape(self._elements) if message.row_scale else None
        self._quantiles = np.asarray(message.reconstruction_error_quantiles, np.float32)
        options = onnxruntime.SessionOptions()
        # Callers bring the threads: whole pieces side by side keep cores busier than one matrix product over all.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not _has_vnni():
            # Products of 8-bit integers would be cut off at 16 bits; with VNNI this would cost half of the speed.
            options.add_session_config_entry("session.x64quantprecision", "1")
        files = {file.name: file for file in message.files}

        def session(name: str) -> Any:
            content = (directory / name).read_bytes()
            if name not in files or hashlib.sha256(content).hexdigest() != files[name].sha256:
                raise CommandError(f"{directory / name}: is not the file that {_MANIFEST} lists, by its sha256")
            try:
                return onnxruntime.InferenceSession(content, options, providers=[_PROVIDER])
            except Exception as error:  # onnxruntime's errors have no common base
                raise CommandError(f"{directory / name}: onnxruntime refuses it: {error}") from error

        self._encoder, self._decoder = session("encoder.onnx"), session("decoder.onnx")
        self._input, self._latent = self._encoder.get_inputs()[0].name, self._decoder.get_inputs()[0].name

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing waits here: what is under way is computed to its end."""

    def models(self, *, timeout_s: float | None = None) -> list[ModelCard]:
        return [self._card]

    def model(self, name: str, version: int | str | None = None, *, timeout_s: float | None = None) -> ModelCard:
        """The card. Raises NotFound for another name or version; labels are the service's."""
        card = self._card
        if name != card.name or version not in (None, card.version, str(card.version)):
            wanted = name if version is None else f"{name}/{version}"
            raise NotFound(f"--package holds {card.name}/{card.version}, not {wanted}")
        return card

    def encode(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        timeout_s: float | None = None,
    ) -> Array:
        """Rows [B, D...] to latents [B, L...]."""
        card, source = self.model(model, version), self._checked(rows)
        latents = np.empty((len(source), *card.latent.shape), dtype or np.float32)
        for start, _, codes in self._encoded(source):
            _put(latents, start, codes)
        return latents

    def reconstruct(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        timeout_s: float | None = None,
    ) -> Reconstruction:
        card, source = self.model(model, version), self._checked(rows)
        again = np.empty((len(source), *card.output.shape), dtype or np.float32)
        errors = self._errors(source, again)
        return Reconstruction(rows=again, errors=errors, novelties=self._novelties(errors), execution=self._execution())

    def score(self, model: str, rows: npt.ArrayLike, *, version: int | str | None = None) -> tuple[Array, Array]:
        """Errors [B] and novelties [B] of a reconstruction, whose rows are not kept."""
        self.model(model, version)
        errors = self._errors(self._checked(rows), None)
        return errors, self._novelties(errors)

    def denoise(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        timeout_s: float | None = None,
    ) -> Denoised:
        card, source = self.model(model, version), self._checked(rows)
        clean = np.empty((len(source), *card.output.shape), dtype or np.float32)
        return Denoised(rows=clean, distances=np.sqrt(self._errors(source, clean)), execution=self._execution())

    def _execution(self) -> Execution:
        card = self._card
        return Execution(
            model=card.name, version=card.version, queue_s=0.0, compute_s=0.0, batch_rows=_BATCH_ROWS, messages=0
        )

    def _novelties(self, errors: Array) -> Array:
        levels = np.linspace(0.0, 1.0, len(self._quantiles))
        return np.interp(errors, self._quantiles, levels).astype(np.float32)

    def _errors(self, source: Array, again: Array | None) -> Array:
        """The mean squared difference [B] between rows and their reconstructions, in units of the scale. What comes out
        goes to `again` [B, D...], where it is wanted."""
        errors = np.empty(len(source), np.float32)
        for start, batch, codes in self._encoded(source):
            result = self._decoder.run(None, {self._latent: codes})[0]
            if again is not None:
                _put(again, start, result)
            difference = np.subtract(result, batch, out=result)
            if self._scale is not None:
                difference /= self._scale
            flat = difference.reshape(len(difference), -1)
            errors[start : start + len(flat)] = np.einsum("be,be->b", flat, flat) / np.float32(flat.shape[1])
        return errors

    def _encoded(self, source: Array) -> Any:
        """First row, rows as float32 and latents of each batch; the rows are good until the next."""
        buffer = np.empty((min(_BATCH_ROWS, len(source)), *self._elements), np.float32)
        for start in range(0, len(source), _BATCH_ROWS):
            piece = source[start : start + _BATCH_ROWS]
            batch = buffer[: len(piece)]
            if piece.dtype == np.uint8:
                np.multiply(piece, _UINT8_SCALE, out=batch)
            else:
                with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused
                    batch[...] = piece
                if not np.isfinite(batch).all():
                    wrong = ~np.isfinite(batch.reshape(len(batch), -1)).all(axis=1)
                    raise InvalidArgument(f"rows: row {start + int(np.argmax(wrong))} holds NaN or infinity")
            yield start, batch, self._encoder.run(None, {self._input: batch})[0]

    def _checked(self, rows: npt.ArrayLike) -> Array:
        source = tensors.check_rows("rows", rows)
        if source.dtype == np.uint8 and self._card.input.kind != "image":
            raise InvalidArgument("rows: UINT8 is only for rows of images; give floats of 32 or 16 bits")
        if source.shape[1:] != self._elements:
            raise InvalidArgument(f"rows: must have the shape {self._elements}; got {source.shape[1:]}")
        return source


def _has_vnni() -> bool:
    """Whether this processor is known to add products of bytes up in 32 bits."""
    try:
        with open(_PROCESSOR, "rb") as file:
            return re.search(rb"\bavx(512)?_vnni\b", file.read(_PROCESSOR_BYTES)) is not None
    except OSError:
        return False


def _put(target: Array, start: int, values: Array) -> None:
    with np.errstate(over="ignore"):  # values beyond float16's range become infinite there, as the service's do
        target[start : start + len(values)] = values


def _read(directory: Path) -> tuple[ModelCard, str]:
    """The card of a package, and the sha256 of its manifest, which lists those of its files."""
    content = (directory / _MANIFEST).read_bytes()
    try:
        message = json_format.Parse(content.decode(), model_pb2.Model(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{directory / _MANIFEST}: is not the manifest of a model package; {error}") from error
    message.runtime.provider, message.runtime.max_batch_rows = _PROVIDER, _BATCH_ROWS
    return ModelCard.of(message), hashlib.sha256(content).hexdigest()
