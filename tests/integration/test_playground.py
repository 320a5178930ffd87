"""The playground's calls over HTTP, on a real service."""

from __future__ import annotations

import base64
import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from examples.playground.__main__ import main
from tests.integration.playing import WAIT_S, Playground
from tests.integration.serving import ROOT
from tests.tiny import npz

Array = npt.NDArray[Any]


def text(pixels: Array) -> str:
    return base64.b64encode(pixels.tobytes()).decode()


def pixels(answer: str) -> Array:
    return np.frombuffer(base64.b64decode(answer), np.uint8).reshape(28, 28)


def as_pixels(rows: Array) -> Array:
    pixels: Array = np.rint(np.clip(rows, 0, 1) * 255).astype(np.uint8)
    return pixels


def test_calls_answer_what_the_service_answers(playground: Playground) -> None:
    digits = playground.digits.images
    first, second, client = digits[0], digits[1], playground.client
    status, answer = playground.ask("denoise", {"model": "mnist-denoising", "row": text(first)})
    assert status == 200
    np.testing.assert_array_equal(
        pixels(answer["row"]), as_pixels(client.denoise("mnist-denoising", first[None]).rows[0])
    )
    _, walk = playground.ask("interpolate", {"model": "mnist-deep", "start": text(first), "end": text(second)})
    expected = client.interpolate("mnist-deep", first[None], second[None], steps=21).rows[0]
    np.testing.assert_array_equal([pixels(row) for row in walk["rows"]], as_pixels(expected))
    _, encoded = playground.ask("encode", {"model": "mnist-deep", "row": text(first)})
    np.testing.assert_allclose(encoded["latent"], client.encode("mnist-deep", first[None])[0], rtol=1e-5)
    _, decoded = playground.ask("decode", {"model": "mnist-deep", "latent": encoded["latent"], "shape": [32]})
    _, rebuilt = playground.ask("reconstruct", {"model": "mnist-deep", "row": text(first)})
    assert np.abs(pixels(decoded["row"]).astype(int) - pixels(rebuilt["row"])).max() <= 1


def test_the_map_lays_latents_on_their_principal_axes(playground: Playground) -> None:
    status, answer = playground.ask("map", {"model": "mnist-undercomplete"})
    assert status == 200
    latents = playground.client.encode("mnist-undercomplete", playground.digits.images).astype(np.float64)
    points, axes = np.array(answer["points"]), np.array(answer["axes"])
    np.testing.assert_allclose((latents - answer["mean"]) @ axes.T, points, atol=1e-2)
    covariance = np.cov(latents.T, bias=True)
    greatest = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(points.var(axis=0), greatest[:2], rtol=1e-3)
    assert answer["share"] == pytest.approx(greatest[:2].sum() / greatest.sum(), rel=1e-4)
    assert answer["spread"][0] == latents.std(axis=0).argmax()
    np.testing.assert_allclose(answer["low"], latents.min(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "question", "status", "says"),
    [
        ("denoise", {"model": "mnist-denoising", "row": "AAAA"}, 400, "row: must be 28x28 pixels"),
        ("denoise", {"model": "mnist-denoising"}, 400, "row: must be 28x28 pixels"),
        ("denoise", {"row": text(np.zeros(784, np.uint8))}, 400, "model: must be a name; got None"),
        ("denoise", {"model": "none", "row": text(np.zeros(784, np.uint8))}, 400, "none"),
        ("denoise", {"model": "mnist-deep", "row": text(np.zeros(784, np.uint8))}, 400, "denoise"),
        ("decode", {"model": "mnist-deep", "latent": [1.0], "shape": [32]}, 400, "latent, shape: must be numbers"),
        ("decode", {"model": "mnist-deep", "latent": [1e300] * 32, "shape": [32]}, 400, "infinity"),
        ("decode", {"model": "mnist-deep", "latent": [10**400] * 32, "shape": [32]}, 400, "latent, shape: must be"),
        ("nothing", {}, 404, "/api/nothing: no such call"),
        ("models", [1], 400, "a question is a JSON object"),
    ],
)
def test_a_wrong_question_is_answered_with_the_rule(
    playground: Playground, call: str, question: Any, status: int, says: str
) -> None:
    code, answer = playground.ask(call, question)
    assert code == status
    assert says in answer["error"]


def test_a_question_that_is_nested_too_deeply_is_refused(playground: Playground) -> None:
    code, answer = playground.ask("models", body=b"[" * 100_000)
    assert (code, answer["error"]) == (400, "a question is not nested so deeply")


def test_other_sites_cannot_use_the_playground(playground: Playground) -> None:
    assert playground.ask("models", headers={"Host": "elsewhere.example"})[0] == 403
    assert playground.ask("models", headers={"Content-Type": "text/plain"})[0] == 415
    assert playground.ask("models", body=b"", headers={"Content-Length": str(1 << 21)})[0] == 413
    assert playground.ask("models", body=b"{")[0] == 400


def test_it_starts_a_service_of_its_own_and_ends_it(tiny_models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    command = [sys.executable, "-m", "examples.playground", "--port", "0", "--models", str(tiny_models)]
    command += ["--digits", str(tmp_path / "digits.npz")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = next(
            match[1] for line in process.stdout if (match := re.search(r"playground is at http://.*:(\d+)", line))
        )
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=WAIT_S)
        connection.request("POST", "/api/models", b"{}", {"Content-Type": "application/json"})
        answer = json.load(connection.getresponse())
        connection.close()
        process.terminate()
        _, errors = process.communicate(timeout=WAIT_S)
    assert [model["name"] for model in answer["models"]] == ["plain", "tiny"]
    assert (process.returncode, errors) == (0, "")
    host, _, port = answer["address"].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(host, int(port)).connect()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no archive", "must be an .npz file with images and labels"),
        (npz(images=np.zeros((3, 4, 4), np.uint8)), "labels"),
        (
            npz(images=np.zeros((3, 4, 4), np.float32), labels=np.arange(3)),
            "images: must be uint8 [N, H, W]; got float32",
        ),
        (npz(images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(2)), "labels: must be one for each"),
    ],
)
def test_digits_that_are_none_are_refused_by_name(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], playground: Playground
) -> None:
    path = tmp_path / "digits.npz"
    path.write_bytes(content)
    assert main(["--address", playground.address, "--digits", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"playground: {path}: ")
    assert says in error


def test_a_port_that_is_taken_is_named(playground: Playground, capsys: pytest.CaptureFixture[str]) -> None:
    port = playground.server_address[1]
    assert main(["--address", playground.address, "--port", str(port)]) == 1
    assert f"playground: 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
