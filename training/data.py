"""Data sets as tensors, and those that come by name: MNIST, Fashion-MNIST from IDX files, scikit-learn's digits.

Shape legend: B rows, D... the dimensions of a row (H, W for the sets that come by name). Rows are float32, of images in
0..1; labels are int64 class numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.errors import DataError

DATA_VARIABLE = "HOURGLASS_DATA"
CACHE = Path(".data")

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"

Kind = Literal["image", "vector", "series"]

_UNSIGNED_BYTES = 0x08
_FINGERPRINT_ROWS = 4096
_DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is published, and the MD5 of each file."""

    url: str
    md5: dict[str, str]


SOURCES = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            TRAIN_IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            TRAIN_LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
            TEST_IMAGES: "9fb629c4189551a2d022fa330f9573f3",
            TEST_LABELS: "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            TRAIN_IMAGES: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            TRAIN_LABELS: "25c81989df183df01b3e8a0aad5dffbe",
            TEST_IMAGES: "bef4ecab320f06d8554ea6380940ec79",
            TEST_LABELS: "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Raw rows [B, D...] are standardised element by element: (row - shift) / scale, both [D...], scale above 0."""

    shift: Tensor
    scale: Tensor

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows - self.shift) / self.scale

    def undo(self, rows: Tensor) -> Tensor:
        return rows * self.scale + self.shift


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows [B, D...] and labels [B] to train on, to choose by, and to judge by.

    Labels are empty where there are none. Where there is a `scaling` the rows have been through it; `minimum` and
    `maximum` are those of the raw training rows. The training rows may lie in a mapped file.
    """

    name: str
    train_rows: Tensor
    train_labels: Tensor
    validation_rows: Tensor
    validation_labels: Tensor
    test_rows: Tensor
    test_labels: Tensor
    kind: Kind = "image"
    minimum: float = 0.0
    maximum: float = 1.0
    scaling: Scaling | None = None
    columns: tuple[str, ...] = ()
    # Training rows are in the order of the file or of time, not shuffled.
    in_order: bool = False

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(self.train_rows.shape[1:])

    @property
    def class_count(self) -> int:
        """One more than the largest class; 0 without labels."""
        return int(self.train_labels.max()) + 1 if len(self.train_labels) else 0

    @property
    def has_classes(self) -> bool:
        """Whether there are labels of at least two classes to tell apart."""
        return len(self.train_labels) > 0 and bool((self.train_labels != self.train_labels[0]).any())

    def sample(self, most: int) -> tuple[Tensor, Tensor]:
        """At most so many training rows, with their labels: the first ones, or evenly spread ones of rows in order."""
        step = -(-len(self.train_rows) // most) if self.in_order else 1
        return self.train_rows[::step][:most], self.train_labels[::step][:most]

    def raw(self, rows: Tensor) -> Tensor:
        """Rows as they were before they were standardised, and as clients send them."""
        return self.scaling.undo(rows) if self.scaling else rows

    def to(self, device: torch.device) -> Dataset:
        """The same data set with the rows to train on and to choose by on that device; those to judge by stay."""
        names = ("train_rows", "train_labels", "validation_rows", "validation_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def fingerprint(self) -> str:
        """SHA-256 over the training rows."""
        digest = hashlib.sha256()
        for chunk in torch.split(self.train_rows, _FINGERPRINT_ROWS):
            digest.update(chunk.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load(name: str, *, folder: Path | None, validation_share: float, seed: int) -> Dataset:
    """A data set with its validation rows drawn from the training rows by `seed`.

    IDX files are looked for in `folder`, else in $HOURGLASS_DATA, else they are downloaded into `.data/`.
    Raises DataError where they cannot be found or are not what they should be.
    """
    if name == "digits":
        train, train_labels, test, test_labels = _digits()
    elif name in SOURCES:
        train, train_labels, test, test_labels = _idx_set(name, folder)
    else:
        raise DataError(f"data: must be digits, {' or '.join(SOURCES)}; got {name!r}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(len(train) * validation_share))
    validation, kept = order[:held_out], order[held_out:]
    return Dataset(
        name=name,
        train_rows=train[kept],
        train_labels=train_labels[kept],
        validation_rows=train[validation],
        validation_labels=train_labels[validation],
        test_rows=test,
        test_labels=test_labels,
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The unsigned bytes of an IDX file, gzipped or not. Raises DataError that names the file and the rule."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, or is a broken gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES or content[3] == 0:
        raise DataError(
            f"{path}: is not an IDX file of unsigned bytes: it must begin with 00 00 08 and the number of dimensions; "
            f"got {content[:4].hex(' ') or 'nothing'}"
        )
    header_bytes = 4 + 4 * content[3]
    if len(content) < header_bytes:
        raise DataError(f"{path}: ends in the middle of its header")
    shape = struct.unpack(f">{content[3]}I", content[4:header_bytes])
    if len(content) - header_bytes != math.prod(shape):
        raise DataError(
            f"{path}: {math.prod(shape)} bytes must follow the header of shape {list(shape)}; "
            f"got {len(content) - header_bytes}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _idx_set(name: str, folder: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    where = _find_folder(name, folder)
    train, train_labels = _idx_pair(where, TRAIN_IMAGES, TRAIN_LABELS)
    test, test_labels = _idx_pair(where, TEST_IMAGES, TEST_LABELS)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{where}: training and test images differ: {train.shape[1:]} and {test.shape[1:]}")
    return train, train_labels, test, test_labels


def _idx_pair(where: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(_either(where, images_name)), read_idx(_either(where, labels_name))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(images) < 2:
        raise DataError(
            f"{where}: {images_name} must be [rows, height, width] and {labels_name} [rows], two rows or more; "
            f"got {list(images.shape)} and {list(labels.shape)}"
        )
    rows = torch.from_numpy(images.astype(np.float32)).div_(255)
    return rows, torch.from_numpy(labels.astype(np.int64))


def _either(where: Path, name: str) -> Path:
    plain = where / name.removesuffix(".gz")
    return plain if plain.exists() and not (where / name).exists() else where / name


def _find_folder(name: str, folder: Path | None) -> Path:
    chosen = folder or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if chosen is None:
        return _download(name)
    for candidate in (chosen / name, chosen):
        if _either(candidate, TRAIN_IMAGES).exists():
            return candidate
    raise DataError(
        f"no {name} in {chosen}: neither {name}/{TRAIN_IMAGES} nor {TRAIN_IMAGES} is there "
        f"(the folder comes from --data-dir or ${DATA_VARIABLE})"
    )


def _download(name: str) -> Path:
    import pooch

    source = SOURCES[name]
    where = CACHE / name
    pooch.get_logger().setLevel("WARNING")
    for file, md5 in source.md5.items():
        try:
            pooch.retrieve(source.url + file, known_hash=f"md5:{md5}", fname=file, path=where)
        except (OSError, ValueError) as error:  # no network; a file that is not the published one
            raise DataError(
                f"{name} is not on this machine and could not be downloaded ({type(error).__name__}: {error}). Give a "
                f"folder of its IDX files with --data-dir or ${DATA_VARIABLE}, or use --data digits, which needs none"
            ) from error
    return where


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=_DIGITS_TEST_SHARE, random_state=0, stratify=digits.target
    )
    return tuple(torch.from_numpy(array) for array in (train, train_labels, test, test_labels))  # type: ignore[return-value]
