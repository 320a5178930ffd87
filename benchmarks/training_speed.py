"""How fast training is: epochs a second of a dense 784-32-784 at batches of 256, beside what else one might use.

    python -m benchmarks.training_speed --data-dir DIR [--build]

All train the same network on the same rows with the same loss and optimiser (Adam, fused), in turns: some epochs each,
for several rounds. The loss is PyTorch's function, and in Hourglass its own of the same value. A ratio is the median
over the rounds of the ratio within a round, of wall time and of processor time; the latter depends less on who else
uses the machine. `--build` makes pythae's environment first. The figures go to build/training-speed.json and between
the markers in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.options import add_rounds
from benchmarks.peers import environments
from benchmarks.report import hardware
from service.memory import keep_memory
from training import losses, networks, procedures, recipes
from training.data import Dataset
from training.networks import Autoencoder
from training.optimise import Phase, run_phase
from training.runs import Run
from training.session import Session
from training.train import load_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
RESULT = ROOT / "build" / "training-speed.json"
BATCH_ROWS = 256
PEER = "pythae"

OURS, VALIDATED = "Hourglass", "Hourglass, with the validation of 6,000 rows"
BARE, BARE_OURS = "the bare loop", "the bare loop with Hourglass's loss"
LOADER, PYTHAE = "a DataLoader loop", "pythae's trainer"
# What is to be reached: our epochs a second over those of each.
WANTED = {BARE: 0.9, BARE_OURS: 0.9, LOADER: 2.0, PYTHAE: 3.0}

Seconds = tuple[float, float]  # wall, processor
Contender = Callable[[int], Seconds]
Loss = Callable[[Tensor, Tensor], Tensor]


def timed(epochs: Callable[[int], None]) -> Contender:
    def run(count: int) -> Seconds:
        wall_s, processor_s = time.perf_counter(), time.process_time()
        epochs(count)
        return time.perf_counter() - wall_s, time.process_time() - processor_s

    return run


def network_and_optimiser(recipe: recipes.Recipe, rows: Tensor) -> tuple[Autoencoder, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = networks.build(recipe.network, tuple(rows.shape[1:]))
    return network, torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)


def torchs_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)


def step(network: Autoencoder, optimiser: torch.optim.Optimizer, batch: Tensor, loss_of: Loss = torchs_loss) -> None:
    loss = loss_of(network.logits(network.encode(batch)), batch)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def bare_loop(recipe: recipes.Recipe, rows: Tensor, loss_of: Loss = torchs_loss) -> Contender:
    """Forward, backward and step on batches that are already there: no shuffling, no log, nothing kept."""
    network, optimiser = network_and_optimiser(recipe, rows)
    batches = torch.split(rows, BATCH_ROWS)

    def epochs(count: int) -> None:
        for _ in range(count):
            for batch in batches:
                step(network, optimiser, batch, loss_of)

    return timed(epochs)


def loader_loop(recipe: recipes.Recipe, rows: Tensor) -> Contender:
    """PyTorch's DataLoader over a TensorDataset, shuffled, as its tutorials do it."""
    network, optimiser = network_and_optimiser(recipe, rows)
    loader = DataLoader(TensorDataset(rows), batch_size=BATCH_ROWS, shuffle=True)

    def epochs(count: int) -> None:
        for _ in range(count):
            for (batch,) in loader:
                step(network, optimiser, batch)

    return timed(epochs)


def ours(recipe: recipes.Recipe, dataset: Dataset, folder: Path, *, validated: bool) -> Contender:
    """A whole phase each time: shuffled, every loss looked at, the log, the checkpoints, the best epoch."""

    def epochs(count: int) -> None:
        network, _ = network_and_optimiser(recipe, dataset.train_rows)
        generator = Generator().manual_seed(0)
        session = Session(Run.create(folder, recipe), network, generator)

        def validate() -> dict[str, float]:
            if validated:
                return procedures.validation_objective(recipe, network, dataset.validation_rows)
            return {"validation_loss": 0.0, "validation_penalty": 0.0}

        phase = Phase(
            name="joint",
            parameters=network.parameters(),
            batch_loss=lambda indices: procedures.objective(
                recipe, network, dataset.train_rows.index_select(0, indices), generator
            ),
            validate=validate,
            keeps_best=True,
        )
        settings = recipes.Optimisation(epochs=count, batch_rows=BATCH_ROWS)
        run_phase(phase, settings, row_count=len(dataset.train_rows), session=session)

    return timed(epochs)


