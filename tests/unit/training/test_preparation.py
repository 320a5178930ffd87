"""One's own data become the rows that a model trains on, by the stated rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training import preparation, recipes, splits, storage
from training.data import Dataset
from training.errors import DataError

ROWS = 200


def settings(path: Path, **changes: Any) -> recipes.Data:
    return recipes.check_data({"name": "own", "path": str(path), **changes}, where="test")


def load(path: Path, *, seed: int = 0, **changes: Any) -> Dataset:
    return preparation.load(settings(path, **changes), seed=seed)


def parts(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return dataset.train_rows, dataset.validation_rows, dataset.test_rows


@pytest.fixture
def table() -> np.ndarray:
    """Columns of very different units, every row different."""
    random = np.random.default_rng(5)
    columns = random.normal(size=(ROWS, 3)) * [300, 0.01, 1] + [1500, 0, -4]
    return columns.astype(np.float32)


@pytest.fixture
def csv(tmp_path: Path, table: np.ndarray) -> Path:
    lines = [f"{a},{b},{c},{'high' if a > 1500 else 'low'}" for a, b, c in table.tolist()]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["speed,vibration,level,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy"])
def test_every_row_is_in_one_part_standardised_by_the_training_rows(
    suffix: str, large: bool, csv: Path, table: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    if large:
        monkeypatch.setattr(storage, "LARGE_BYTES", 1000)
        monkeypatch.setattr(storage, "CHUNK_ELEMENTS", 100)
    path = csv.with_suffix(suffix)
    match suffix:
        case ".tsv":
            path.write_text(csv.read_text(encoding="utf-8").replace(",", "\t"), encoding="utf-8")
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.csv.read_csv(csv), path)
        case ".npy":
            np.save(path, table)
    before = path.read_bytes()
    got = load(path)
    assert [len(part) for part in parts(got)] == [162, 18, 20]
    assert (got.kind, got.row_shape, got.in_order) == ("vector", (3,), large)
    every = got.raw(torch.cat(parts(got))).numpy()
    order, wanted = np.argsort(every[:, 2]), np.argsort(table[:, 2])
    np.testing.assert_allclose(every[order], table[wanted], rtol=1e-4, atol=1e-6)
    assert torch.allclose(got.train_rows.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(got.train_rows.std(0, correction=0), torch.ones(3), atol=1e-3)
    assert got.minimum == pytest.approx(got.raw(got.train_rows).min().item(), rel=1e-5)
    if suffix != ".npy":
        assert got.columns == ("speed", "vibration", "level")
        labels = torch.cat([got.train_labels, got.validation_labels, got.test_labels])
        assert torch.equal(labels == 0, torch.from_numpy(every[:, 0] > 1500))  # high comes before low
    assert path.read_bytes() == before
    assert not list((tmp_path / ".data").glob("*"))  # what is mapped has no name


def test_rows_held_out_of_a_large_file_are_drawn_from_all_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LARGE_BYTES", 100)
    np.save(tmp_path / "own.npy", np.arange(1000, dtype=np.float32).reshape(500, 2))
    got = load(tmp_path / "own.npy", standardise=False)
    for part in (got.validation_rows, got.test_rows):
        assert float(part[:, 0].min()) < 200
        assert 400 < float(part[:, 0].mean()) < 600
    assert float((got.train_rows[:, 0].diff() == 2).float().mean()) > 0.6  # the others lie as they did


def test_the_seed_moves_validation_rows_and_never_test_rows(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(csv.parent)
    first, same, other = load(csv), load(csv), load(csv, seed=1)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
    assert torch.allclose(first.raw(first.test_rows), other.raw(other.test_rows), rtol=1e-4, atol=1e-5)


def test_rows_with_a_missing_value_are_left_out(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(csv.parent)
    lines = csv.read_text(encoding="utf-8").splitlines()
    for number, hole in ((3, ""), (70, "NA"), (71, "nan"), (200, "null")):
        cells = lines[number].split(",")
        cells[number % 3] = hole
        lines[number] = ",".join(cells)
    csv.write_text("\n".join(lines), encoding="utf-8")
    got = load(csv)
    assert sum(map(len, parts(got))) == ROWS - 4
    assert all(bool(torch.isfinite(part).all()) for part in parts(got))
    assert preparation.read(settings(csv)).incomplete_rows == 4


def test_only_the_named_columns_in_the_named_order_are_taken(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(csv.parent)
    got = load(csv, columns=["level", "speed"], standardise=False)
    assert (got.columns, got.row_shape, got.scaling) == (("level", "speed"), (2,), None)
    assert float(got.train_rows[:, 0].max()) < 100 < float(got.train_rows[:, 1].min())


def test_a_constant_column_is_only_centred(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[:, 1] = 7
    np.save(tmp_path / "rows.npy", rows)
    got = load(tmp_path / "rows.npy")
    assert got.scaling is not None
    assert got.scaling.scale[1] == 1
    assert bool((got.train_rows[:, 1] == 0).all())


def test_statistics_equal_numpys_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).normal(size=(101, 4, 3)) * [1, 1e3, 1e-3] + [1e6, 0, 5]
    monkeypatch.setattr(storage, "CHUNK_ELEMENTS", 50)
    got = preparation.statistics(rows)
    np.testing.assert_allclose(got.mean, rows.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(got.deviation, rows.std((0, 1)), rtol=1e-9)
    assert np.array_equal(got.maximum, rows.max((0, 1)))


def test_npz_may_name_labels_and_test_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 6), dtype=np.uint8)
    labels = np.array(["10", "9", "cat"] * 20)
    np.savez(tmp_path / "own.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    got = load(tmp_path / "own.npz")
    assert (got.kind, got.row_shape, got.class_count, got.scaling) == ("image", (8, 6), 3, None)
    assert (len(got.train_rows), len(got.validation_rows)) == (36, 4)
    assert torch.equal(got.test_rows, torch.from_numpy(images[40:]) / 255)
    assert got.test_labels[:3].tolist() == [0, 2, 1]  # 9, 10, cat: numbers by value
    assert (got.minimum, got.maximum) == (0, 1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_of_images_is_rows_with_its_subfolders_as_classes(
    colour: bool, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if large:
        monkeypatch.setattr(storage, "LARGE_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 5, 7, 3) if colour else (24, 5, 7), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        folder = tmp_path / "set" / ("cats" if index % 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index:02}.png")
    got = load(tmp_path / "set")
    assert (got.kind, got.row_shape) == ("image", (5, 7, 3) if colour else (5, 7))
    every, labels = torch.cat(parts(got)), torch.cat([got.train_labels, got.validation_labels, got.test_labels])
    wanted = torch.from_numpy(pixels.astype(np.float32)) / 255
    for row, label in zip(every, labels, strict=True):
        (index,) = (wanted == row).flatten(1).all(1).nonzero().flatten().tolist()
        assert label == (0 if index % 3 else 1)


def test_images_without_subfolders_have_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for index in range(12):
        Image.new("L", (4, 4), index).save(tmp_path / "set" / f"{index}.png")
    got = load(tmp_path / "set")
    assert (len(got.train_labels), got.class_count, got.has_classes) == (0, 0, False)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
def test_windows_are_cut_in_order_of_time_and_never_shared_between_parts(
    stride: int, holes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [[str(step), str(-2 * step)] for step in range(400)]
    if holes:
        for step in (100, 205, 206):
            steps[step][step % 2] = ""
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["a,b", *map(",".join, steps)]), encoding="utf-8")
    got = load(path, window=10, stride=stride)
    assert (got.kind, got.row_shape, got.columns) == ("series", (10, 2), ("a", "b"))
    seen: list[set[int]] = []
    for part in parts(got):
        raw = got.raw(part).round().int()
        first = raw[:, :1, 0]
        assert torch.equal(raw[:, :, 0], first + torch.arange(10))
        assert torch.equal(raw[:, :, 1], -2 * raw[:, :, 0])
        seen.append(set(raw[:, :, 0].flatten().tolist()))
    assert max(seen[0]) < min(seen[1]) <= max(seen[1]) < min(seen[2])
    starts = list(range(0, 324 - 9, stride))
    if holes:
        starts = [start for start in starts if not {100, 205, 206} & set(range(start, start + 10))]
    assert got.raw(got.train_rows)[:, 0, 0].round().int().tolist() == starts


def test_windows_of_one_column_share_the_memory_of_the_series(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.sin(np.arange(5000)))
    got = load(tmp_path / "own.npy", window=100, stride=1)
    assert got.row_shape == (100, 1)
    assert got.train_rows.untyped_storage().nbytes() == 5000 * 4
    assert torch.equal(got.train_rows[7], got.train_rows[0:8][7].clone())


def test_of_many_windows_ten_thousand_at_most_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "HELD_OUT_ROWS", 20)
    np.save(tmp_path / "own.npy", np.sin(np.arange(2000)))
    got = load(tmp_path / "own.npy", window=10)
    assert len(got.validation_rows) <= 20
    assert len(got.test_rows) <= 20
    assert len(got.train_rows) == 2000 - 200 - 180 - 9


@pytest.mark.parametrize(
    ("array", "changes", "kind"),
    [
        (np.random.default_rng(0).random((20, 4, 4)), {}, "image"),
        (np.random.default_rng(0).normal(size=(20, 4, 4)), {}, "series"),
        (np.random.default_rng(0).random((20, 4, 4)), {"kind": "series"}, "series"),
        (np.random.default_rng(0).random((20, 4)), {"kind": "series"}, "series"),
        (np.random.default_rng(0).random((20, 4, 4, 3)), {}, "image"),
        (np.random.default_rng(0).random((20, 4)), {}, "vector"),
    ],
)
def test_the_kind_follows_from_shape_and_range_or_is_named(
    array: np.ndarray, changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "own.npy", array)
    assert load(tmp_path / "own.npy", **changes).kind == kind


@pytest.mark.parametrize(
    ("array", "changes", "words"),
    [
        (np.zeros((1, 4)), {}, r"own.npy: must have at least 10 rows to train on; got 1"),
        (np.zeros(50), {}, r"own.npy: is one list of 50 numbers: give data.window"),
        (np.zeros((50, 2)), {"window": 40}, r"own.npy: of its 50 steps, the .* have .* windows of 40"),
        (np.full((20, 4, 4), 200, np.int64), {}, r"own.npy: pixels must be uint8, or floats from 0 to 1; got int64"),
        (np.ones((20, 4, 4, 2)), {}, r"own.npy: rows of shape \[4, 4, 2\] .* are neither"),
        (
            np.ones((20, 4)),
            {"kind": "image"},
            r"data.kind: rows of shape \[4\] .* can be series or vector; got 'image'",
        ),
        (np.zeros((20, 4, 4)), {"standardise": True}, r"own.npy: data.standardise: images"),
        (np.zeros((20, 4)), {"columns": ["a"]}, r"data.columns and data.label belong to tables"),
        (
            np.stack([np.arange(20.0), 1.7e9 + np.arange(20) / 10], axis=1),
            {},
            r"own.npy: column 1 varies by 0.5\d* around 1700000000.\d*, which single precision cannot hold",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_with_the_rule(
    array: np.ndarray, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "own.npy", **changes)


def test_a_path_that_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder '.*gone.csv'; give one, or mnist"):
        load(tmp_path / "gone.csv")
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"rows.xlsx: must be a folder of images or end in .npy .npz .csv"):
        load(tmp_path / "rows.xlsx")
