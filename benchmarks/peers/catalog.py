"""The peers, and how each is started, asked and loaded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc
import numpy as np

from benchmarks.load import ROOT, Count, Load, h2load, process
from benchmarks.peers import environments
from benchmarks.peers.encoder import free_port
from benchmarks.peers.wires import Floats, OpenInference, RawHTTP, Wire

START_S = 120.0
# h2load's connections and streams, by requests in flight. HTTP/1.1 has one request on a connection.
STREAMS = {1: 1, 4: 1, 16: 4, 64: 16}


class PeerError(Exception):
    """A peer that was not built, did not start or did not answer as it should; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A peer that serves."""

    peer: Peer
    address: str
    folder: Path
    pid: int

    @property
    def url(self) -> str:
        return f"http://{self.address}{self.peer.wire.path}"

    @property
    def headers(self) -> tuple[str, ...]:
        return self.peer.wire.headers

    @property
    def http1(self) -> bool:
        """Whether h2load must speak HTTP/1.1; otherwise HTTP/2 without TLS."""
        return self.peer.http1

    def body(self, rows: Floats) -> Path:
        """A file with the request for rows float32 [B, ...], as h2load posts it. It lives as long as the peer."""
        path = self.folder / f"body-{len(rows)}"
        path.write_bytes(self.peer.wire.body(rows))
        return path

    def values(self, rows: Floats, timeout_s: float = 30.0) -> Floats:
        """Latents [B, L], flattened a row, of rows float32 [B, ...]. Raises PeerError if the peer does not answer."""
        return self.peer.wire.latents(self._ask(rows, timeout_s), len(rows)).reshape(len(rows), -1)

    def measure(self, rows: Floats, in_flight: int, seconds: float) -> Count:
        """Loads the peer with one request again and again, from this process's cores.

        Before the time that counts, some hundred requests must be answered in full, every one: h2load takes a gRPC
        call that failed for one that succeeded, but its answer is shorter. Raises PeerError otherwise.
        """
        if in_flight not in STREAMS:
            raise ValueError(f"in_flight is one of {sorted(STREAMS)}, not {in_flight}")
        streams = 1 if self.http1 else STREAMS[in_flight]
        load = Load(connections=in_flight // streams, streams=streams)
        body, answer_bytes = self.body(rows), len(self._ask(rows, timeout_s=30.0))
        trial = h2load(self.url, body, load, requests=4 * in_flight + 100, headers=self.headers, http1=self.http1)
        if trial.failed or trial.data_bytes != trial.succeeded * answer_bytes:
            raise PeerError(
                f"{self.peer.name}: of {trial.succeeded + trial.failed} requests {trial.failed} failed; "
                f"{trial.data_bytes} bytes came, but {answer_bytes} a full answer"
            )
        count = h2load(self.url, body, load, seconds=seconds, headers=self.headers, http1=self.http1)
        if count.failed or count.data_bytes < count.succeeded * answer_bytes:
            raise PeerError(
                f"{self.peer.name}: of {count.succeeded + count.failed} requests {count.failed} failed; "
                f"{count.data_bytes} bytes came, but {answer_bytes} a full answer"
            )
        return count

    def _ask(self, rows: Floats, timeout_s: float) -> bytes:
        try:
            return self.peer.wire.post(self.address, self.peer.wire.body(rows), timeout_s)
        except (OSError, grpc.RpcError) as error:
            raise PeerError(f"{self.peer.name} does not answer: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that is not ours. Its module server and its requirements are in the folder of this package, its
    environment in .venv-peers/ under the same name."""

    name: str
    folder: str
    wire: Wire
    http1: bool = False
    most_workers: int = 1  # processes that run the model
    interpreter: str | None = None  # of the environment; None is the one that runs this
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["grpc", "http"]:
        return self.wire.kind

    @contextmanager
    def start(self, encoder: Path, *, cores: set[int], workers: int = 1) -> Iterator[Running]:
        """Serves the encoder on these cores, from the first right answer on until the block ends.

        Raises PeerError if the environment is not built, or if the peer does not answer within two minutes.
        """
        if not 1 <= workers <= self.most_workers:
            raise ValueError(f"{self.name}: workers is from 1 to {self.most_workers}, not {workers}")
        if not environments.is_built(self.folder):
            raise PeerError(f"{self.name} is not built: python -m benchmarks.peers build {self.folder}")
        row_shape = input_shape(encoder)
        with tempfile.TemporaryDirectory(prefix=f"{self.folder}-") as folder:
            port = free_port()
            command = [
                str(environments.python(self.folder)), "-m", f"benchmarks.peers.{self.folder}.server",
                str(encoder.resolve()), "--port", str(port), "--workers", str(workers), *self.arguments,
            ]  # fmt: skip
            # What a server leaves behind goes into the folder, and with it.
            variables = {"PYTHONPATH": str(ROOT), "TMPDIR": folder, "PYTHONUNBUFFERED": "1", **self.environment}
            log = Path(folder) / "log"
            with process(command, cores, log=log, environment=variables) as server:
                running = Running(peer=self, address=f"127.0.0.1:{port}", folder=Path(folder), pid=server.pid)
                deadline = time.monotonic() + START_S
                while True:
                    try:
                        running.values(np.zeros((1, *row_shape), np.float32), timeout_s=5.0)
                        break
                    except (PeerError, ValueError) as error:
                        if server.poll() is not None or time.monotonic() > deadline:
                            state = "runs" if server.poll() is None else f"ended with exit code {server.poll()}"
                            last = log.read_text(errors="replace")[-2000:]
                            raise PeerError(f"{self.name} did not start; it {state}: {error}\n{last}") from error
                        time.sleep(0.1)
                yield running


def input_shape(encoder: Path) -> tuple[int, ...]:
    """The shape of one row, as the graph says."""
    import onnx

    dimensions = onnx.load(encoder).graph.input[0].type.tensor_type.shape.dim
    return tuple(dimension.dim_value for dimension in dimensions[1:])


PEERS = {
    peer.folder: peer
    for peer in (
        Peer(name="Mosec", folder="mosec", wire=RawHTTP("/inference"), http1=True, most_workers=8),
        Peer(name="MLServer", folder="mlserver", wire=OpenInference(), most_workers=8),
        Peer(name="KServe", folder="kserve", wire=OpenInference()),
        Peer(name="PyTriton", folder="pytriton", wire=OpenInference(), interpreter="/usr/bin/python3.11"),
        Peer(name="BentoML", folder="bentoml", wire=RawHTTP("/encode"), http1=True, most_workers=8),
        Peer(name="LitServe", folder="litserve", wire=RawHTTP("/predict"), http1=True, most_workers=8),
        Peer(name="Ray Serve", folder="ray_serve", wire=RawHTTP("/"), http1=True, most_workers=8),
    )
}
