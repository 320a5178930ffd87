"""The Triton repository that a package is converted to: read with Triton's schema, and run as it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service import packages
from tests.ecosystem.environments import ROOT, python
from training.layouts import convert

pytestmark = pytest.mark.ecosystem
PACKAGE = ROOT / "models" / "mnist-denoising-conv" / "1"


def run(repository: Path, configs: dict[str, Any], name: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """What Triton would make of `tensors`: a graph is run, an ensemble passes tensors from step to step."""
    config = configs[name]
    assert set(tensors) == {each["name"] for each in config["input"]}
    if config["platform"] == "ensemble":
        pool = dict(tensors)
        for step in config["ensembleScheduling"]["step"]:
            given = {inner: pool[outer] for inner, outer in step["inputMap"].items()}
            assert step["modelVersion"] == "1"
            results = run(repository, configs, step["modelName"], given)
            pool |= {outer: results[inner] for inner, outer in step["outputMap"].items()}
        results = {each["name"]: pool[each["name"]] for each in config["output"]}
    else:
        assert config["platform"] == "onnxruntime_onnx"
        assert "dynamicBatching" in config
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        names = [each["name"] for each in config["output"]]
        results = dict(zip(names, session.run(names, tensors), strict=True))
    for each in config["input"]:
        assert list(tensors[each["name"]].shape[1:]) == [int(size) for size in each["dims"]]
    for each in config["output"]:
        assert each["dataType"] == "TYPE_FP32"
        assert list(results[each["name"]].shape[1:]) == [int(size) for size in each["dims"]]
    return results


def test_triton_would_give_the_golden_outputs(tmp_path: Path) -> None:
    interpreter = python("tritonclient")
    models = convert(PACKAGE, "triton", tmp_path)
    done = subprocess.run(
        [interpreter, Path(__file__).with_name("triton_config.py"), *(model / "config.pbtxt" for model in models)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    configs = {config["name"]: config for config in json.loads(done.stdout)}
    assert set(configs) == {model.name for model in models}
    assert {config["maxBatchSize"] for config in configs.values()} == {256}
    golden = packages.read(PACKAGE).golden
    for operation, output, given, wanted in (
        ("encode", "latents", {"rows": golden.rows}, golden.latents),
        ("decode", "rows", {"latents": golden.latents}, golden.reconstructions),
        ("reconstruct", "reconstructions", {"rows": golden.rows}, golden.reconstructions),
        ("denoise", "clean", {"rows": golden.rows}, golden.reconstructions),
    ):
        results = run(tmp_path, configs, f"mnist-denoising-conv.{operation}", given)
        assert list(results) == [output]
        np.testing.assert_allclose(results[output], wanted, atol=1e-4, rtol=1e-3)
