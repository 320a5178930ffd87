"""A service, and a folder with the files that the documentation speaks of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
from PIL import Image

from tests.docs.commands import ROOT
from tests.integration.serving import ServerProcess

MODELS = ("mnist-conv", "mnist-deep", "mnist-denoising", "mnist-denoising-conv", "mnist-undercomplete")
VERSIONS = 4  # of mnist-conv

# What stands in the pages for what the test has.
ADDRESS, ADMIN_SOCKET = "127.0.0.1:50051", "/run/hourglass/admin.socket"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the service of the test is, by what stands for it in the pages."""
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(ROOT / "models" / name, models / name)
    for version in range(2, VERSIONS + 1):
        copy = shutil.copytree(models / "mnist-conv" / "1", models / "mnist-conv" / str(version))
        manifest = copy / "model.json"
        manifest.write_text(manifest.read_text().replace('"version": 1', f'"version": {version}'))
    socket = str(models / "admin.socket")
    with ServerProcess(models, "--admin-address", f"unix:{socket}") as process:
        yield {ADDRESS: process.address, ADMIN_SOCKET: socket}


@pytest.fixture
def folder(tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages speak of; the client's environment has its addresses."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOURGLASS_ADDRESS", places[ADDRESS])
    monkeypatch.setenv("HOURGLASS_ADMIN_ADDRESS", f"unix:{places[ADMIN_SOCKET]}")
    monkeypatch.delenv("HOURGLASS_TOKEN", raising=False)
    return tmp_path


def write_inputs(folder: Path) -> None:
    for name in ("examples", "models", "training", "client"):
        (folder / name).symlink_to(ROOT / name)
    with np.load(ROOT / "examples" / "digits.npz") as file:
        digits, labels = file["images"], file["labels"]
    for name in ("rows.npy", "digits.npy"):
        np.save(folder / name, digits[:4])
    for name in ("noisy.parquet", "digits.parquet"):
        rows = pa.array((digits[:4].reshape(4, -1) / np.float32(255)).tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"row": rows}), folder / name)
    for name, digit in {"noisy.png": 5, "three.png": 3, "eight.png": 8}.items():
        Image.fromarray(digits[labels == digit][0]).save(folder / name)
    (folder / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(digits[number]).save(folder / "pictures" / f"{number}.png")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    ours = authority.issue_cert("localhost")
    ours.cert_chain_pems[0].write_to_path(str(folder / "me.pem"))
    ours.private_key_pem.write_to_path(str(folder / "me.key"))


def placed(text: str, places: dict[str, str]) -> str:
    for shown, real in places.items():
        text = text.replace(shown, real)
    return text
