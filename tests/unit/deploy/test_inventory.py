"""Inventories of what is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from deploy.inventory import differences, installed
from tests.unit.deploy.configuration import ROOT


def inventory(found: dict[str, str], name: str = "itself", version: str = "1") -> dict[str, Any]:
    components = [{"name": name, "version": version} for name, version in found.items()]
    return {"metadata": {"component": {"name": name, "version": version}}, "components": components}


def test_each_difference_has_a_line() -> None:
    found = {"numpy": "2.1", "grpcio": "1.80", "zlib-ng": "1"}
    assert differences(inventory({"NumPy": "2.1", "grpcio": "1.80", "zlib_ng": "1"}), found) == []
    assert differences(inventory({"numpy": "2.0", "onnx": "1", "zlib.ng": "1"}), found) == [
        "grpcio: installed 1.80, listed not at all",
        "numpy: installed 2.1, listed 2.0",
        "onnx: installed not at all, listed 1",
    ]


def test_the_thing_itself_may_be_installed_or_not_but_not_in_another_version() -> None:
    assert differences(inventory({}), {}) == []
    assert differences(inventory({}), {"itself": "1"}) == []
    assert differences(inventory({}), {"itself": "2"}) == ["itself: installed 2, listed 1"]


@pytest.mark.parametrize("wrong", [None, "one too few", "garbage"])
def test_the_command_looks_at_the_python_that_runs_it(wrong: str | None, tmp_path: Path) -> None:
    found = installed(distributions())
    if wrong == "one too few":
        del found["numpy"]
    path = tmp_path / "inventory.json"
    path.write_text("{}" if wrong == "garbage" else json.dumps(inventory(found)))
    done = subprocess.run(
        [sys.executable, "deploy/inventory.py", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == {None: 0, "one too few": 1, "garbage": 2}[wrong], done
    if wrong == "one too few":
        assert "numpy: installed" in done.stderr
        assert done.stderr.count("\n") == 1
