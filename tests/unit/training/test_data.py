"""Data files are read exactly, and refused with a reason where they are not what they should be."""

from __future__ import annotations

import gzip
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import data
from training.data import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, Dataset
from training.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_set(folder: Path, *, zipped: bool = True) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for name, array in (
        (TRAIN_IMAGES, images),
        (TRAIN_LABELS, labels),
        (TEST_IMAGES, images[:10]),
        (TEST_LABELS, labels[:10]),
    ):
        if zipped:
            (folder / name).write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (folder / name.removesuffix(".gz")).write_bytes(idx(array))
    return images


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["mnist", "."])
def test_idx_files_become_tensors(tmp_path: Path, inside: str, zipped: bool) -> None:
    images = write_set(tmp_path / inside, zipped=zipped)
    got = data.load("mnist", folder=tmp_path, validation_share=0.25, seed=3)
    assert got.row_shape == (6, 5)
    assert (len(got.train_rows), len(got.validation_rows), len(got.test_rows)) == (15, 5, 10)
    assert torch.equal(got.test_rows, torch.from_numpy(images[:10].astype(np.float32)) / 255)
    both = torch.cat([got.train_rows, got.validation_rows]).flatten(1)
    labels = torch.cat([got.train_labels, got.validation_labels])
    wanted = torch.from_numpy(images.astype(np.float32)).flatten(1) / 255
    for row, label in zip(both, labels, strict=True):  # every row once, with its own label
        assert (wanted == row).all(1).nonzero().flatten().tolist() in ([int(label)], [int(label) + 10])


def test_the_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "fashion-mnist")
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    assert len(data.load("fashion-mnist", folder=None, validation_share=0.1, seed=0).train_rows) == 18
    with pytest.raises(DataError, match=r"no mnist in .*--data-dir or \$HOURGLASS_DATA"):
        data.load("mnist", folder=None, validation_share=0.1, seed=0)


GOOD = idx(np.zeros((2, 3, 3)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begin with 00 00 08.*nothing"),
        (b"\x00\x00", "begin with 00 00 08"),
        (b"PNG." + GOOD[4:], "begin with 00 00 08.*50 4e 47 2e"),
        (b"\x00\x00\x0d" + GOOD[3:], "unsigned bytes"),
        (b"\x00\x00\x08\x00", "number of dimensions"),
        (GOOD[:10], "middle of its header"),
        (GOOD[:-1], r"18 bytes must follow the header of shape \[2, 3, 3\]; got 17"),
        (GOOD + b"\x00", "18 bytes must follow.*got 19"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xff", "4294967295 bytes must follow.*got 0"),
        (gzip.compress(GOOD, mtime=0)[:-10], "broken gzip"),
        (gzip.compress(GOOD[:-1], mtime=0), "18 bytes must follow"),
    ],
)
def test_a_bad_idx_file_is_refused_with_its_name_and_the_rule(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)bad-idx3-ubyte.gz: .*{words}"):
        data.read_idx(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_random_bytes_raise_only_our_own_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    for candidate in (content, b"\x1f\x8b" + content, b"\0\0\x08" + content):
        path.write_bytes(candidate)
        try:
            array = data.read_idx(path)
        except DataError:
            continue
        assert array.dtype == np.uint8


def test_images_and_labels_must_fit(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / TRAIN_LABELS).write_bytes(idx(np.zeros(19)))
    with pytest.raises(DataError, match=r"got \[20, 6, 5\] and \[19\]"):
        data.load("mnist", folder=tmp_path, validation_share=0.1, seed=0)


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(DataError, match=r"could not be downloaded.*--data-dir.*--data digits"):
        data.load("mnist", folder=None, validation_share=0.1, seed=0)


def test_the_digits_are_built_in(digits: Dataset) -> None:
    assert digits.row_shape == (8, 8)
    assert len(digits.train_rows) + len(digits.validation_rows) + len(digits.test_rows) == 1797
    for rows in (digits.train_rows, digits.validation_rows, digits.test_rows):
        assert rows.dtype == torch.float32
        assert (rows.min().item(), rows.max().item()) == (0, 1)
    assert digits.class_count == 10


def test_the_seed_moves_the_validation_rows_and_never_the_test_rows(digits: Dataset) -> None:
    same = data.load("digits", folder=None, validation_share=0.1, seed=0)
    other = data.load("digits", folder=None, validation_share=0.1, seed=1)
    assert same.fingerprint() == digits.fingerprint() != other.fingerprint()
    assert torch.equal(other.test_rows, digits.test_rows)
