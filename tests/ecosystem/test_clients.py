"""The real clients of Triton and KServe, each from an environment of its own, against a real service and real models."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hourglass import Client
from tests.docs.commands import blocks
from tests.ecosystem.environments import ROOT, python
from tests.integration.serving import ServerProcess

CONV, DENOISER = "mnist-conv", "mnist-denoising-conv"
DIGITS: npt.NDArray[np.uint8] = np.load(ROOT / "examples" / "digits.npz")["images"][:6]
Arrays = dict[str, npt.NDArray[Any]]

pytestmark = pytest.mark.ecosystem


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    for name in (CONV, DENOISER):
        (tmp_path / name).symlink_to(ROOT / "models" / name)
    with ServerProcess(tmp_path) as process:
        yield process


def ask(environment: str, script: str, server: ServerProcess, folder: Path) -> tuple[Arrays, Arrays, list[list[str]]]:
    """What the client got, what our own client gets, and the errors of the wrong requests."""
    rows = DIGITS / np.float32(255)
    with Client(server.address) as client:
        latents = client.encode(CONV, rows)
        reconstruction, denoised = client.reconstruct(CONV, DIGITS), client.denoise(DENOISER, DIGITS)
        walk = client.interpolate(CONV, rows[:2], rows[2:4], steps=4, method="spherical", return_latents=True)
        expected: Arrays = {
            "decode/rows": client.decode(CONV, latents),
            "reconstruct/reconstructions": reconstruction.rows,
            "reconstruct/reconstruction_errors": reconstruction.errors,
            "reconstruct/novelties": reconstruction.novelties,
            "denoise/clean": denoised.rows,
            "denoise/distances": denoised.distances,
            "interpolate/rows": walk.rows,
            "half": client.encode(CONV, rows, version=1, dtype=np.float16),
        }
        assert walk.latents is not None
        expected["interpolate/latents"] = walk.latents
    expected["encode/latents"] = latents
    sent: Arrays = {
        "encode/rows": rows,
        "decode/latents": latents,
        "reconstruct/rows": DIGITS,
        "denoise/rows": DIGITS,
        "interpolate/start": rows[:2],
        "interpolate/end": rows[2:4],
    }
    source, target = folder / "sent.npz", folder / "received.npz"
    np.savez(source, **sent)  # type: ignore[arg-type]
    done = subprocess.run(
        [python(environment), Path(__file__).with_name(script), server.address, target, source],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as arrays:
        received = {name: arrays[name] for name in arrays}
    return received, expected, json.loads(str(received.pop("errors")))


def assert_same(received: Arrays, expected: Arrays, ways: tuple[str, ...]) -> None:
    assert set(received) == {f"{way}/{name}" for way in ways for name in expected}
    for name, values in received.items():
        wanted = expected[name.partition("/")[2]]
        assert values.dtype == wanted.dtype, name
        np.testing.assert_array_equal(values, wanted, err_msg=name)


def test_tritonclient_gets_what_our_own_client_gets(server: ServerProcess, tmp_path: Path) -> None:
    received, expected, errors = ask("tritonclient", "triton_client.py", server, tmp_path)
    np.testing.assert_array_equal(received.pop("half"), expected.pop("half"))
    assert_same(received, expected, ("sync", "stream", "asyncio"))
    assert [status for status, _ in errors] == [
        "StatusCode.NOT_FOUND",
        "StatusCode.FAILED_PRECONDITION",
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.UNIMPLEMENTED",
        "StatusCode.UNIMPLEMENTED",
    ]
    assert errors[2][1] == "inputs: must be of rows; got 'latents'"


def test_the_example_in_the_documentation_runs(server: ServerProcess) -> None:
    (program,) = (part for part in blocks(ROOT / "docs" / "ecosystem.md", "python") if "tritonclient" in part.text)
    done = subprocess.run(
        [python("tritonclient"), "-c", program.text.replace("127.0.0.1:50051", server.address)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Client(server.address) as client:
        novelties = client.reconstruct(CONV, np.load(ROOT / "examples" / "digits.npz")["images"][:8]).novelties
    assert done.stdout == f"{novelties}\n"


def test_kserve_gets_what_our_own_client_gets(server: ServerProcess, tmp_path: Path) -> None:
    received, expected, errors = ask("kserve", "kserve_client.py", server, tmp_path)
    del expected["half"]
    assert_same(received, expected, ("raw", "typed"))
    assert errors == [["StatusCode.INVALID_ARGUMENT", "inputs: must be of rows; got 'latents'"]]
