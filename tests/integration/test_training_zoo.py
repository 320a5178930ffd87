"""The committed models: complete, small, and computing what they computed when they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service import packages
from training import recipes
from training.data import SOURCES
from training.zoo import package_bytes

MODELS = Path(__file__).resolve().parents[2] / "models"
PACKAGE_BYTES = 2_000_000
ZOO_BYTES = 15_000_000


def test_every_recipe_has_a_package_on_mnist() -> None:
    assert {path.parent.name for path in packages.find(MODELS)} == {f"mnist-{name}" for name in recipes.names()}


def test_packages_are_small() -> None:
    sizes = {path.parent.name: package_bytes(path) for path in packages.find(MODELS)}
    assert {name: size for name, size in sizes.items() if size > PACKAGE_BYTES} == {}
    assert sum(sizes.values()) <= ZOO_BYTES


@pytest.mark.parametrize("name", recipes.names())
def test_a_committed_package_reads_back_and_gives_its_golden_outputs(name: str) -> None:
    package = packages.read(MODELS / f"mnist-{name}" / "1")

    def run(graph: bytes, values: packages.Rows) -> packages.Rows:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {session.get_inputs()[0].name: values})
        assert isinstance(result, np.ndarray)
        return result

    packages.check_golden(package, lambda rows: run(package.encoder, rows), lambda rows: run(package.decoder, rows))


@pytest.mark.parametrize("name", recipes.names())
def test_a_committed_package_was_made_by_the_recipe_as_it_stands(name: str) -> None:
    from google.protobuf import json_format

    manifest = packages.read(MODELS / f"mnist-{name}" / "1").manifest
    assert json_format.MessageToDict(manifest.recipe) == recipes.load(name).model_dump(mode="json")
    assert manifest.dataset.name in SOURCES
