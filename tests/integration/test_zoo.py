"""The committed models, served for real and called through the client and its command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from examples import demo
from hourglass import AsyncClient, Client, ModelCard, Unsupported
from service import packages
from tests.integration.serving import ROOT, ServerProcess

MODELS = ROOT / "models"
RECIPES = {
    "pca", "linear", "undercomplete", "overcomplete", "deep", "conv", "sparse", "denoising", "denoising-conv",
    "stacked", "contractive",
}  # fmt: skip
PACKAGES = packages.find(MODELS)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(MODELS) as process:
        assert not [event for event in process.events if event["event"] == "model refused"]
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def digits() -> npt.NDArray[np.float32]:
    with np.load(demo.DIGITS) as file:
        images: npt.NDArray[np.float32] = (file["images"] / 255).astype(np.float32)
    return images


def test_the_zoo_is_complete(client: Client) -> None:
    assert {card.name for card in client.models()} == {f"mnist-{recipe}" for recipe in RECIPES}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_served_answers_are_those_of_pytorch(path: Path, client: Client) -> None:
    golden = packages.read(path).golden
    name, version = path.parent.name, int(path.name)
    latents = client.encode(name, golden.rows, version=version)
    np.testing.assert_allclose(latents, golden.latents, rtol=1e-4, atol=1e-5)
    rows = client.decode(name, golden.latents, version=version)
    np.testing.assert_allclose(rows, golden.reconstructions, rtol=1e-4, atol=1e-5)
    reconstruction = client.reconstruct(name, golden.rows, version=version)
    np.testing.assert_allclose(reconstruction.rows, golden.reconstructions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PACKAGES))
def test_a_walk_begins_and_ends_at_the_reconstructions(
    name: str, client: Client, digits: npt.NDArray[np.float32]
) -> None:
    walk = client.interpolate(name, digits[:3], digits[3:6], steps=4, method="spherical")
    ends = client.reconstruct(name, digits[:6]).rows
    np.testing.assert_allclose(walk.rows[:, 0], ends[:3], atol=1e-3)
    np.testing.assert_allclose(walk.rows[:, -1], ends[3:], atol=1e-3)


def test_a_hundred_tasks_get_their_own_latents(
    server: ServerProcess, client: Client, digits: npt.NDArray[np.float32]
) -> None:
    async def run() -> list[npt.NDArray[np.float32]]:
        async with AsyncClient(server.address) as asynchronous:
            return await asyncio.gather(*(asynchronous.encode("mnist-deep", digits[n : n + 1]) for n in range(100)))

    np.testing.assert_allclose(np.concatenate(asyncio.run(run())), client.encode("mnist-deep", digits[:100]), atol=1e-5)


def test_denoisers_take_noise_away_and_the_others_say_that_they_do_not(
    client: Client, digits: npt.NDArray[np.float32]
) -> None:
    denoisers = []
    for card in client.models():
        if "denoise" in card.operations:
            denoisers.append(card.name)
            spoilt = demo.noisy(card, digits)
            clean = client.denoise(card.name, spoilt).rows
            assert demo.psnr_db(clean, digits) > demo.psnr_db(spoilt, digits) + 3, card.name
        else:
            with pytest.raises(Unsupported, match="has no denoise"):
                client.denoise(card.name, digits[:1])
    assert {"mnist-denoising", "mnist-denoising-conv"} <= set(denoisers)


def test_digits_upside_down_and_noise_are_novel(client: Client, digits: npt.NDArray[np.float32]) -> None:
    noise = np.random.default_rng(0).random((50, 28, 28), dtype=np.float32)
    usual = client.reconstruct("mnist-undercomplete", digits).novelties
    assert np.median(client.reconstruct("mnist-undercomplete", noise).novelties) > 0.99
    assert 0.3 < np.median(usual) < 0.7, "test digits lie in the middle of the validation digits' errors"


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_graphs_have_nothing_that_a_gpu_leaves_to_the_cpu(path: Path) -> None:
    for file in (packages.ENCODER, packages.DECODER):
        operators = {node.op_type for node in onnx.load(path / file).graph.node}
        assert not operators & {"Shape", "Size", "NonZero", "Loop", "If", "Scan"}


def hourglass(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hourglass", *arguments, "--address", server.address],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip


def test_the_command_line_on_the_real_service(
    server: ServerProcess, client: Client, digits: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    listed = hourglass(server, "models")
    assert listed.returncode == 0
    assert all(f"mnist-{recipe}" in listed.stdout for recipe in RECIPES)
    assert listed.stdout.count(" psnr_db=") == len(RECIPES)
    assert listed.stdout.count("denoised_psnr_db=") == 2
    assert {card["name"] for card in json.loads(hourglass(server, "models", "--json").stdout)} == {
        f"mnist-{recipe}" for recipe in RECIPES
    }

    np.save(tmp_path / "rows.npy", digits)
    encoded = hourglass(server, "encode", f"{tmp_path}/rows.npy", f"{tmp_path}/latents.npy", "--model", "mnist-conv")
    assert encoded.returncode == 0, encoded.stderr
    np.testing.assert_allclose(np.load(tmp_path / "latents.npy"), client.encode("mnist-conv", digits), atol=1e-5)

    card = next(card for card in client.models() if card.name == "mnist-denoising-conv")
    save(tmp_path / "noisy.png", demo.noisy(card, digits[:1])[0])
    save(tmp_path / "a.png", digits[0])
    save(tmp_path / "b.png", digits[1])
    arguments = (f"{tmp_path}/noisy.png", f"{tmp_path}/clean.png", "--model", card.name)
    assert hourglass(server, "denoise", *arguments).returncode == 0
    noisy, clean = (load(tmp_path / f"{name}.png") for name in ("noisy", "clean"))
    assert demo.psnr_db(clean[None], digits[:1]) > demo.psnr_db(noisy[None], digits[:1]) + 5
    strip = hourglass(
        server, "interpolate", f"{tmp_path}/a.png", f"{tmp_path}/b.png", f"{tmp_path}/strip.png",
        "--model", "mnist-deep", "--steps", "7",
    )  # fmt: skip
    assert strip.returncode == 0, strip.stderr
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.width >= 7 * 28

    wrong = hourglass(server, "encode", f"{tmp_path}/rows.npy", f"{tmp_path}/no.npy", "--model", "mnist-none")
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (1, 1)
    assert "there is no model 'mnist-none'" in wrong.stderr
    assert not (tmp_path / "no.npy").exists()


def save(path: Path, row: npt.NDArray[np.float32]) -> None:
    Image.fromarray((row * 255).round().astype(np.uint8)).save(path)


def load(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as picture:
        return (np.asarray(picture) / 255).astype(np.float32)


def test_the_demo_draws_its_sheet_and_ends_its_server(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--out", str(tmp_path / "demo.png")],
        capture_output=True, text=True, cwd=ROOT, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert all(f"mnist-{recipe}" in run.stdout for recipe in RECIPES)
    with Image.open(tmp_path / "demo.png") as picture:
        grey = np.asarray(picture)
    assert grey.shape[0] > 500
    assert 0.1 < (grey < 128).mean() < 0.9


def test_noise_is_what_the_card_says() -> None:
    from autoencoder.v1 import model_pb2

    rows = np.full((200, 28, 28), 0.5, np.float32)
    for kind, level, share in (("masking", 0.25, 0.25), ("salt-and-pepper", 0.3, 0.3), ("gaussian", 0.1, 1.0)):
        message = model_pb2.Model(name="x", version=1, corruption=model_pb2.Corruption(kind=kind, level=level))
        spoilt = demo.noisy(ModelCard.of(message), rows)
        assert abs((spoilt != rows).mean() - share) < 0.01
