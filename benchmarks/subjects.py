"""What is measured beside the peers: the service, servers that do nothing, and onnxruntime alone; and the requests."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from benchmarks.load import ROOT, Count, Load, h2load, process
from service.devices import CPU, Device, exact_integers

SERVICE = "/autoencoder.v1.AutoencoderService"
HEADERS = ("content-type: application/grpc", "te: trailers")
DIGITS = ROOT / "examples" / "digits.npz"
STREAM_MESSAGES = 512
_CPU = Device(provider=CPU)

Rows = npt.NDArray[Any]


def digits(count: int) -> npt.NDArray[np.uint8]:
    """MNIST test digits [count, 28, 28], from the first again where there are not so many."""
    with np.load(DIGITS) as file:
        return np.resize(file["images"], (count, 28, 28))


def floats(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return (images / np.float32(255)).astype(np.float32)


def latest(model: Path) -> Path:
    """The newest version of a model."""
    return max((path for path in model.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def bare_session(encoder: Path | bytes, threads: int = 1, device: Device = _CPU) -> ort.InferenceSession:
    """The encoder without anything around it, with the device's options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    exact_integers(options)
    return ort.InferenceSession(encoder, options, providers=list(device.providers))


def loop(session: ort.InferenceSession, rows: npt.NDArray[np.float32], seconds: float) -> float:
    """Rows a second of a session that is run again and again."""
    session.run(None, {"rows": rows})
    began, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        session.run(None, {"rows": rows})
        runs += 1
    return runs * len(rows) / elapsed


def encode_request(model: str, rows: Rows) -> pb.EncodeRequest:
    dtype = model_pb2.DATA_TYPE_UINT8 if rows.dtype == np.uint8 else model_pb2.DATA_TYPE_FLOAT32
    return pb.EncodeRequest(
        model=pb.ModelSelector(name=model), rows=pb.Tensor(dtype=dtype, shape=rows.shape, data=rows.tobytes())
    )


def framed(message: Any) -> bytes:
    """A message as it stands in the body of a gRPC request."""
    content: bytes = message.SerializeToString()
    return b"\0" + struct.pack(">I", len(content)) + content


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A running service, or an echo in its place, for which `metrics` is None."""

    name: str
    address: str
    metrics: str | None
    pid: int
    folder: Path

    def body(self, model: str, rows: Rows) -> Path:
        """A file with a request to encode these rows."""
        path = self.folder / f"{model}-{rows.dtype}-{len(rows)}"
        if not path.exists():
            path.write_bytes(framed(encode_request(model, rows)))
        return path

    def measure(self, model: str, rows: Rows, load: Load, seconds: float) -> Count:
        """Unary calls. Raises SystemExit where one was not answered with OK."""
        before = self.ok("Encode")
        url = f"http://{self.address}{SERVICE}/Encode"
        count = h2load(url, self.body(model, rows), load, seconds=seconds, headers=HEADERS)
        if count.failed or (self.metrics is not None and self.ok("Encode") - before < count.succeeded):
            raise SystemExit(f"{self.name}: {count}, but {self.ok('Encode') - before} were OK")
        return count

    def stream(self, model: str, rows: Rows, connections: int, requests: int) -> float:
        """Messages a second of streams of `STREAM_MESSAGES` messages each, one after the other on each connection."""
        path = self.folder / f"{model}-stream-{rows.dtype}-{len(rows)}"
        if not path.exists():
            request = encode_request(model, rows)
            messages = (framed(pb.StreamRequest(id=number, encode=request)) for number in range(STREAM_MESSAGES))
            path.write_bytes(b"".join(messages))
        before = self.ok("messages")
        url = f"http://{self.address}{SERVICE}/Stream"
        load = Load(connections=connections)
        count = h2load(url, path, load, requests=requests * connections, headers=HEADERS)
        answered = self.ok("messages") - before
        if count.failed or (self.metrics is not None and answered != requests * connections * STREAM_MESSAGES):
            raise SystemExit(f"{self.name}: {count}, but {answered} messages were OK")
        return count.requests_per_s * STREAM_MESSAGES

    def ok(self, what: str) -> int:
        """How many calls of a method, or messages of streams, were answered with OK so far."""
        if self.metrics is None:
            return 0
        with urllib.request.urlopen(self.metrics) as response:
            lines = response.read().decode().splitlines()
        start = (
            'autoencoder_stream_messages_total{code="OK"}'
            if what == "messages"
            else f'autoencoder_rpc_requests_total{{code="OK",method="{SERVICE}/{what}"}}'
        )
        return next((int(float(line.split()[-1])) for line in lines if line.startswith(start)), 0)

    def resident_bytes(self) -> int:
        """The memory of the process that was started; with workers that is the supervisor's."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def check(self, session: ort.InferenceSession, model: str) -> None:
        """Compare what it answers with onnxruntime, for floats and bytes. Raises AssertionError."""
        images = digits(7)
        expected = session.run(None, {"rows": floats(images)})[0]
        with grpc.insecure_channel(self.address) as channel:
            stub = AutoencoderServiceStub(channel)
            for rows in (floats(images), images):
                response = stub.Encode(encode_request(model, rows))
                got = np.frombuffer(response.latents.data, "<f4").reshape(tuple(response.latents.shape))
                np.testing.assert_allclose(got, expected, atol=1e-4)


@contextmanager
def service(name: str, models: Path, cores: set[int], folder: Path, *arguments: str) -> Iterator[Ours]:
    """The service on these cores; ends with the block."""
    command = [
        sys.executable, "-m", "service", "--models", str(models), "--port", "0", "--http-port", "0",
        "--device", "cpu", "--log-format", "json", *arguments,
    ]  # fmt: skip
    with process(command, cores) as server:
        assert server.stdout is not None
        for line in server.stdout:
            event = json.loads(line)
            if event["event"] == "serving":
                metrics = f"http://{event['http']}/metrics"
                yield Ours(name=name, address=event["address"], metrics=metrics, pid=server.pid, folder=folder)
                return
        raise SystemExit(f"the service did not start (exit code {server.wait()})")


@contextmanager
def echo(name: str, transport: str, cores: set[int], folder: Path, latent_values: int) -> Iterator[Ours]:
    """A server that answers as many bytes as an answer with one row's latents has, and does nothing for it."""
    command = [sys.executable, "-m", "benchmarks.echo", transport, "8", str(40 + 4 * latent_values)]
    with process(command, cores) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield Ours(name=name, address=f"127.0.0.1:{port}", metrics=None, pid=server.pid, folder=folder)


def copies(model: Path, count: int, folder: Path) -> Path:
    """A directory with `count` models, each a copy of the newest version of one under a name of its own."""
    package = latest(model)
    for number in range(count):
        target = folder / f"{model.name}-{number}" / package.name
        shutil.copytree(package, target)
        manifest = json.loads((target / "model.json").read_text())
        manifest["name"] = f"{model.name}-{number}"
        (target / "model.json").write_text(json.dumps(manifest))
    return folder
