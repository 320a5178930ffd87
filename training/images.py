"""Rows from a folder of images: files in subfolders have the subfolder's name as their class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.errors import DataError
from training.found import Found, number_classes

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")

_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "CMYK", "YCbCr")


def read_folder(folder: Path) -> Found:
    """All images as uint8 rows [B, H, W], or [B, H, W, 3] where any has colour; transparency is dropped.

    Raises DataError that names the file where one cannot be read or is not of the first one's size.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{folder}: holds no image ({' '.join(SUFFIXES)})")
    heads = [_head(path) for path in files]
    first = heads[0][0]
    for path, (size, _) in zip(files, heads, strict=True):
        if size != first:
            raise DataError(
                f"{path}: is {size[0]} x {size[1]} pixels, but {files[0]} is {first[0]} x {first[1]}: all images of a "
                "folder must have one size"
            )
    colour = any(mode in _COLOUR for _, mode in heads)
    shape = (first[1], first[0], 3) if colour else (first[1], first[0])
    rows = storage.gather(_pixels(files, "RGB" if colour else "L"), shape, np.uint8)
    parents = [path.relative_to(folder).parts[:-1] for path in files]
    labels, classes = (None, ()) if () in parents else number_classes([parts[0] for parts in parents])
    return Found(path=folder, rows=rows, labels=labels, classes=classes)


def _head(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and the mode, without decoding the pixels."""
    with _open(path) as image:
        if image.mode not in _GREY + _COLOUR:
            raise DataError(f"{path}: has pixels of mode {image.mode}; 8 bits of grey or colour are taken")
        return image.size, image.mode


def _pixels(files: list[Path], mode: str) -> Iterator[npt.NDArray[np.uint8]]:
    for path in files:
        with _open(path) as image:
            try:
                yield np.asarray(image.convert(mode), dtype=np.uint8)[None]
            except Exception as error:  # the decoders raise what they like
                raise DataError(f"{path}: is a broken image: {error}") from error


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: images need Pillow: pip install 'hourglass[data]'") from error
    try:
        image = Image.open(path)
        pixels = image.size[0] * image.size[1]
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise DataError(f"{path}: has {pixels} pixels, more than {Image.MAX_IMAGE_PIXELS}")
        return image
    except DataError:
        raise
    except Exception as error:  # also Pillow's warning of a bomb, where warnings are errors
        raise DataError(f"{path}: is not an image that can be read: {error}") from error
