"""Requests and rows a second of the service, beside onnxruntime alone and a server that does nothing.

Everything is measured in the same run, in rounds one after the other, and the medians are reported: the machine may be
noisy, the ratios are not. The servers and onnxruntime have one core, the load another. The load comes from h2load,
which is native, so that no Python client is the limit. Every answer is counted by its gRPC status, and values are
compared with onnxruntime's before anything is timed. Needs h2load (Debian: nghttp2-client).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import settings

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
DIGITS = ROOT / "examples" / "digits.npz"
BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"
METHOD = "/autoencoder.v1.AutoencoderService/Encode"
# In flight, as connections times streams of each.
LOADS = {1: (1, 1), 16: (4, 4), 64: (4, 16)}
BULK_ROWS, BULK_LOAD = 256, (4, 1)
LOOP_ROWS = (1, 16, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to load: a name, an address, and the request of each kind in h2load's form (a framed message)."""

    name: str
    address: str
    http: str | None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="model packages (default: %(default)s)")
    parser.add_argument("--model", default="mnist-conv", help="the model whose encoder is used (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are reported (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures, with hardware and versions, to this file")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if shutil.which("h2load") is None:
        print("h2load is needed; Debian has it in the package nghttp2-client", file=sys.stderr)
        return 2
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two cores are needed: one for the server, one for the load", file=sys.stderr)
        return 2
    server_core, load_core = cores[:2]
    with np.load(DIGITS) as file:
        digits = np.resize(file["images"], (BULK_ROWS, 28, 28))
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = bare_session(arguments.models / arguments.model)
        requests = write_requests(folder, arguments.model, digits)
        ours = stack.enter_context(our_server(arguments.models, server_core))
        check_values(ours, session, arguments.model, digits)
        targets = [
            ours,
            *(stack.enter_context(echo_server(server_core, requests[kind][1], kind)) for kind in ("single", "bulk")),
        ]
        for round_number in range(arguments.rounds):
            print(f"round {round_number + 1} of {arguments.rounds}", file=sys.stderr)
            os.sched_setaffinity(0, {server_core})
            for rows in LOOP_ROWS:
                rate = loop(session, (digits[:rows] / 255).astype(np.float32), arguments.seconds / 2)
                figures.setdefault(f"onnxruntime in a loop, {rows} rows", []).append(rate)
            os.sched_setaffinity(0, {load_core})
            for in_flight, load in LOADS.items():
                for target in targets[:2]:
                    rate = h2load(target, requests["single"][0], load, arguments.seconds)
                    figures.setdefault(f"{target.name}, single rows, {in_flight} in flight", []).append(rate)
            for target, kind in ((ours, "bulk"), (ours, "bulk-uint8"), (targets[2], "bulk")):
                rate = h2load(target, requests[kind][0], BULK_LOAD, arguments.seconds) * BULK_ROWS
                figures.setdefault(f"{target.name}, {kind}", []).append(rate)
        os.sched_setaffinity(0, set(cores))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    table = render(medians)
    print(table)
    report = {
        "command": "python -m benchmarks.serving " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "grpcio": grpc.__version__, "onnxruntime": ort.__version__},
        "model": arguments.model,
        "medians": medians,
        "rounds": figures,
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.write:
        write_document(report, table)
    return 0


