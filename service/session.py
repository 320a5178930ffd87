"""Running the graphs of a model with onnxruntime, on the CPU or a GPU.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.devices import Device, exact_integers, require_provider
from service.errors import PackageError, StartError
from service.packages import DECODER, ENCODER, Package

Rows = npt.NDArray[np.float32]

_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


class Session(Protocol):
    """One loaded model. One call at a time; the rows' number is one that `padded_rows` returned."""

    @property
    def on_gpu(self) -> bool: ...

    def padded_rows(self, row_count: int) -> int:
        """How many rows to run for `row_count`: the next fixed size where shapes matter, else the same."""

    def encode(self, rows: Rows) -> Rows:
        """[B, D...] to [B, L...]"""

    def decode(self, latents: Rows) -> Rows:
        """[B, L...] to [B, D...]"""

    def reconstruct(self, rows: Rows) -> Rows:
        """[B, D...] to [B, D...]; the latents stay on the device."""

    def close(self) -> None: ...


class OnnxSession:
    """The session of a package. `threads` run one graph on a CPU; `max_batch_rows` bounds a batch.

    Raises PackageError where onnxruntime refuses a graph.
    """

    def __init__(self, package: Package, device: Device, *, threads: int, max_batch_rows: int) -> None:
        self.on_gpu = device.name != "cpu"
        self._sizes = batch_sizes(max_batch_rows) if device.fixed_shapes else None
        # The golden rows are run too.
        most_rows = max(max_batch_rows, len(package.golden.rows))
        self._encoder = _load(ENCODER, package.encoder, device, threads, package.input_shape, most_rows)
        self._decoder = _load(DECODER, package.decoder, device, threads, package.latent_shape, most_rows)
        self._chain = _Chain(self._encoder, self._decoder, package.latent_shape, device) if self.on_gpu else None

    def padded_rows(self, row_count: int) -> int:
        return row_count if self._sizes is None else self._sizes[bisect.bisect_left(self._sizes, row_count)]

    def encode(self, rows: Rows) -> Rows:
        return self._encoder.run(rows)

    def decode(self, latents: Rows) -> Rows:
        return self._decoder.run(latents)

    def reconstruct(self, rows: Rows) -> Rows:
        return self.decode(self.encode(rows)) if self._chain is None else self._chain.run(rows)

    def close(self) -> None:
        # onnxruntime frees a session with its last reference.
        del self._encoder, self._decoder, self._chain


def batch_sizes(max_batch_rows: int) -> list[int]:
    """The sizes that batches are padded to: the powers of two below `max_batch_rows`, and itself."""
    sizes = [1 << power for power in range(max_batch_rows.bit_length()) if 1 << power < max_batch_rows]
    return [*sizes, max_batch_rows]


def _load(
    file: str, content: bytes, device: Device, threads: int, row_shape: tuple[int, ...], most_rows: int
) -> _Graph:
    try:
        return _Graph(content, device, threads=threads, row_shape=row_shape, most_rows=most_rows)
    except StartError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        raise PackageError(file, f"onnxruntime refuses it: {error}") from error


@contextmanager
def _memory_errors() -> Iterator[None]:
    """onnxruntime has one kind of error for everything that goes wrong in a run."""
    try:
        yield
    except Exception as error:
        if any(text in str(error) for text in _NO_MEMORY):
            raise MemoryError(str(error)) from error
        raise


class _Graph:
    """One graph with one input and one output, both float32 with rows first. `most_rows` bounds those of a run."""

    def __init__(
        self, content: bytes, device: Device, *, threads: int, row_shape: tuple[int, ...], most_rows: int
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool takes the cores away from the threads that talk to clients.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        exact_integers(options)
        if device.name != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = device.providers_for(content, row_shape, most_rows)
        self._session = ort.InferenceSession(content, options, providers=providers)
        require_provider(self._session, device)
        self.input = self._session.get_inputs()[0].name
        self.output = self._session.get_outputs()[0].name

    def run(self, rows: Rows) -> Rows:
        """Raises MemoryError, and what onnxruntime raises."""
        with _memory_errors():
            result: Rows = self._session.run([self.output], {self.input: rows})[0]
        return result

    def binding(self) -> ort.IOBinding:
        return self._session.io_binding()

    def run_bound(self, binding: ort.IOBinding) -> None:
        """Raises as `run`."""
        with _memory_errors():
            self._session.run_with_iobinding(binding)


class _Chain:
    """Both graphs, one after the other, with latents that stay on the device, in buffers made once for each number of
    rows.

    Rows come from the machine's memory and go there: copied by onnxruntime within a run, as here, they take less time
    than through buffers of ours on the device.
    """

    def __init__(self, encoder: _Graph, decoder: _Graph, latent_shape: tuple[int, ...], device: Device) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._latent_shape = latent_shape
        self._device = device.name
        self._bindings: dict[int, tuple[ort.IOBinding, ort.IOBinding]] = {}

    def run(self, rows: Rows) -> Rows:
        """What is returned belongs to the caller."""
        to_latents, from_latents = self._for(len(rows))
        to_latents.bind_cpu_input(self._encoder.input, rows)
        self._encoder.run_bound(to_latents)
        self._decoder.run_bound(from_latents)
        output: Rows = from_latents.copy_outputs_to_cpu()[0]
        return output

    def _for(self, row_count: int) -> tuple[ort.IOBinding, ort.IOBinding]:
        pair = self._bindings.get(row_count)
        if pair is None:
            shape = (row_count, *self._latent_shape)
            with _memory_errors():
                latents = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
            to_latents, from_latents = self._encoder.binding(), self._decoder.binding()
            to_latents.bind_ortvalue_output(self._encoder.output, latents)
            from_latents.bind_ortvalue_input(self._decoder.input, latents)
            from_latents.bind_output(self._decoder.output, "cpu")
            pair = self._bindings[row_count] = to_latents, from_latents
        return pair
