"""Running the graphs of a model with onnxruntime, on the CPU or a GPU. The only module that sees onnxruntime.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

from service.errors import PackageError, StartError
from service.packages import DECODER, ENCODER, Package

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.float32]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

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


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where graphs are run. `name` is cpu or cuda, in onnxruntime's words; `providers` go to it as they are."""

    provider: str
    name: str = "cpu"
    providers: Sequence[str | tuple[str, dict[str, Any]]] = field(default=(CPU,))

    @property
    def fixed_shapes(self) -> bool:
        """Whether each new batch size costs a search for the fastest kernels, or memory."""
        return self.name != "cpu"


def choose_device(wanted: str, *, gpu_memory_limit_bytes: int = 0) -> Device:
    """Find the device `wanted` (one of settings.DEVICES) and prove that it runs a graph.

    `auto` is CUDA where it works, else the CPU; TensorRT is taken only by name, because it compiles each model for
    minutes. Raises StartError where a device was asked for by name and does not work: onnxruntime itself would go on
    with the CPU and only warn.
    """
    if wanted == "cpu":
        return Device(provider=CPU)
    # cuDNN's exhaustive search costs seconds a shape; TF32 would move results away from the golden outputs.
    cuda: dict[str, Any] = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if gpu_memory_limit_bytes:
        cuda |= {"gpu_mem_limit": str(gpu_memory_limit_bytes), "arena_extend_strategy": "kSameAsRequested"}
    candidates = {
        "cuda": Device(provider=CUDA, name="cuda", providers=((CUDA, cuda),)),
        "tensorrt": Device(provider=TENSORRT, name="cuda", providers=((TENSORRT, {}), (CUDA, cuda))),
    }
    device = candidates["cuda" if wanted == "auto" else wanted]
    why_not = _why_not(device)
    if why_not is None:
        return device
    if wanted == "auto":
        log.info("no GPU is used", extra={"reason": why_not})
        return Device(provider=CPU)
    raise StartError(f"--device {wanted}: {why_not}")


def _why_not(device: Device) -> str | None:
    if device.provider not in ort.get_available_providers():
        return (
            f"this onnxruntime has no {device.provider}, only {', '.join(ort.get_available_providers())} "
            "(the extra `gpu` installs one that has)"
        )
    # Finds the CUDA and cuDNN libraries that were installed from packages.
    ort.preload_dlls()
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [shape], [result])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    try:
        _Graph(probe.SerializeToString(), device, threads=1, row_shape=(1,)).run(np.ones((1, 1), np.float32))
    except Exception as error:  # onnxruntime's errors have no common base
        return f"{device.provider} does not work here: {error}"
    return None


class OnnxSession:
    """The session of a package. `threads` run one graph on a CPU; `max_batch_rows` bounds a batch.

    Raises PackageError where onnxruntime refuses a graph.
    """

    def __init__(self, package: Package, device: Device, *, threads: int, max_batch_rows: int) -> None:
        self.on_gpu = device.name != "cpu"
        self._sizes = batch_sizes(max_batch_rows) if device.fixed_shapes else None
        self._encoder = _load(ENCODER, package.encoder, device, threads, package.input_shape)
        self._decoder = _load(DECODER, package.decoder, device, threads, package.latent_shape)

    def padded_rows(self, row_count: int) -> int:
        return row_count if self._sizes is None else self._sizes[bisect.bisect_left(self._sizes, row_count)]

    def encode(self, rows: Rows) -> Rows:
        return self._encoder.run(rows)

    def decode(self, latents: Rows) -> Rows:
        return self._decoder.run(latents)

    def reconstruct(self, rows: Rows) -> Rows:
        return self._decoder.run_on(self._encoder.leave_on_device(rows))

    def close(self) -> None:
        # onnxruntime frees a session with its last reference.
        del self._encoder, self._decoder


def batch_sizes(max_batch_rows: int) -> list[int]:
    """The sizes that batches are padded to: the powers of two below `max_batch_rows`, and itself."""
    sizes = [1 << power for power in range(max_batch_rows.bit_length()) if 1 << power < max_batch_rows]
    return [*sizes, max_batch_rows]


def _load(file: str, content: bytes, device: Device, threads: int, row_shape: tuple[int, ...]) -> _Graph:
    try:
        return _Graph(content, device, threads=threads, row_shape=row_shape)
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
    """One graph with one input and one output, both float32 with rows first."""

    def __init__(self, content: bytes, device: Device, *, threads: int, row_shape: tuple[int, ...]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool takes the cores away from the threads that talk to clients.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if device.name != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session = ort.InferenceSession(content, options, providers=list(device.providers))
        # Without this a GPU error in a run would be answered by a new session on the CPU.
        self._session.disable_fallback()
        active = self._session.get_providers()
        if active[0] != device.provider:
            raise StartError(f"onnxruntime fell back from {device.provider} to {active[0]}")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._device = device
        self._row_shape = row_shape
        # Where inputs lie on the device, by rows; the number of sizes is bounded by `batch_sizes`.
        self._buffers: dict[int, ort.OrtValue] = {}

    def run(self, rows: Rows) -> Rows:
        """Raises MemoryError, and what onnxruntime raises."""
        if self._device.name == "cpu":
            with _memory_errors():
                result: Rows = self._session.run([self._output], {self._input: rows})[0]
            return result
        return self.run_on(self._upload(rows))

    def leave_on_device(self, rows: Rows) -> ort.OrtValue:
        """Like `run`, but the result stays where the next graph needs it."""
        source = ort.OrtValue.ortvalue_from_numpy(rows) if self._device.name == "cpu" else self._upload(rows)
        return self._bind(source, self._device.name).get_outputs()[0]

    def run_on(self, rows: ort.OrtValue) -> Rows:
        """Like `run`, with rows that are on the device already."""
        result: Rows = self._bind(rows, "cpu").copy_outputs_to_cpu()[0]
        return result

    def _upload(self, rows: Rows) -> ort.OrtValue:
        buffer = self._buffers.get(len(rows))
        if buffer is None:
            shape = (len(rows), *self._row_shape)
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device.name, 0)
            self._buffers[len(rows)] = buffer
        buffer.update_inplace(rows)
        return buffer

    def _bind(self, rows: ort.OrtValue, output_device: str) -> ort.IOBinding:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, rows)
        binding.bind_output(self._output, output_device)
        with _memory_errors():
            self._session.run_with_iobinding(binding)
        return binding
