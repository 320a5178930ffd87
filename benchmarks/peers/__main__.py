"""Builds and checks the servers that Hourglass is compared with.

Each peer has an environment of its own under .venv-peers/ (all together some 4 GB): build makes them from
benchmarks/peers/NAME/requirements.txt. check starts each on one core, compares its answers with onnxruntime's, and
loads it from another core. Needs h2load (Debian: nghttp2-client); PyTriton also Debian's own Python (python3.11-venv,
libpython3.11).

  python -m benchmarks.peers build mosec        # or several names; none is all
  python -m benchmarks.peers check --seconds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.load import ROOT
from benchmarks.peers import environments
from benchmarks.peers.catalog import PEERS, Peer, PeerError
from benchmarks.peers.wires import Floats

DIGITS = ROOT / "examples" / "digits.npz"
IN_FLIGHT = (1, 16, 64)
BULK_ROWS, BULK_IN_FLIGHT = 256, 4


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="make the environments anew, unless they are up to date")
    check = commands.add_parser("check", help="start each peer, compare its answers with onnxruntime's, and load it")
    for command in (build, check):
        command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)} (default: all)")
    check.add_argument(
        "--encoder",
        type=Path,
        default=ROOT / "models" / "mnist-conv" / "1" / "encoder.onnx",
        help="the graph to serve, rows float32 [B, 28, 28] (default: %(default)s)",
    )
    check.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default: %(default)s)")
    check.add_argument(
        "--workers", type=int, default=1, help="processes that run the model; more than one have both cores, and so has"
        " the load (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    peers = [PEERS[name] for name in arguments.names or PEERS]
    if arguments.command == "build":
        return build_all(peers)
    return check_all(peers, arguments.encoder, arguments.seconds, arguments.workers)


def build_all(peers: list[Peer]) -> int:
    failed = 0
    for peer in {peer.folder: peer for peer in peers}.values():
        if environments.is_built(peer.folder):
            print(f"{peer.folder}: up to date")
            continue
        print(f"{peer.folder}: installing", flush=True)
        try:
            environments.build(peer.folder, peer.interpreter)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{peer.folder}: {error}", file=sys.stderr)
            failed = 1
    return failed


def check_all(peers: list[Peer], encoder: Path, seconds: float, workers: int) -> int:
    if shutil.which("h2load") is None:
        print("h2load is needed; Debian has it in the package nghttp2-client", file=sys.stderr)
        return 2
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two cores are needed: one for the server, one for the load", file=sys.stderr)
        return 2
    with np.load(DIGITS) as file:
        rows = (np.resize(file["images"], (BULK_ROWS, 28, 28)) / np.float32(255)).astype(np.float32)
    expected = ort.InferenceSession(encoder, providers=["CPUExecutionProvider"]).run(None, {"rows": rows})[0]
    columns = [*(f"{in_flight} in flight" for in_flight in IN_FLIGHT), f"{BULK_ROWS}-row messages"]
    print(f"| requests/s, single rows | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)
    failed = 0
    for peer in peers:
        try:
            figures = check_one(peer, encoder, rows, expected, seconds, workers, cores)
            print(f"| {peer.name} | {' | '.join(f'{figure:,.0f}' for figure in figures)} rows/s |", flush=True)
        except (PeerError, AssertionError, ValueError) as error:
            print(f"| {peer.name} | {error} |", flush=True)
            failed = 1
    return failed


def check_one(
    peer: Peer, encoder: Path, rows: Floats, expected: Floats, seconds: float, workers: int, cores: list[int]
) -> list[float]:
    """Requests a second of single rows by IN_FLIGHT, then rows a second of large messages."""
    server, load = ({cores[0]}, {cores[1]}) if workers == 1 else (set(cores), set(cores))
    with peer.start(encoder, cores=server, workers=workers) as running:
        for count in (1, 7, BULK_ROWS):
            np.testing.assert_allclose(
                running.values(rows[:count]), expected[:count].reshape(count, -1), atol=1e-4, rtol=0
            )
        os.sched_setaffinity(0, load)
        try:
            singles = [running.measure(rows[:1], in_flight, seconds).requests_per_s for in_flight in IN_FLIGHT]
            bulk = running.measure(rows, BULK_IN_FLIGHT, seconds).requests_per_s * BULK_ROWS
        finally:
            os.sched_setaffinity(0, set(cores))
    return [*singles, bulk]


if __name__ == "__main__":
    sys.exit(main())
