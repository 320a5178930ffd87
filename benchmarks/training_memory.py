"""What training takes in time and memory as rows grow: a mapped .npy of 32 columns, one epoch of a small network.

python -m benchmarks.training_memory                          # 10 thousand to 10 million rows: 1.3 GB in --folder
python -m benchmarks.training_memory --rows 10000 1000000

Each size is trained in a process of its own, rows mapped at every size. Memory is read from /proc while it trains:
`anonymous` is what the process cannot give back, and what ends it where memory is limited; `resident` adds the pages of
the file that the kernel happens to keep for it, and drops when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 32
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)

_FACTORS = 6
_CHUNK_ROWS = 100_000
_SAMPLE_S = 0.02
_FIELDS = {"RssAnon": "anonymous", "VmRSS": "resident"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="how many (default: four sizes)")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the files lie meanwhile (default: .)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the figures there too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    figures = []
    print(f"{'rows':>12} {'file MB':>9} {'anonymous MB':>13} {'resident MB':>12} {'rows/s':>10} {'total s':>8}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in options.rows:
            path = Path(folder) / "rows.npy"
            write(path, count)
            command = [sys.executable, "-m", "benchmarks.training_memory", "--one", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            figure = {"rows": count, **json.loads(done.stdout.splitlines()[-1])}
            figures.append(figure)
            print(
                f"{count:>12,} {path.stat().st_size / 1e6:>9.0f} {figure['anonymous_mb']:>13.0f} "
                f"{figure['resident_mb']:>12.0f} {figure['rows_a_second']:>10,.0f} {figure['total_s']:>8.1f}",
                flush=True,
            )
    growth = figures[-1]["anonymous_mb"] / figures[0]["anonymous_mb"]
    print(f"anonymous memory of the most rows over that of the fewest: {growth:.2f}")
    if options.out:
        options.out.write_text(
            json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


def write(path: Path, count: int) -> None:
    """Rows of a few factors and noise, not standardised yet, written piece by piece."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(_FACTORS, COLUMNS)) * np.geomspace(0.01, 100, COLUMNS)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, COLUMNS))
    for start in range(0, count, _CHUNK_ROWS):
        part = rows[start : start + _CHUNK_ROWS]
        part[:] = random.normal(size=(len(part), _FACTORS)) @ mixing + 5


def measure(path: Path) -> dict[str, float]:
    """Load, train for one epoch and evaluate; the peaks of memory, and the time."""
    import torch

    from training import recipes, storage
    from training.train import load_dataset, train

    torch.set_num_threads(1)
    storage.LARGE_BYTES = 0  # map at every size, so that the sizes differ in rows only
    table: dict[str, Any] = {
        "name": "memory",
        "description": "What training takes as rows grow.",
        "data": {"name": "rows", "path": str(path)},
        "network": {
            "kind": "dense", "hidden": [64], "latent": 6, "latent_activation": "linear", "output_activation": "linear",
        },
        "loss": {"kind": "squared-error"},
        "procedure": {"kind": "joint", "epochs": 1, "batch_rows": 8192},
    }  # fmt: skip
    recipe = recipes.check(table, where="benchmark")
    peaks: dict[str, float] = dict.fromkeys(_FIELDS.values(), 0.0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            for name, value in memory_mb().items():
                peaks[name] = max(peaks[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began_s = time.monotonic()
        dataset = load_dataset(recipe, None)
        with tempfile.TemporaryDirectory() as runs:
            run = train(recipe, dataset, Path(runs))
            epoch_s = sum(entry["seconds"] for entry in run.metrics())
        total_s = time.monotonic() - began_s
    finally:
        ended.set()
        watcher.join()
    return {
        **{f"{name}_mb": value for name, value in peaks.items()},
        "rows_a_second": len(dataset.train_rows) / epoch_s,
        "total_s": total_s,
    }


def memory_mb() -> dict[str, float]:
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key in _FIELDS:
            found[_FIELDS[key]] = int(value.split()[0]) / 1000
    return found


def machine() -> dict[str, str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": str(os.cpu_count()), "date": datetime.now(UTC).date().isoformat()}


if __name__ == "__main__":
    sys.exit(main())
