"""Rows a second of one device, by the rows of a batch: the service's session, bare onnxruntime and bare PyTorch.

All encode the same rows, which lie in the machine's memory before and whose latents lie there after, with the weights
of the package (PyTorch's are random: they cost the same), in turns, for several rounds. A ratio is the median of the
ratios within a round. On a machine with an NVIDIA GPU, `--device cuda` measures there.

    python -m benchmarks.inference                      # the CPU, one thread
    python -m benchmarks.inference --device cuda --write
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from benchmarks.load import ROOT
from benchmarks.options import add_rounds
from benchmarks.report import DOCUMENT, hardware
from benchmarks.subjects import bare_session, latest
from service import packages
from service.devices import Device, choose_device
from service.packages import Package
from service.session import OnnxSession, batch_sizes
from training import networks, recipes

MODELS = ("mnist-conv", "mnist-deep")
MOST_ROWS = 4096
OURS, BARE, TORCH = "the service's session", "bare onnxruntime", "bare PyTorch"

Rows = npt.NDArray[np.float32]
Encode = Callable[[Rows], Rows]


def bare_onnxruntime(package: Package, device: Device, threads: int) -> Encode:
    """From numpy to numpy, with the device's options."""
    session = bare_session(package.encoder, threads, device)
    name = session.get_inputs()[0].name

    def encode(rows: Rows) -> Rows:
        latents: Rows = session.run(None, {name: rows})[0]
        return latents

    return encode


def bare_pytorch(package: Package, device: Device) -> Encode:
    """The recipe's network, in evaluation mode, without gradients."""
    recipe = recipes.load(package.manifest.name.removeprefix("mnist-"))
    network = networks.build(recipe.network, package.input_shape).eval().to(device.name)

    @torch.inference_mode()
    def encode(rows: Rows) -> Rows:
        latents: Rows = network.encode(torch.from_numpy(rows).to(device.name)).cpu().numpy()
        return latents

    return encode


def rate(encode: Encode, rows: Rows, seconds: float) -> float:
    """Rows a second."""
    encode(rows)
    began, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        encode(rows)
        runs += 1
    return runs * len(rows) / elapsed


def measure(package: Package, device: Device, options: argparse.Namespace) -> list[str]:
    """Lines of the table."""
    torch.set_num_threads(options.threads)
    session = OnnxSession(package, device, threads=options.threads, max_batch_rows=MOST_ROWS)
    encoders = {
        OURS: session.encode,
        BARE: bare_onnxruntime(package, device, options.threads),
        TORCH: bare_pytorch(package, device),
    }
    random = np.random.default_rng(0)
    lines = []
    for count in batch_sizes(MOST_ROWS):
        rows = random.random((count, *package.input_shape), dtype=np.float32)
        rounds = [
            {name: rate(encode, rows, options.seconds) for name, encode in encoders.items()}
            for _ in range(options.rounds)
        ]
        rates = " | ".join(f"{statistics.median(one[name] for one in rounds):,.0f}" for name in encoders)
        ratios = " | ".join(
            f"{statistics.median(one[OURS] / one[other] for one in rounds):.2f}" for other in (BARE, TORCH)
        )
        lines.append(f"| {package.manifest.name} | {count} | {rates} | {ratios} |")
        print(lines[-1], flush=True)
    session.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="*", default=list(MODELS), help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--device", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (default: 1)")
    add_rounds(parser, 5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each, in each round (default: 0.2)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    device = choose_device(options.device)
    card = "" if device.name == "cpu" else f"{torch.cuda.get_device_name()}; "
    facts = (
        f"`python -m benchmarks.inference --device {options.device} --threads {options.threads} --rounds "
        f"{options.rounds} --seconds {options.seconds:g}`, {datetime.now(UTC).date()}; {card}{hardware()}; "
        f"onnxruntime {ort.__version__}, torch {torch.__version__}."
    )
    header = [
        f"| encode, rows a second | rows a batch | {OURS} | {BARE} | {TORCH} | over onnxruntime | over PyTorch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join((facts, "", *header)))
    lines = [line for name in options.model for line in measure(_package(name), device, options)]
    if options.write:
        begin, end = (f"<!-- inference {options.device}: {edge} -->" for edge in ("begin", "end"))
        before, _, rest = DOCUMENT.read_text().partition(begin)
        text = "\n".join((facts, "", *header, *lines))
        DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def _package(name: str) -> Package:
    return packages.read(latest(ROOT / "models" / name))


if __name__ == "__main__":
    main()
