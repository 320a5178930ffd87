"""Where other people's libraries are: virtual environments that `make test-ecosystem` builds."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(environment: str) -> Path:
    """The interpreter of an environment; the test is skipped where it was not built."""
    interpreter = ROOT / f".venv-{environment}" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip(f".venv-{environment} is not there: make test-ecosystem builds it")
    return interpreter
