"""What half precision and 8-bit integers bring, and what they cost.

The encoders of committed packages in fp32, fp16 and int8, in onnxruntime, in rounds one after the other; medians of the
time a row: of one thread of the processor, or by the clock with `--device cuda`. The loss is that of the test rows'
PSNR, through encoder and decoder. Needs MNIST, as training does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.load import ROOT
from benchmarks.options import add_rounds
from benchmarks.report import hardware
from benchmarks.subjects import bare_session, latest
from service import packages
from service.devices import choose_device
from training import data
from training.graphs import Graphs
from training.precision import PRECISIONS, Precision, psnr_loss_db
from training.reduction import RoundTrip, convert

BATCHES = (1, 64, 256)
LOSS_ROWS = 2000
_SEGMENT_ROWS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["mnist-conv", "mnist-denoising-conv", "mnist-deep", "mnist-denoising", "mnist-stacked"]
    parser.add_argument("model", nargs="*", default=default, help=f"models on MNIST (default: {' '.join(default)})")
    add_rounds(parser, 5)
    parser.add_argument("--data-dir", type=Path, help="a folder of IDX files (default: $HOURGLASS_DATA)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    options = parser.parse_args()
    device = choose_device(options.device)
    clock = time.process_time if device.name == "cpu" else time.perf_counter
    measured = "one thread; processor time" if device.name == "cpu" else f"{torch.cuda.get_device_name()}; time"
    dataset = data.load("mnist", folder=options.data_dir, validation_share=0.1, seed=0)
    rows = dataset.test_rows[:LOSS_ROWS].numpy()
    print(f"{datetime.now(UTC).date()}; {hardware()}; {measured} of the encoder, in microseconds a row")
    print("| model | precision | " + " | ".join(f"{count} rows" for count in BATCHES) + " | bytes | PSNR lost, dB |")
    print("|---|---|" + "---:|" * (len(BATCHES) + 2))
    for name in options.model:
        package = packages.read(latest(ROOT / "models" / name))
        full = Graphs(encoder=package.encoder, decoder=package.decoder)
        made: dict[Precision, Graphs] = {precision: convert(full, precision, dataset) for precision in PRECISIONS}
        sessions = {precision: bare_session(graphs.encoder, device=device) for precision, graphs in made.items()}
        times: dict[tuple[Precision, int], list[float]] = {}
        for _ in range(options.rounds):
            for precision, session in sessions.items():
                for count in BATCHES:
                    times.setdefault((precision, count), []).append(row_us(session, rows[:count], clock))
        before = RoundTrip(full, rows).rows
        for precision, graphs in made.items():
            medians = " | ".join(f"{statistics.median(times[precision, count]):.1f}" for count in BATCHES)
            loss_db = psnr_loss_db(rows, before, RoundTrip(graphs, rows).rows)
            size = len(graphs.encoder) + len(graphs.decoder)
            print(f"| {name} | {precision} | {medians} | {size:,} | {loss_db:.3f} |")


def row_us(session: Any, rows: npt.NDArray[np.float32], clock: Callable[[], float]) -> float:
    session.run(None, {"rows": rows})
    runs = max(1, _SEGMENT_ROWS // len(rows))
    began = clock()
    for _ in range(runs):
        session.run(None, {"rows": rows})
    return (clock() - began) / runs / len(rows) * 1e6


if __name__ == "__main__":
    main()
