"""The service on a GPU beside the service on the CPU of the same machine, and beside onnxruntime alone on that GPU.

Encode by h2load, in rounds one after the other; medians. One worker each, on half of the cores that there are, the load
on the other half; on a CPU a worker has one thread. Needs h2load (Debian: nghttp2-client) and an NVIDIA GPU; `--devices
cpu` alone runs anywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime as ort
import torch

from benchmarks.load import ROOT, Load
from benchmarks.options import add_rounds
from benchmarks.report import DOCUMENT, hardware
from benchmarks.subjects import bare_session, digits, floats, latest, loop, service
from service.devices import choose_device

BEGIN, END = "<!-- serving device: begin -->", "<!-- serving device: end -->"
MODELS = ("mnist-conv", "mnist-deep", "mnist-denoising-conv")
ROWS = 256
LOADS = {
    "single rows, 1 in flight": (1, Load(connections=1)),
    "single rows, 64 in flight": (1, Load(connections=4, streams=16)),
    "single rows, 512 in flight": (1, Load(connections=8, streams=64)),
    f"{ROWS}-row messages, uint8, 16 in flight": (ROWS, Load(connections=8, streams=2)),
}
BARE = f"onnxruntime alone, {ROWS} rows of float32"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="*", default=list(MODELS), help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cuda", "cpu"], help="default: both")
    add_rounds(parser, 3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement (default: 1)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    half = len(cores) // 2
    servers, load = set(cores[:half]), set(cores[half:])
    rates: dict[tuple[str, str, str], list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services = {
            device: stack.enter_context(
                service(device, ROOT / "models", servers, folder, "--device", device, "--threads", "1")
            )
            for device in options.devices
        }
        os.sched_setaffinity(0, load)
        sessions = {
            (device, model): bare_session(latest(ROOT / "models" / model) / "encoder.onnx", 1, choose_device(device))
            for device in options.devices
            for model in options.model
        }
        for (device, model), session in sessions.items():
            services[device].check(session, model)
        for _ in range(options.rounds):
            for (device, model), session in sessions.items():
                for name, (rows, in_flight) in LOADS.items():
                    count = services[device].measure(model, digits(rows), in_flight, options.seconds)
                    rates.setdefault((model, name, device), []).append(count.requests_per_s * rows)
                alone = loop(session, floats(digits(ROWS)), options.seconds)
                rates.setdefault((model, BARE, device), []).append(alone)
    card = f"{torch.cuda.get_device_name()}; " if "cuda" in options.devices else ""
    arguments = " ".join([*options.model, "--devices", *options.devices])
    lines = [
        f"`python -m benchmarks.serving_device {arguments} --rounds {options.rounds} --seconds {options.seconds:g}`, "
        f"{datetime.now(UTC).date()}; {card}{hardware()}; onnxruntime {ort.__version__}.",
        "",
        f"| encode, rows a second | | {' | '.join(options.devices)} |",
        "|---|---|" + "---:|" * len(options.devices),
    ]
    for model in options.model:
        for name in (*LOADS, BARE):
            medians = (statistics.median(rates[model, name, device]) for device in options.devices)
            lines.append(f"| {model} | {name} | {' | '.join(f'{rate:,.0f}' for rate in medians)} |")
    print("\n".join(lines))
    if options.write:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text("\n".join((f"{before}{BEGIN}", *lines, f"{END}{rest.partition(END)[2]}")))


if __name__ == "__main__":
    main()
