"""Runs targets: the corpus again, without a fuzzer; and new inputs by atheris, in a process of their own.

python -m tests.fuzz.driver TARGET MODULES FOLDER LIBFUZZER-ARGUMENTS...    # that process
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import targets

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"

# Of one input: longer or larger than any can be that is handled right.
MAX_INPUT_BYTES = 8192
MAX_INPUT_S = 10
MAX_MEMORY_BYTES = 64 << 20
MAX_PROCESS_MB = 2048


@dataclass(frozen=True, kw_only=True)
class Run:
    """`crash`: the input that broke the property, or None. `said`: what the process printed."""

    target: str
    executions: int
    seconds: float
    crash: Path | None
    exit_code: int
    said: str


def has_atheris() -> bool:
    return find_spec("atheris") is not None


def corpus(name: str) -> list[Path]:
    return sorted((CORPUS / name).glob("*"))


def replay(name: str, inputs: dict[str, bytes]) -> dict[str, int]:
    """Give a target each input. Returns the most memory that Python and numpy took for each, in bytes."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder, targets.load(name).opened(Path(folder)) as one:
        tracemalloc.start()
        try:
            for input_name, data in inputs.items():
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                try:
                    one(data)
                except Exception as error:
                    raise AssertionError(f"{name}: the input {input_name} breaks the property: {error!r}") from error
                peaks[input_name] = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    return peaks


def fuzz(
    name: str, *, seconds: int, artifacts: Path, found: Path | None = None, seed: int = 0, libraries: bool = True
) -> Run:
    """Fuzz a target from its corpus. Inputs that reach something new go to `found`, a crash's to `artifacts`.

    `libraries`: whether the coverage of the libraries below leads too.
    """
    led_by = [*targets.OWN, *(targets.LIBRARIES if libraries else ())]
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        new = found or Path(folder) / "found"
        new.mkdir(parents=True, exist_ok=True)
        own = Path(folder) / "own"
        own.mkdir()
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.driver", name, ",".join(led_by), str(own), str(new), *filter(Path.exists, [CORPUS / name]),
                f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_INPUT_S}",
                f"-rss_limit_mb={MAX_PROCESS_MB}", f"-artifact_prefix={artifacts}/{name}-", "-print_final_stats=1",
                *([f"-seed={seed}"] if seed else []),
            ], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + 120,
        )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    took = re.search(r"Done \d+ runs in (\d+) second", said)
    crash = re.search(r"Test unit written to (\S+)", said)
    return Run(
        target=name,
        executions=int(counted[1]) if counted else 0,
        seconds=float(took[1]) if took else 0.0,
        crash=Path(crash[1]) if crash else None,
        exit_code=done.returncode,
        said=said,
    )


def _main(name: str, modules: str, folder: str, arguments: list[str]) -> None:
    import atheris

    logging.disable()
    # A warning is a value that was not expected.
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=modules.split(","), enable_loader_override=False):
        target = targets.load(name)
    with target.opened(Path(folder)) as one:
        inputs: Callable[[bytes], None] = one
        atheris.Setup([sys.argv[0], *arguments], inputs)
        atheris.Fuzz()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
