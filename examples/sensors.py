"""A pump's sensor readings with known faults, and their score by a served model. `docs/training.md` walks through it.

python -m examples.sensors make DIRECTORY                          # writes history.csv and today.csv
python -m examples.sensors score TODAY.csv --model pump            # asks a running service

A reading a second: motor load, speed, vibration, pressure, flow and temperature, which hang together; now and then one
is missing. The history is a quiet week's. Today holds four faults, named in its column `fault`, which no model sees.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hourglass import Client, HourglassError

HISTORY_STEPS, TODAY_STEPS = 16_000, 8_000
COLUMNS = ("load", "speed_rpm", "vibration_mm_s", "pressure_bar", "flow_l_s", "temperature_c")
# Name, first step and steps of each fault of today.
FAULTS = (("bearing", 1200, 400), ("leak", 3000, 400), ("stuck pressure", 4800, 400), ("cooling", 6400, 500))

_STRIDE = 8
_MISSING_SHARE = 0.002
_EPOCH = np.datetime64("2026-03-02T00:00:00")

Values = npt.NDArray[np.float64]


def readings(steps: int, seed: int) -> Values:
    """Readings [steps, columns] of a healthy pump."""
    random = np.random.default_rng(seed)
    time = np.arange(steps)
    phase = 2 * np.pi * random.random(3)
    load = 0.6 + 0.2 * np.sin(time / 45 + phase[0]) + 0.1 * np.sin(time / 17 + phase[1])
    speed = 1450 + 250 * load + random.normal(0, 4, steps)
    vibration = (1 + 1.2 * load) * np.sin(time / 2.5 + phase[2]) + random.normal(0, 0.1, steps)
    pressure = 2 + 3 * (speed / 1600) ** 2 + random.normal(0, 0.02, steps)
    flow = 0.02 * speed - 4 * (pressure - 4) + random.normal(0, 0.15, steps)
    temperature = np.empty(steps)
    warmth = 40 + 25 * load[0]
    for step in range(steps):
        warmth += (40 + 25 * load[step] - warmth) / 30
        temperature[step] = warmth
    temperature += random.normal(0, 0.1, steps)
    return np.stack([load, speed, vibration, pressure, flow, temperature], axis=1)


def add_faults(values: Values) -> list[str]:
    """Change readings of today in place; the fault's name of each step, empty where all is well."""
    names = [""] * len(values)
    for name, first, steps in FAULTS:
        part = values[first : first + steps]
        names[first : first + steps] = [name] * steps
        match name:
            case "bearing":
                part[:, 2] += 0.9 * np.sin(np.arange(steps) * 1.9)
            case "leak":
                part[:, 4] -= 2.0
            case "stuck pressure":
                part[:, 3] = part[0, 3]
            case "cooling":
                part[:, 5] += np.minimum(np.arange(steps) / 40, 6)
    return names


def make(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    history, today = readings(HISTORY_STEPS, 1), readings(TODAY_STEPS, 2)
    faults = add_faults(today)
    _write(directory / "history.csv", history, None, seed=3)
    _write(directory / "today.csv", today, faults, seed=4)


def score(path: Path, model: str, address: str) -> None:
    """Ask the service for the novelty of every window of the file; print it by fault, and the area under the ROC."""
    with Client(address) as client:
        card = client.model(model)
        window = card.input.shape[0]
        values, faults = _read(path, card.input.columns)
        # The model has learned from windows without a missing value, and the service refuses others.
        starts = [start for start in range(0, len(values) - window + 1, _STRIDE)
                  if np.isfinite(values[start : start + window]).all()]  # fmt: skip
        rows = np.stack([values[start : start + window] for start in starts]).astype(np.float32)
        answer = client.reconstruct(model, rows)
    # A window is of a fault where all of it is; windows that a fault begins or ends in are judged by neither.
    names = np.array([_name(faults[start : start + window]) for start in starts])
    healthy = answer.errors[names == ""]
    print(f"{'windows':<16}{'number':>8}{'mean novelty':>14}{'mean error':>12}{'AUROC':>8}")
    for name in ("", *(fault[0] for fault in FAULTS)):
        own = names == name
        area = f"{auroc(answer.errors[own], healthy):8.4f}" if name else ""
        print(
            f"{name or 'healthy':<16}{own.sum():>8}{answer.novelties[own].mean():>14.3f}"
            f"{answer.errors[own].mean():>12.4g}{area}"
        )
    faulty = np.isin(names, [fault[0] for fault in FAULTS])
    print(f"AUROC of all faults, by the error: {auroc(answer.errors[faulty], healthy):.4f}")


def auroc(faulty: npt.NDArray[np.float32], healthy: npt.NDArray[np.float32]) -> float:
    """The probability that a faulty window scores above a healthy one; ties count half."""
    ordered = np.sort(healthy)
    below = np.searchsorted(ordered, faulty, "left") + np.searchsorted(ordered, faulty, "right")
    return float(below.mean() / 2 / len(healthy))


def _name(faults: list[str]) -> str:
    return faults[0] if len(set(faults)) == 1 else "mixed"


def _write(path: Path, values: Values, faults: list[str] | None, seed: int) -> None:
    missing = np.random.default_rng(seed).random(values.shape) < _MISSING_SHARE / values.shape[1]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *COLUMNS, *(["fault"] if faults is not None else [])])
        for step, row in enumerate(values):
            cells = ["" if hole else f"{value:.4f}" for value, hole in zip(row, missing[step], strict=True)]
            writer.writerow([_EPOCH + step, *cells, *([faults[step]] if faults is not None else [])])


def _read(path: Path, columns: tuple[str, ...]) -> tuple[Values, list[str]]:
    """The columns that the model wants, in its order, NaN where a value is missing; and the fault of each step."""

    def lines() -> Iterator[dict[str, str]]:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    values, faults = [], []
    for line in lines():
        values.append([float(line[name] or "nan") for name in columns])
        faults.append(line["fault"])
    return np.array(values), faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.sensors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write history.csv and today.csv")
    making.add_argument("directory", type=Path)
    scoring = commands.add_parser("score", help="the novelty of a file's windows, by a running service")
    scoring.add_argument("file", type=Path)
    scoring.add_argument("--model", required=True)
    scoring.add_argument("--address", default="127.0.0.1:50051", help="of the service (default: 127.0.0.1:50051)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            make(options.directory)
        else:
            score(options.file, options.model, options.address)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except HourglassError as error:
        print(f"the service answered: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
