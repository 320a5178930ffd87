"""Checkpoint files that are not what a training writes, though their checksum is right."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import checkpoints
from training.errors import RunError


def write(path: Path, facts: str) -> None:
    save_file({}, path, metadata={"facts": facts, "sha256": hashlib.sha256(facts.encode()).hexdigest()})


def test_facts_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "step": torch.tensor(7),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    facts = {"epoch": 3, "losses": [0.5, None]}
    checkpoints.write(tmp_path / "a.safetensors", tensors, facts)
    read, facts_read = checkpoints.read(tmp_path / "a.safetensors")
    assert facts_read == facts
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)


def test_what_the_disk_does_not_take_is_an_error_of_ours_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoints.write(path, {"a": torch.arange(3.0)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"a\.safetensors: cannot be written: .*File too large"):
            checkpoints.write(path, {"a": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert checkpoints.read(path)[0]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ('{"epoch": ', "are not JSON"),
        ("[" * 8000, "are not JSON"),
        ('{"epoch": ' + "9" * 5000 + "}", "are not JSON"),
        ("[1]", "must be a JSON object; got list"),
    ],
)
def test_facts_that_are_none_are_refused_with_the_rule(tmp_path: Path, facts: str, rule: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, json.dumps({"epoch": 3}))
    assert checkpoints.read(path) == ({}, {"epoch": 3})
    write(path, facts)
    with pytest.raises(RunError, match=rf"a\.safetensors: its facts {rule}"):
        checkpoints.read(path)