def bare_session(model: Path) -> ort.InferenceSession:
    """The model's encoder on one thread, without anything around it."""
    latest = max((path for path in model.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(latest / "encoder.onnx", options, providers=["CPUExecutionProvider"])


def loop(session: ort.InferenceSession, rows: npt.NDArray[np.float32], seconds: float) -> float:
    """Rows a second of a session that is run again and again."""
    session.run(None, {"rows": rows})
    began, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        session.run(None, {"rows": rows})
        runs += 1
    return runs * len(rows) / elapsed


def encode_request(model: str, rows: npt.NDArray[Any]) -> pb.EncodeRequest:
    dtype = model_pb2.DATA_TYPE_UINT8 if rows.dtype == np.uint8 else model_pb2.DATA_TYPE_FLOAT32
    return pb.EncodeRequest(
        model=pb.ModelSelector(name=model), rows=pb.Tensor(dtype=dtype, shape=rows.shape, data=rows.tobytes())
    )


def write_requests(folder: Path, model: str, digits: npt.NDArray[np.uint8]) -> dict[str, tuple[Path, int]]:
    """By kind: the file with a framed request, and the rows in it."""
    floats = (digits / np.float32(255)).astype(np.float32)
    found = {}
    for kind, rows in (("single", floats[:1]), ("bulk", floats), ("bulk-uint8", digits)):
        message = encode_request(model, rows).SerializeToString()
        path = folder / kind
        path.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        found[kind] = (path, len(rows))
    return found


@contextmanager
def our_server(models: Path, core: int) -> Iterator[Target]:
    command = [
        sys.executable, "-m", "service", "--models", str(models), "--port", "0", "--http-port", "0",
        "--device", "cpu", "--threads", "1", "--log-format", "json",
    ]  # fmt: skip
    with process(command, core) as (server, lines):
        for line in lines:
            event = json.loads(line)
            if event["event"] == "serving":
                yield Target(name="Hourglass", address=event["address"], http=f"http://{event['http']}/metrics")
                return
        raise SystemExit(f"the service did not start (exit code {server.wait()})")


@contextmanager
def echo_server(core: int, rows: int, kind: str) -> Iterator[Target]:
    threads = settings.Settings().handler_threads
    # The size of an answer with 128 latents a row.
    command = [sys.executable, "-m", "benchmarks.echo", str(threads), str(40 + rows * 128 * 4)]
    with process(command, core) as (_, lines):
        yield Target(name=f"bare echo ({kind})", address=f"127.0.0.1:{int(next(lines))}", http=None)


@contextmanager
def process(command: list[str], core: int) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A subprocess on one core and its lines; ended with the block."""
    server = subprocess.Popen(
        ["taskset", "--cpu-list", str(core), *command],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        yield server, iter(server.stdout)
    finally:
        server.terminate()
        server.communicate()


def check_values(target: Target, session: ort.InferenceSession, model: str, digits: npt.NDArray[np.uint8]) -> None:
    floats = (digits / np.float32(255)).astype(np.float32)
    expected = session.run(None, {"rows": floats})[0]
    with grpc.insecure_channel(target.address) as channel:
        stub = AutoencoderServiceStub(channel)
        for rows in (floats, digits):
            response = stub.Encode(encode_request(model, rows))
            got = np.frombuffer(response.latents.data, "<f4").reshape(tuple(response.latents.shape))
            np.testing.assert_allclose(got, expected, atol=1e-4)


def h2load(target: Target, request: Path, load: tuple[int, int], seconds: float) -> float:
    """Requests a second, all of them answered with OK."""
    connections, streams = load
    answered = ok_count(target)
    command = [
        "h2load", "--clients", str(connections), "--max-concurrent-streams", str(streams), "--threads", "1",
        "--duration", f"{int(seconds * 1000)}ms", "--warm-up-time", "300ms", "--data", str(request),
        "--header", "content-type: application/grpc", "--header", "te: trailers", f"http://{target.address}{METHOD}",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    totals = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", output)
    if done is None or totals is None or totals[3] != "0":
        raise SystemExit(f"h2load on {target.name}: {output}")
    if target.http is not None and ok_count(target) - answered < int(totals[2]):
        raise SystemExit(f"{target.name}: {totals[2]} requests, but only {ok_count(target) - answered} were OK")
    return float(done[1])


def ok_count(target: Target) -> int:
    if target.http is None:
        return 0
    with urllib.request.urlopen(target.http) as response:
        text = response.read().decode()
    found = re.search(rf'autoencoder_rpc_requests_total{{code="OK",method="{METHOD}"}} ([\d.e+]+)', text)
    return int(float(found[1])) if found else 0


def render(medians: dict[str, float]) -> str:
    """The table, with each figure beside its limits."""
    compute = {rows: medians[f"onnxruntime in a loop, {rows} rows"] for rows in LOOP_ROWS}
    lines = [
        "| load | Hourglass | bare echo server | onnxruntime in a loop | of echo | of onnxruntime |",
        "|---|---|---|---|---|---|",
    ]

    def line(load: str, ours: float, echo: float | None, loop: float, unit: str) -> str:
        beside = "-" if echo is None else f"{echo:,.0f}"
        share = "-" if echo is None else f"{ours / echo:.2f}"
        return f"| {load} | {ours:,.0f} {unit} | {beside} | {loop:,.0f} | {share} | {ours / loop:.2f} |"

    for in_flight in LOADS:
        load = f"single rows, {in_flight} in flight"
        echo = medians[f"bare echo (single), {load}"]
        lines.append(line(load, medians[f"Hourglass, {load}"], echo, compute[in_flight], "requests/s"))
    echo = medians["bare echo (bulk), bulk"]
    bulk = f"{BULK_ROWS}-row messages, {BULK_LOAD[0] * BULK_LOAD[1]} in flight"
    lines.append(line(f"{bulk}, float32", medians["Hourglass, bulk"], echo, compute[256], "rows/s"))
    lines.append(line(f"{bulk}, uint8", medians["Hourglass, bulk-uint8"], None, compute[256], "rows/s"))
    return "\n".join(lines)


def hardware() -> str:
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} cores; one for the server, one for the load"


def write_document(report: dict[str, Any], table: str) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = (
        f"`{report['command'].strip()}`, {report['date']}; {report['hardware']}; {versions}; "
        f"encoder of `{report['model']}`."
    )
    DOCUMENT.write_text(f"{before}{BEGIN}\n{facts}\n\n{table}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
