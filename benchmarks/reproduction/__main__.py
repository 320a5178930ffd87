"""The literature's figures, measured again.

python -m benchmarks.reproduction list                    # the rows, and which trials are there
python -m benchmarks.reproduction run rifai-cae --seeds 0 1
python -m benchmarks.reproduction run all                 # everything that is not there yet
python -m benchmarks.reproduction table                   # docs/reproduction.md from the results

A trial is one row, one protocol, one seed. Its record goes to benchmarks/reproduction/results/ when it ends; a trial
that is there already is not run again without --again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.reproduction import page, rows
from benchmarks.reproduction.bench import Bench, say
from benchmarks.reproduction.results import FOLDER, Results, record
from training import devices
from training.errors import TrainingError

CACHE = Path("build") / "reproduction"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help="where the records are")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the rows, and which trials are there")
    run = commands.add_parser("run", help="run what is not there yet")
    run.add_argument("row", nargs="+", help="names of rows, or all")
    run.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="default: 0")
    run.add_argument("--protocol", choices=rows.PROTOCOLS, help="default: both, where a row has both")
    run.add_argument("--data-dir", type=Path, metavar="DIR", help="a folder of IDX files (default: $HOURGLASS_DATA)")
    run.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    run.add_argument(
        "--device", choices=devices.DEVICE_NAMES, default="auto", help="where networks are trained (default: auto)"
    )
    run.add_argument("--again", action="store_true", help="run trials again that are there")
    run.add_argument(
        "--no-cache", action="store_true", help=f"pretrain anew; otherwise layers are kept in {CACHE} and used again"
    )
    table = commands.add_parser("table", help="write docs/reproduction.md from the records")
    table.add_argument("--page", type=Path, default=page.PAGE, metavar="FILE", help="default: docs/reproduction.md")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    try:
        match options.command:
            case "list":
                show(results)
            case "run":
                run_rows(results, options)
            case "table":
                options.page.write_text(page.text(results), encoding="utf-8")
    except (TrainingError, KeyError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return 0


def show(results: Results) -> None:
    for group in rows.groups():
        print(group.title)
        for row in group.rows:
            found = results.of(row.name)
            seeds = {
                protocol: [one.seed for one in found if one.protocol == protocol] or "not run"
                for protocol in row.trials
            }
            print(f"  {row.name:28} " + "; ".join(f"{name}: {value}" for name, value in seeds.items()))


def run_rows(results: Results, options: argparse.Namespace) -> None:
    device = devices.choose(options.device)
    if device.type == "cuda":
        # TensorFloat-32: otherwise products of matrices this small leave most of the device idle.
        torch.set_float32_matmul_precision("high")
    if options.threads:
        torch.set_num_threads(options.threads)
    every = [row.name for group in rows.groups() for row in group.rows]
    names = every if options.row == ["all"] else options.row
    chosen = [rows.find(name) for name in names]
    for seed in options.seeds:
        for row in chosen:
            for protocol, trial in row.trials.items():
                if options.protocol not in (None, protocol):
                    continue
                if results.find(row.name, protocol, seed) and not options.again:
                    print(f"{row.name}, {protocol}, seed {seed}: is there", file=sys.stderr)
                    continue
                say(f"{row.name}, {protocol}, seed {seed}")
                bench = Bench(
                    seed=seed, data_dir=options.data_dir, cache=None if options.no_cache else CACHE, device=device
                )
                torch.manual_seed(seed)
                started_s = time.monotonic()
                outcome = trial(bench)
                results.add(record(row.name, protocol, seed, outcome, time.monotonic() - started_s, device))
                print(f"{row.name}, {protocol}, seed {seed}: {row.metric} {outcome.figures[row.metric]:{row.form}}")


if __name__ == "__main__":
    sys.exit(main())
