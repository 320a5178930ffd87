"""A virtual environment for each peer: their packages exclude one another's, and Hourglass's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.load import ROOT

FOLDER = ROOT / ".venv-peers"


def python(name: str) -> Path:
    """The interpreter that a peer's server runs in."""
    return FOLDER / name / "bin" / "python"


def requirements(name: str) -> Path:
    return Path(__file__).parent / name / "requirements.txt"


def is_built(name: str) -> bool:
    """Whether the environment holds what the requirements say today."""
    stamp = FOLDER / name / "requirements.txt"
    return stamp.exists() and stamp.read_text() == requirements(name).read_text()


def build(name: str, interpreter: str | None = None) -> None:
    """Makes the environment anew. Raises subprocess.CalledProcessError or FileNotFoundError if that fails."""
    folder = FOLDER / name
    # The interpreter behind this environment, for virtual environments do not nest.
    base = interpreter or os.path.join(sys.base_prefix, "bin", "python3")
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run(
        [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--requirement", str(requirements(name))],
        check=True,
    )  # fmt: skip
    (folder / "requirements.txt").write_text(requirements(name).read_text())
