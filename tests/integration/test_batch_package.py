"""`hourglass batch --package`: without a service, the numbers of the service, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoencoder.v1 import model_pb2
from hourglass import Client, InvalidArgument, NotFound
from hourglass.__main__ import main
from hourglass.files import CommandError
from hourglass.in_process import InProcess
from service import packages
from tests import tiny
from tests.integration.serving import ServerProcess

ROOT = Path(__file__).parents[2]
MODELS = ["tiny", "scaled", "mnist-conv", "mnist-denoising-conv"]
COUNT = 300  # rows: a batch and a piece of one


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`; `scaled`, whose errors are in units of each element; and two real models."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder)
    scaled: model_pb2.Model = tiny.manifest("scaled")
    scaled.row_scale.extend(np.linspace(0.5, 4.0, tiny.ELEMENTS))
    packages.write(folder, scaled, tiny.files())
    for name in MODELS[2:]:
        shutil.copytree(ROOT / "models" / name / "1", folder / name / "1")
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServerProcess]:
    with ServerProcess(models) as process:
        yield process


def inputs(shape: tuple[int, ...]) -> dict[str, Any]:
    rows = np.random.default_rng(5).integers(0, 256, (COUNT, *shape), np.uint8)
    floats = rows / np.float32(255)
    return {"uint8": rows, "float32": floats, "float16": floats.astype(np.float16), "float64": floats / np.float64(3)}


@pytest.mark.parametrize("name", MODELS)
def test_a_package_gives_the_bits_of_the_service(server: ServerProcess, models: Path, name: str) -> None:
    with Client(server.address) as client, InProcess(models / name / "1", threads=1) as here:
        card = client.model(name)
        assert here.model(name, 1).input == card.input
        for kind, rows in inputs(card.input.shape).items():
            for dtype in (np.float32, np.float16):
                np.testing.assert_array_equal(
                    here.encode(name, rows, dtype=dtype), client.encode(name, rows, dtype=dtype), err_msg=kind
                )
            again, expected = here.reconstruct(name, rows), client.reconstruct(name, rows)
            for part in ("rows", "errors", "novelties"):
                np.testing.assert_array_equal(getattr(again, part), getattr(expected, part), err_msg=f"{kind} {part}")
            if "denoise" in card.operations:
                clean, wanted = here.denoise(name, rows, dtype=np.float16), client.denoise(name, rows, dtype=np.float16)
                np.testing.assert_array_equal(clean.rows, wanted.rows, err_msg=kind)
                np.testing.assert_array_equal(clean.distances, wanted.distances, err_msg=kind)


@pytest.mark.parametrize("operation", ["encode", "denoise", "score"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_command_writes_the_same_bytes(
    server: ServerProcess, models: Path, tmp_path: Path, operation: str, threads: str
) -> None:
    np.save(tmp_path / "rows.npy", tiny.rows(5000))
    here, there = tmp_path / "here.npy", tmp_path / "there.npy"
    common = ["batch", operation, str(tmp_path / "rows.npy")]
    package = ["--package", str(models / "tiny" / "1"), "--threads", threads]
    assert main([*common, str(here), "--piece-rows", "300", *package]) == 0
    assert main([*common, str(there), "--address", server.address, "--model", "tiny"]) == 0
    assert here.read_bytes() == there.read_bytes()


def test_a_package_that_is_not_what_was_asked_for_is_refused(models: Path) -> None:
    here = InProcess(models / "tiny" / "1", threads=1)
    with pytest.raises(NotFound, match="--package holds tiny/1, not tiny/2"):
        here.model("tiny", 2)
    with pytest.raises(NotFound, match="not other"):
        here.encode("other", tiny.rows(1))
    with pytest.raises(InvalidArgument, match=r"must have the shape \(4, 4\); got \(4, 5\)"):
        here.encode("tiny", np.zeros((1, 4, 5), np.float32))
    rows = tiny.rows(COUNT)
    rows[280, 0, 0] = np.nan
    with pytest.raises(InvalidArgument, match="row 280 holds NaN or infinity"):
        here.reconstruct("tiny", rows)


def test_a_package_of_vectors_takes_no_pixels(tmp_path: Path) -> None:
    here = InProcess(tiny.write_vectors(tmp_path, "vectors", 6, 2), threads=1)
    with pytest.raises(InvalidArgument, match="UINT8 is only for rows of images"):
        here.encode("vectors", np.zeros((1, 6), np.uint8))


def test_a_package_with_another_file_is_refused(models: Path, tmp_path: Path) -> None:
    package = shutil.copytree(models / "tiny" / "1", tmp_path / "tiny")
    (package / "decoder.onnx").write_bytes((package / "encoder.onnx").read_bytes())
    with pytest.raises(CommandError, match=r"decoder.onnx: is not the file that model.json lists"):
        InProcess(package, threads=1)
    (package / "model.json").write_text("{")
    with pytest.raises(CommandError, match=r"model.json: is not the manifest"):
        InProcess(package, threads=1)


def test_a_job_does_not_go_on_with_another_package(models: Path, tmp_path: Path, capsys: Any) -> None:
    rows = tiny.rows(20)
    rows[15] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    argv = ["batch", "encode", str(tmp_path / "rows.npy"), str(tmp_path / "out.npy"), "--piece-rows", "5"]
    assert main([*argv, "--package", str(models / "tiny" / "1")]) == 1
    told = capsys.readouterr().err
    assert told == f"hourglass: rows: row 0 holds NaN or infinity; counted from row 15 of {tmp_path / 'rows.npy'}\n"
    other = shutil.copytree(models / "tiny" / "1", tmp_path / "other")
    manifest = other / "model.json"
    manifest.write_text(manifest.read_text().replace("Two matrix products", "Others"))
    assert main([*argv, "--package", str(other)]) == 1
    assert "package_sha256 was" in capsys.readouterr().err


def test_the_client_needs_no_onnxruntime_until_a_package_is_asked_for(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", tiny.rows(5))
    program = """
import sys
from hourglass.__main__ import main
assert "onnxruntime" not in sys.modules
sys.modules["onnxruntime"] = None
sys.exit(main(sys.argv[1:]))
"""
    argv = [
        "batch",
        "encode",
        str(tmp_path / "rows.npy"),
        str(tmp_path / "out.npy"),
        "--package",
        str(models / "tiny" / "1"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'hourglass-client[onnxruntime]'" in done.stderr