@contextmanager
def pythae(rows: Tensor, folder: Path, threads: int) -> Iterator[Contender]:
    """pythae in its own environment, waiting to be asked. Raises OSError, with the reason, where it does not run."""
    if not environments.is_built(PEER):
        raise OSError("its environment is not there; run with --build")
    path = folder / "rows.npy"
    np.save(path, rows.numpy())
    script = environments.requirements(PEER).with_name("trainer.py")
    command = [str(environments.python(PEER)), str(script), str(path), str(BATCH_ROWS), str(threads)]
    with (
        open(folder / "pythae.log", "w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        given, got = process.stdin, process.stdout
        try:
            if not any(line == "ready\n" for line in got):
                errors.seek(0)
                raise OSError(f"it does not start: {errors.read().strip().splitlines()[-1:]}")

            def run(count: int) -> Seconds:
                print(count, file=given, flush=True)
                wall_s, processor_s = next(json.loads(line) for line in got if line.startswith("["))
                return wall_s, processor_s

            yield run
        finally:
            process.terminate()


def measure(contenders: dict[str, Contender], rounds: int, epochs: int) -> dict[str, list[Seconds]]:
    """Seconds an epoch of each in each round, after one round that is not counted."""
    taken: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            wall_s, processor_s = contender(epochs)
            if number:
                taken[name].append((wall_s / epochs, processor_s / epochs))
        print(f"round {number} of {rounds}", file=sys.stderr)
    return taken


def ratio(taken: dict[str, list[Seconds]], over: str, clock: int, of: str = OURS) -> float:
    """How many times more epochs a second than `over`, by one of the clocks."""
    return statistics.median(theirs[clock] / mine[clock] for mine, theirs in zip(taken[of], taken[over], strict=True))


def table(taken: dict[str, list[Seconds]], missing: dict[str, str]) -> str:
    lines = [
        "| | epochs a second | Hourglass over it, wall time | processor time | wanted | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, seconds in taken.items():
        rate = 1 / statistics.median(wall_s for wall_s, _ in seconds)
        cells = ["", "", "", ""]
        if name != OURS:
            wall, processor = ratio(taken, name, 0), ratio(taken, name, 1)
            wanted = WANTED.get(name)
            holds = "" if wanted is None else "yes" if min(wall, processor) >= wanted else "no"
            cells = [f"{wall:.2f}", f"{processor:.2f}", "" if wanted is None else f"at least {wanted:g}", holds]
        lines.append(f"| {name} | {rate:.2f} | {' | '.join(cells)} |")
    lines += [f"| {name} | not measured: {reason} | | | | |" for name, reason in missing.items()]
    bounds = " and ".join(f"{name} {ratio(taken, LOADER, 0, of=name):.2f} times" for name in (BARE, BARE_OURS))
    lines += ["", f"What bounds it: over {LOADER} {bounds}, by wall time."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's IDX files (default: as for training)")
    parser.add_argument("--build", action="store_true", help="make pythae's environment, .venv-peers/pythae, first")
    add_rounds(parser, 9)
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="of each in a round (default: 2)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each (default: 1)")
    options = parser.parse_args(arguments)
    if options.build and not environments.is_built(PEER):
        with suppress(subprocess.CalledProcessError):  # the table says that it is not there
            environments.build(PEER)
    keep_memory()  # as `python -m training` does
    torch.set_num_threads(options.threads)
    recipe = recipes.load("undercomplete", [("procedure.batch_rows", BATCH_ROWS)])
    dataset = load_dataset(recipe, options.data_dir)
    rows = dataset.train_rows
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {
            OURS: ours(recipe, dataset, folder, validated=False),
            VALIDATED: ours(recipe, dataset, folder, validated=True),
            BARE: bare_loop(recipe, rows),
            BARE_OURS: bare_loop(recipe, rows, losses.cross_entropy),
            LOADER: loader_loop(recipe, rows),
        }
        try:
            with pythae(rows, folder, options.threads) as peer:
                taken = measure({**contenders, PYTHAE: peer}, options.rounds, options.epochs)
        except OSError as error:
            missing[PYTHAE] = str(error)
            taken = measure(contenders, options.rounds, options.epochs)
    result = {
        "command": f"python -m benchmarks.training_speed --rounds {options.rounds} --epochs {options.epochs}",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "load": os.getloadavg()[1],
        "threads": options.threads,
        "rounds": options.rounds,
        "epochs": options.epochs,
        "rows": len(rows),
        "versions": {"torch": torch.__version__, "pythae": requirement()},
        "seconds_an_epoch": taken,
        "missing": missing,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    facts = (
        f"`{result['command']}`, {result['date']}; {result['hardware']}, threads of each: {options.threads}; torch "
        f"{torch.__version__}, {requirement()}; medians of {options.rounds} rounds, epochs of "
        f"{len(rows):,} rows; load average of the machine meanwhile {result['load']:.1f}."
    )
    text = f"{facts}\n\n{table(taken, missing)}"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(text)
    return 0


def requirement() -> str:
    return environments.requirements(PEER).read_text(encoding="utf-8").splitlines()[0].replace("==", " ")


if __name__ == "__main__":
    sys.exit(main())
