"""PNG files of the command line to rows of models of images and back.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hourglass.files import CommandError, needs_extra, replacing
from hourglass.results import Spec
from hourglass.tensors import Array

# Pillow's modes with eight bits a channel, by the channels that a model takes.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "F")


def require() -> None:
    _pillow()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise CommandError(needs_extra("pillow")) from error
    return Image


def is_picture(spec: Spec) -> bool:
    return spec.kind == "image" and (len(spec.shape) == 2 or (len(spec.shape) == 3 and spec.shape[2] in _MODES))


def read(path: Path, shape: tuple[int, ...], *, resize: bool) -> Array:
    """A picture as uint8 [H, W] or [H, W, C], as `shape` says; colours become grey where the model takes grey."""
    image = _pillow()
    height, width = shape[:2]
    try:
        with image.open(path) as opened:
            if opened.mode.startswith(_DEEP_MODES):
                raise CommandError(f"{path}: must have 8 bits a channel; its mode is {opened.mode}")
            picture = opened.convert(_MODES[shape[2] if len(shape) == 3 else 1])
    except image.UnidentifiedImageError as error:
        raise CommandError(f"{path}: is not a picture") from error
    except image.DecompressionBombError as error:
        raise CommandError(f"{path}: is too large a picture; {error}") from error
    except (OSError, SyntaxError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise CommandError(f"{path}: {error}") from error
    if picture.size != (width, height):
        if not resize:
            raise CommandError(
                f"{path}: the model takes pictures of {width}x{height}; this one is "
                f"{picture.width}x{picture.height}; --resize would scale it"
            )
        picture = picture.resize((width, height), image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8).reshape(shape)


def write(path: Path, row: Array) -> None:
    """A row [H, W] or [H, W, C] of values from 0 to 1 as a PNG file."""
    pixels = np.rint(np.clip(row, 0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    picture = _pillow().fromarray(pixels)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
