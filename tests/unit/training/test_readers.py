"""A file that is not what it should be is refused with its name, and the row, line or column; nothing is unpickled."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from training import arrays, images, tables
from training.errors import DataError


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def read_table(path: Path, columns: tuple[str, ...] | None = None, label: str | None = None) -> Any:
    return tables.read_table(path, columns, label, keep_incomplete=False)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_objects_are_never_unpickled(suffix: str, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    content = npy(np.array([Trap(trap), 1], dtype=object))
    path = tmp_path / f"own{suffix}"
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.npy", content)
        with pytest.raises(DataError, match=r"own.npz: is not a .npz of arrays of numbers"):
            arrays.read_npz(path)
    else:
        for bad in (content, pickle.dumps(Trap(trap))):
            path.write_bytes(bad)
            with pytest.raises(DataError, match=r"own.npy: is not a .npy file of numbers"):
                arrays.read_npy(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a .npy file"),
        (b"a,b\n1,2\n", "is not a .npy file"),
        (npy(np.zeros((4, 3)))[:-8], "is not a .npy file"),
        (npy(np.array(["a", "b"])), "must hold numbers; got <U1"),
        (npy(np.zeros((4, 3), complex)), "must hold numbers; got complex128"),
        (npy(np.zeros((0, 3))), r"at least one element; got \[0, 3\]"),
        (npy(np.array(3.0)), r"must be \[rows, ...\].*got \[\]"),
        (npy(np.array([[1, 2], [3, np.nan]])), "row 1 holds nan"),
        (npy(np.array([[1, 2], [3, 4], [-np.inf, 4]], np.float16)), "row 2 holds -inf"),
        (npy(np.array([[1, 2], [3, -1e39]])), "row 1 holds -1e\\+39; every value .* of single precision"),
    ],
)
def test_a_bad_npy_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.npy").write_bytes(content)
    with pytest.raises(DataError, match=rf"own.npy: .*{words}"):
        arrays.read_npy(tmp_path / "own.npy")


def test_the_row_with_nan_is_found_in_any_chunk(tmp_path: Path) -> None:
    rows = np.zeros((3000, 1000), np.float32)
    rows[2500, 3] = np.nan
    np.save(tmp_path / "own.npy", rows)
    with pytest.raises(DataError, match="row 2500 holds nan"):
        arrays.read_npy(tmp_path / "own.npy")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "own.npz", rows=np.zeros((1 << 20, 2), np.uint8))
    assert (tmp_path / "own.npz").stat().st_size < 5000
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(DataError, match=r"own.npz: unpacks to 20\d{5} bytes, more than 1048576; save .* as .npy"):
        arrays.read_npz(tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": np.zeros((4, 2)), "b": np.zeros(4)}, "one of its arrays must be called rows or .*; got a, b"),
        ({"rows": np.zeros((4, 2)), "labels": np.zeros(3, int)}, r"labels must be 4 whole numbers .* got \[3\]"),
        ({"rows": np.zeros((4, 2)), "labels": np.zeros(4)}, "labels must be 4 whole numbers .* float64"),
        ({"x_train": np.zeros((4, 2)), "x_test": np.zeros((4, 3))}, "x_test must have the rows' shape and type"),
        ({"x_train": np.zeros((4, 2)), "x_test": np.full((4, 2), np.nan)}, "x_test: row 0 holds nan"),
        (
            {"x_train": np.zeros((4, 2)), "y_train": np.arange(4), "x_test": np.zeros((4, 2))},
            "the test labels must be of the training labels' classes, 0, 1, 2, 3; got none",
        ),
        (
            {
                "rows": np.zeros((2, 2)),
                "y": np.arange(2),
                "test_rows": np.zeros((2, 2)),
                "test_labels": np.array([1, 7]),
            },
            "the test labels must be of the training labels' classes, 0, 1; got 7",
        ),
    ],
)
def test_a_bad_npz_is_refused(content: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"own.npz: {words}"):
        arrays.read_npz(tmp_path / "own.npz")


def test_test_rows_need_not_have_every_class(tmp_path: Path) -> None:
    rows, few = np.zeros((3, 2)), np.zeros((2, 2))
    np.savez(tmp_path / "own.npz", rows=rows, labels=["a", "b", "c"], test_rows=few, test_labels=["c", "a"])
    found = arrays.read_npz(tmp_path / "own.npz")
    assert found.test is not None
    assert found.test.labels is not None
    assert found.test.labels.tolist() == [2, 0]


LONG = "a,b\n" + "1,2\n" * 400_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"a,b\n", "has no row"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b"1,2\n3,4\n", "the first line must name the columns; got 1, 2"),
        (b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ((LONG + "3\n").encode(), "line 400002: Expected 2 columns, got 1"),
        (b"a,site\n1,oslo\n2,rome\n", "column 'site' holds string, such as 'oslo', and not numbers; .*data.columns"),
        (b"time,a\n2026-01-01T00:00:00,1\n", "column 'time' holds timestamp.*such as '2026-01-01 00:00:00'"),
        ((LONG + "1,oslo\n").encode(), "line 400002: column 'b' holds 'oslo', which is not a number"),
        (b"a,b\n1,2\n3,inf\n", "row 2 under the header: column 'b' holds inf"),
        (b"a,b\n1,2\n3,1e300\n", "row 2 under the header: column 'b' holds 1e\\+300"),
        (b"a,b\n,2\n,3\n", "has no row in which every column has a value; column 'a' lacks the most values"),
        ("a,naïve\n1,2\n".encode("latin-1"), "the names of its columns are not UTF-8"),
        ("a,b\n1,2\n3,4\n".encode("utf-16"), "is UTF-16, and must be UTF-8; `iconv"),
        (b"PAR1\x00\x01\n", ""),
    ],
)
def test_a_bad_csv_is_refused_with_its_line_or_column(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"own.csv: .*{words}"):
        read_table(tmp_path / "own.csv")


def test_a_bad_parquet_and_unknown_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"own.parquet: cannot be read"):
        read_table(tmp_path / "own.parquet")
    (tmp_path / "own.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"own.csv: has no column 'c'; it has a, b"):
        read_table(tmp_path / "own.csv", ("a", "c"))
    with pytest.raises(DataError, match=r"own.csv: data.columns names 'a' twice"):
        read_table(tmp_path / "own.csv", ("a", "b", "a"))
    with pytest.raises(DataError, match=r"column 'a' is the label and cannot be one of data.columns too"):
        read_table(tmp_path / "own.csv", ("a",), "a")


def test_rows_are_kept_however_many_lack_a_value(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("a,b\n1,2\n3,\n,5\n6,7\n", encoding="utf-8")
    found = read_table(tmp_path / "own.csv")
    assert found.rows.tolist() == [[1, 2], [6, 7]]
    assert found.incomplete_rows == 2


def test_a_row_without_a_label_is_left_out_and_labels_are_any_text(tmp_path: Path) -> None:
    lines = ["1,x"] * 300_000 + ["2,", "3,NA", "4,1", "5,odd"]
    (tmp_path / "own.csv").write_text("\n".join(["a,label", *lines]), encoding="utf-8")
    found = read_table(tmp_path / "own.csv")
    assert (found.classes, found.incomplete_rows) == (("1", "odd", "x"), 2)
    # What the first block holds does not decide what a label may be.
    (tmp_path / "own.csv").write_text("\n".join(["a,label", *["1,7"] * 300_000, "5,odd"]), encoding="utf-8")
    assert read_table(tmp_path / "own.csv").classes == ("7", "odd")
    table = pyarrow.table({"a": [1.0, 2.0, 3.0], "label": pyarrow.array([1.0, math.nan, 2.0], from_pandas=False)})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    assert read_table(tmp_path / "own.parquet").rows.tolist() == [[1], [3]]


def test_an_empty_line_of_one_column_is_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("a\n1\n\n3\n", encoding="utf-8")
    found = tables.read_table(tmp_path / "own.csv", None, None, keep_incomplete=True)
    assert np.isnan(found.rows[:, 0]).tolist() == [False, True, False]
    # Of several columns it is no row at all.
    (tmp_path / "own.csv").write_text("a,b\n1,2\n\n3,4\n\n", encoding="utf-8")
    assert read_table(tmp_path / "own.csv").rows.tolist() == [[1, 2], [3, 4]]


def test_whole_numbers_of_any_size_are_taken(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [2**60 + 1, 2**62], "b": pyarrow.array([2**64 - 1, 0], pyarrow.uint64())})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    assert read_table(tmp_path / "own.parquet").rows.tolist() == [[2.0**60, 2.0**64], [2.0**62, 0]]


def test_a_column_of_many_values_is_no_label(tmp_path: Path) -> None:
    lines = "\n".join(f"{index},{index * 0.1}" for index in range(300))
    (tmp_path / "own.csv").write_text(f"a,label\n{lines}", encoding="utf-8")
    with pytest.raises(DataError, match="column 'label' has 300 different values in 300 rows"):
        read_table(tmp_path / "own.csv")


def test_numbers_of_every_kind_are_taken_with_the_delimiter_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("n;x;yes;empty\n" + "1;0.5;true;\n" * 2 + "2;1e3;false;4\n", encoding="utf-8")
    found = read_table(tmp_path / "own.csv", ("n", "x", "yes"))
    assert found.rows.tolist() == [[1, 0.5, 1], [1, 0.5, 1], [2, 1000, 0]]
    assert read_table(tmp_path / "own.csv").rows.tolist() == [[2, 1000, 0, 4]]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a;b\n1,5;-2e3\n2;0,25\n", [[1.5, -2000.0], [2.0, 0.25]]),
        ('a\tb\n"1,5"\t3\n2\t4,5E-1\n', [[1.5, 3.0], [2.0, 0.45]]),
        ("a;b;day\n1.5;2;01.02.2026\n2;4,x;02.02.2026\n", [[1.5], [2.0]]),
        ("a;b\n1.5;2\n2;3,5\n", [[1.5], [2.0]]),
    ],
)
def test_decimal_commas_where_no_comma_separates_and_no_number_has_a_point(
    tmp_path: Path, text: str, values: list[list[float]]
) -> None:
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    table = tables.Table(tmp_path / "own.csv")
    numeric = tuple(name for name in table.columns if name in table.numeric)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in table.batches(numeric, None)]), values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: Image.new("L", (5, 4)).save(path), "is 5 x 4 pixels, but .*a.png is 4 x 4"),
        (lambda path: path.write_bytes(b"GIF89a"), "is not an image that can be read"),
        (lambda path: Image.fromarray(np.zeros((4, 4), np.uint16)).save(path), "has pixels of mode I;16"),
        (lambda path: path.write_bytes((path.parent / "a.png").read_bytes()[:-30]), "is a broken image"),
    ],
)
def test_the_image_that_does_not_fit_is_named(change: Any, words: str, tmp_path: Path) -> None:
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "a.png")
    change(tmp_path / "b.png")
    with pytest.raises(DataError, match=rf"b.png: {words}"):
        images.read_folder(tmp_path)


def test_an_image_too_large_to_decode_and_a_folder_without_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"holds no image \(.png"):
        images.read_folder(tmp_path)
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"a.png: "):
        images.read_folder(tmp_path)
