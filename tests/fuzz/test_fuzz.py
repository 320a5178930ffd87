"""Each target on its corpus and, where atheris is installed, on new inputs for a moment; `make fuzz` goes on for longer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz import driver, targets
from tests.fuzz.targets import planted

needs_atheris = pytest.mark.skipif(
    not driver.has_atheris(), reason="needs atheris (the extra fuzz; Linux on x86-64, Python up to 3.13)"
)


@pytest.mark.parametrize("name", targets.NAMES)
def test_every_input_of_the_corpus_is_answered_or_refused_in_bounds(name: str) -> None:
    inputs = {path.name: path.read_bytes() for path in driver.corpus(name)}
    assert inputs.keys() >= targets.load(name).seeds().keys()
    began = time.process_time()
    peaks = driver.replay(name, inputs)
    assert time.process_time() - began < driver.MAX_INPUT_S
    assert max(peaks.values()) < driver.MAX_MEMORY_BYTES, peaks


def test_an_input_that_breaks_the_property_fails_the_replay() -> None:
    with pytest.raises(AssertionError, match="the input broken breaks the property: PlantedError"):
        driver.replay("planted", {"broken": b"\xb5\x0f\xd6\x99"})


@needs_atheris
def test_a_planted_fault_is_found(tmp_path: Path) -> None:
    run = driver.fuzz("planted", seconds=10, seed=1, artifacts=tmp_path, libraries=False)
    assert run.crash is not None, run.said
    with pytest.raises(planted.PlantedError):
        planted.one(run.crash.read_bytes())


@needs_atheris
@pytest.mark.parametrize("name", ["tensors", "requests", "inference"])
def test_new_inputs_are_answered_or_refused(name: str, tmp_path: Path) -> None:
    run = driver.fuzz(name, seconds=1, seed=1, artifacts=tmp_path, libraries=False)
    assert run.exit_code == 0, run.said
    assert run.executions > 50, run.said
