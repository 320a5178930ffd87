"""What `inspect` says is true, and the recipe that it writes trains as it stands and is served."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoder.v1 import model_pb2
from service import packages
from tests.unit.training.test_export import run_graph
from training import inspection, recipes
from training.__main__ import main
from training.runs import Run
from training.train import load_dataset


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_table(path: Path) -> None:
    random = np.random.default_rng(3)
    lines = ["time,clock,site,speed,vibration,flat,label"]
    for step in range(400):
        speed, hole = 1500 + 100 * random.normal(), step % 100 == 7
        vibration = "" if hole else f"{(speed - 1500) / 1e4 + 0.001 * random.normal():.6f}"
        lines.append(
            f"2026-01-01T00:{step // 60:02}:{step % 60:02},{step},oslo,{speed:.2f},{vibration},3,{'ab'[speed > 1500]}"
        )
    path.write_text("\n".join(lines), encoding="utf-8")


def test_the_findings_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(Path("pump log.csv"))
    assert main(["inspect", "pump log.csv"]) == 0
    said = capsys.readouterr().out
    for words in (
        r"kind +vector",
        r"rows +396 of 2, float32",
        r"missing +4 rows lack a value; they are left out",
        r"labels +2 classes: a \(\d+\), b \(\d+\)",
        r"time +timestamp.* left out: no numbers",
        r"clock +int64 +0 to 399 +missing 0 +left out: rises in every row",
        r"site +string +left out: no numbers",
        r"vibration +double .* missing 4\n",
        r"flat +int64 +3 to 3 +missing 0 +left out: constant",
    ):
        assert re.search(words, said), words
    assert not list(Path().glob("*.toml"))


def test_a_clock_in_seconds_of_the_epoch_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(3)
    lines = [f"{1_790_000_000 + step},{2**30 + step % 7},{random.normal()}" for step in range(400)]
    Path("own.csv").write_text("\n".join(["time,serial,value", *lines]), encoding="utf-8")
    assert main(["inspect", "own.csv", "--write", "own.toml"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"time .* left out: rises in every row", said)
    assert re.search(r"serial .* left out: constant in single precision", said)
    assert recipes.load("own.toml").data.columns == ("value",)


def test_columns_of_any_name_are_written_and_read_again() -> None:
    names = ["a\x7fb", 'q"uo\\te', "日本 🙂", " lead", "new\nline", "tab\t", "\x01"]
    random = np.random.default_rng(3)
    with open("own.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *random.normal(size=(20, len(names))).tolist()])
    assert main(["inspect", "own.csv", "--write", "own.toml"]) == 0
    assert recipes.load("own.toml").data.columns == tuple(names)


def test_columns_that_are_not_asked_for_are_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{step % 7},{step % 5 if step < 300_000 else 'broken'}" for step in range(300_010)]
    Path("own.csv").write_text("\n".join(["a,b", *lines]), encoding="utf-8")
    assert main(["inspect", "own.csv"]) == 1
    assert "column 'b' holds 'broken', which is not a number" in capsys.readouterr().err
    assert main(["inspect", "own.csv", "--columns", "a"]) == 0
    # Nor is the label.
    assert main(["inspect", "own.csv", "--label", "b"]) == 0
    assert "6 classes: 0 (60,000)" in capsys.readouterr().out


def write_images(folder: Path) -> None:
    for index in range(24):
        (folder / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[index % 2] / f"{index}.png")


SERIES = np.stack([np.sin(np.arange(900) / 5) * 40, np.cos(np.arange(900) / 9) / 100], axis=1)


@pytest.mark.parametrize(
    ("path", "flags", "network", "kind", "shape"),
    [
        ("own.csv", [], "dense", model_pb2.TENSOR_KIND_VECTOR, (2,)),
        ("own.npy", ["--window", "33", "--stride", "4"], "conv1d", model_pb2.TENSOR_KIND_SERIES, (33, 2)),
        ("pictures", [], "convolutional", model_pb2.TENSOR_KIND_IMAGE, (16, 20, 3)),
        # Of a name that a published set has.
        ("digits.npz", [], "dense", model_pb2.TENSOR_KIND_IMAGE, (5, 5)),
    ],
)
def test_its_recipe_trains_reports_and_exports_as_it_stands(
    path: str, flags: list[str], network: str, kind: int, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    match path:
        case "own.csv":
            write_table(Path(path))
        case "own.npy":
            np.save(path, SERIES)
        case "pictures":
            write_images(Path(path))
        case "digits.npz":
            np.savez(path, rows=np.random.default_rng(0).random((40, 5, 5)))
    assert main(["inspect", path, *flags, "--write", "mine.toml"]) == 0
    assert recipes.load("mine.toml").network.kind == network
    assert main(["train", "mine.toml", "--epochs", "2"]) == 0, capsys.readouterr().err
    if network == "conv1d":
        assert main(["report", "mine.toml"]) == 0
    assert main(["export", "mine.toml"]) == 0
    capsys.readouterr()

    run = Run.newest(Path("runs"), "mine")
    dataset = load_dataset(run.recipe(), None)
    (folder,) = packages.find(Path("models"))
    package = packages.read(folder)
    assert (package.manifest.input.kind, package.input_shape) == (kind, shape)
    assert (package.row_scale is None) == (kind == model_pb2.TENSOR_KIND_IMAGE)
    assert list(package.manifest.input.columns) == (["speed", "vibration"] if path == "own.csv" else [])
    assert package.manifest.recipe["data"]["path"] == path  # type: ignore[index]
    assert "are test rows of that data" in (folder / "README.md").read_text(encoding="utf-8")
    if path == "own.csv":
        assert "linear_probe_accuracy" in {metric.name for metric in package.manifest.metrics}
    # The graphs take raw rows, and their errors in units of the scale are those that the quantiles are of.
    raw = dataset.raw(dataset.validation_rows).contiguous().numpy()
    again = run_graph(package.decoder, run_graph(package.encoder, raw))
    errors = np.square((again - raw) / (1 if package.row_scale is None else package.row_scale)).reshape(len(raw), -1)
    quantiles = package.manifest.reconstruction_error_quantiles
    assert errors.mean(1).max() == pytest.approx(quantiles[-1], rel=1e-2)
    assert errors.mean(1).min() == pytest.approx(quantiles[0], rel=1e-2)


def test_what_is_there_is_not_overwritten_and_a_name_that_is_no_recipe_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save("own.npy", SERIES)
    Path("mine.toml").write_text("mine", encoding="utf-8")
    assert main(["inspect", "own.npy", "--write", "mine.toml"]) == 1
    assert "--write: mine.toml is there already" in capsys.readouterr().err
    assert Path("mine.toml").read_text(encoding="utf-8") == "mine"
    assert main(["inspect", "own.npy", "--write", "My_Recipe.toml"]) == 1
    assert "--write: must be the recipe's name" in capsys.readouterr().err
    np.save("one.npy", SERIES[:1])
    assert main(["inspect", "one.npy", "--write", "one.toml"]) == 1
    assert "one.npy: must have at least 10 rows to train on; got 1" in capsys.readouterr().err
    assert main(["inspect", "own.npy", "--window", "600", "--write", "one.toml"]) == 1
    assert "own.npy: of its 900 steps" in capsys.readouterr().err
    assert not Path("one.toml").exists()
    assert main(["inspect", "own.npy", "--stride", "2"]) == 1
    assert "data.stride: belongs to windows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "name"),
    [("Pump 7.csv", "pump-7"), ("7.csv", "data-7"), ("a/b.c.npz", "b-c"), ("Ä.npy", "data"), ("x" * 40, "x" * 21)],
)
def test_a_data_set_is_named_after_its_file(path: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert inspection.name_for(str(file)) == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "undercomplete", "--data", "own.npy"],
            "network.output_activation: 'sigmoid' needs values from 0 to",
        ),
        (["train", "conv", "--data", "own.npy"], "network.kind: 'convolutional' is for images"),
        (["train", "undercomplete", "--data", "gone.npy"], "no file or folder 'gone.npy'"),
        (["train", "undercomplete", "--data", "emnist"], "no file or folder 'emnist'; give one, or mnist"),
        (["train", "linear", "--data", "digits", "--set", "data.window=4"], "data.window: belongs to one's own data"),
        (["train", "stacked", "--data", "small.npy"], "procedure.finetuning: needs labels of at least two classes"),
        (
            ["train", "linear", "--data", "own.npy", "--set", "corruption={kind='gaussian', level=0.1}"],
            "corruption.kind: 'gaussian' needs values from 0 to 1",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_its_data_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("own.npy", SERIES)
    np.save("small.npy", np.random.default_rng(0).random((40, 8, 8)))
    assert main(arguments) == 1
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()
