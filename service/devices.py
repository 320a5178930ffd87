"""Where graphs are run: the providers of onnxruntime, their options, and proof that they work."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, load_model_from_string

from service import files
from service.errors import StartError

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Provider = tuple[str, dict[str, Any]]

_PROCESSOR = Path("/proc/cpuinfo")
_PROCESSOR_BYTES = 1 << 13  # holds what is said of the first of many
_VNNI = re.compile(rb"\bavx(?:512)?_vnni\b")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where graphs are run. `name` is cpu or cuda, in onnxruntime's words; `providers` go to it as they are, but for
    what TensorRT is told of each graph. `engine_cache`: where TensorRT keeps what it compiled."""

    provider: str
    name: str = "cpu"
    providers: Sequence[Provider] = field(default=((CPU, {}),))
    engine_cache: Path | None = None

    @property
    def fixed_shapes(self) -> bool:
        """Whether each new batch size costs a search for the fastest kernels, or memory."""
        return self.name != "cpu"

    def providers_for(self, graph: bytes, row_shape: tuple[int, ...], most_rows: int) -> list[Provider]:
        """The providers of one graph, whose input has 1 to `most_rows` rows."""
        return [
            (provider[0], provider[1] | self._of_graph(graph, row_shape, most_rows))
            if provider[0] == TENSORRT
            else provider
            for provider in self.providers
        ]

    def _of_graph(self, graph: bytes, row_shape: tuple[int, ...], most_rows: int) -> dict[str, str]:
        name = load_model_from_string(graph).graph.input[0].name

        def profile(rows: int) -> str:
            return f"{name}:{'x'.join(map(str, (rows, *row_shape)))}"

        # One engine for all sizes of a batch, instead of one more compilation for each that comes.
        options = {
            "trt_profile_min_shapes": profile(1),
            "trt_profile_opt_shapes": profile(most_rows),
            "trt_profile_max_shapes": profile(most_rows),
        }
        if self.engine_cache is None:
            return options
        # TensorRT's provider names what it keeps by the graph's structure, not its weights: two versions of a model
        # would share an engine. So each graph and size has a folder of its own.
        folder = self.engine_cache / f"{hashlib.sha256(graph).hexdigest()}-{most_rows}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return options | {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self.engine_cache),
        }


def choose_device(wanted: str, *, gpu_memory_limit_bytes: int = 0, engine_cache: Path | None = None) -> Device:
    """Find the device `wanted` (one of settings.DEVICES) and prove that it runs a graph.

    `auto` is CUDA where it works, else the CPU; TensorRT is taken only by name, because it compiles each model for
    minutes, once where there is an `engine_cache`. Raises StartError where a device was asked for by name and does not
    work (onnxruntime itself would go on with the CPU and only warn), or where others may write to the cache.
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
        if device.provider == TENSORRT and engine_cache is not None:
            try:
                # Engines are code.
                return replace(device, engine_cache=files.own_directory(engine_cache.resolve()))
            except OSError as error:
                raise StartError(f"--tensorrt-cache: {engine_cache}: {error.strerror}") from error
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
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(probe, options, providers=device.providers_for(probe, (1,), 1))
        require_provider(session, device)
        session.run(None, {"x": np.ones((1, 1), np.float32)})
    except Exception as error:  # onnxruntime's errors have no common base
        return f"{device.provider} does not work here: {error}"
    return None


def exact_integers(options: ort.SessionOptions) -> None:
    """Has onnxruntime add up products of 8-bit integers in 32 bits on every processor.

    x86 without VNNI adds products of unsigned and signed bytes in pairs to 16 bits, and cuts off what is beyond them.
    onnxruntime can make signed weights unsigned, whose kernels do not; but it would with VNNI too, where they take more
    than twice the time.
    """
    try:
        with open(_PROCESSOR, "rb") as file:
            fast = _VNNI.search(file.read(_PROCESSOR_BYTES)) is not None
    except OSError:
        fast = False
    if not fast:
        options.add_session_config_entry("session.x64quantprecision", "1")


def require_provider(session: ort.InferenceSession, device: Device) -> None:
    """Raises StartError where onnxruntime took another provider than it was told."""
    # Without this a GPU error in a run would be answered by a new session on the CPU.
    session.disable_fallback()
    active = session.get_providers()
    if active[0] != device.provider:
        raise StartError(f"onnxruntime fell back from {device.provider} to {active[0]}")
