"""The encoder that every peer serves, and the arguments that every peer takes. Needs numpy and onnxruntime only."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Floats = npt.NDArray[np.float32]


class Encoder:
    """An ONNX graph with one input, float32 [B, ...], and one output, float32 [B, ...], on one thread of its own."""

    def __init__(self, path: str | Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.row_shape = tuple(self._session.get_inputs()[0].shape[1:])
        self.latent_shape = tuple(self._session.get_outputs()[0].shape[1:])

    def run(self, rows: Floats) -> Floats:
        """Latents [B, ...] of rows [B, ...]."""
        latents: Floats = self._session.run(None, {self._input: rows})[0]
        return latents

    def run_bytes(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The latents of each body, in one run. Bodies and latents are float32 rows, row-major, little-endian."""
        flat = np.frombuffer(b"".join(bodies), "<f4")
        latents = self.run(flat.reshape(-1, *self.row_shape))
        row_bytes = 4 * int(np.prod(self.row_shape))
        ends = np.cumsum([len(body) // row_bytes for body in bodies])
        return [latents[end - len(body) // row_bytes : end].tobytes() for body, end in zip(bodies, ends, strict=True)]


def arguments(description: str) -> argparse.Namespace:
    """encoder (a path), port and workers, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("encoder", help="the ONNX file")
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--workers", type=int, default=1, help="processes that run the model (default: %(default)s)")
    return parser.parse_args()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
