"""The committed models: complete, small, and computing what they computed when they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format

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
    manifest = packages.read(MODELS / f"mnist-{name}" / "1").manifest
    # A Struct has no whole numbers; what recipes have gained since is at its default.
    table = json.loads(
        json_format.MessageToJson(manifest.recipe),
        parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text),
    )
    assert what_is_made(recipes.check(table, where="model.json")) == what_is_made(recipes.load(name))
    assert manifest.dataset.name in SOURCES


def what_is_made(recipe: recipes.Recipe) -> Any:
    """All of a recipe but how fast it may be computed, which depends on the machine."""

    def without_precision(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: without_precision(inner) for key, inner in value.items() if key != "precision"}

    return without_precision(recipe.model_dump(mode="json"))
