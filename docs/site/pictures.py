"""The pictures of docs/concepts.md: `python -m docs.site.pictures`.

A real service with the packages in models/ is asked through the client; weights are read from the packages.

Shape legend: N pictures, H height, W width, U units.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from PIL import Image, ImageDraw, ImageFont

from examples.demo import DIGITS, noisy
from examples.local_service import ROOT, service
from hourglass import Client

Rows = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

FOLDER = ROOT / "docs" / "concepts"
SIDE, GAP, MARGIN, LABEL_WIDTH = 42, 3, 6, 150
SHOWN = 10
SCATTER_SIDE = 300

# A colour a class, told apart by people who see red and green alike too (Paul Tol's muted scheme and black).
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000",
)  # fmt: skip


class Pictures:
    """Draws each picture from the answers of one service."""

    def __init__(self, client: Client, models: Path) -> None:
        self._client, self._models = client, models
        with np.load(DIGITS) as file:
            self._all = (file["images"] / np.float32(255)).astype(np.float32)
            self._labels = file["labels"]
        # The second of each class, 0 to 9.
        self._digits = self._all[[int(np.flatnonzero(self._labels == digit)[1]) for digit in range(SHOWN)]]

    def drawings(self) -> dict[str, Callable[[], Image.Image]]:
        """What draws each picture, by the file's name."""
        return {
            "linear": self.linear,
            "undercomplete": lambda: self.beside("mnist-undercomplete", "mnist-pca"),
            "deep": lambda: self.beside("mnist-deep", "mnist-undercomplete", "mnist-pca"),
            "overcomplete": lambda: self.code("mnist-overcomplete"),
            "convolutional": lambda: self.code("mnist-conv"),
            "sparse": lambda: self.drawn_by_units("mnist-sparse", "mnist-undercomplete"),
            "denoising": lambda: self.denoised("mnist-denoising", features=True),
            "denoising_conv": lambda: self.denoised("mnist-denoising-conv"),
            "stacked": lambda: self.classes("mnist-stacked"),
            "contractive": lambda: self.features("mnist-contractive"),
            "interpolation": lambda: self.walks("mnist-deep", "mnist-denoising-conv"),
        }

    def linear(self) -> Image.Image:
        components = self._weights("mnist-pca")[:SHOWN]
        return strips(
            [
                ("original", grey(self._digits)),
                ("mnist-pca", grey(self._reconstructed("mnist-pca"))),
                ("mnist-linear", grey(self._reconstructed("mnist-linear"))),
                ("components of mnist-pca", signed(components)),
                ("units of mnist-linear", signed(self._weights("mnist-linear")[:SHOWN])),
            ]
        )

    def beside(self, *models: str) -> Image.Image:
        """The digits, and what each model keeps of them."""
        return strips(
            [("original", grey(self._digits)), *((model, grey(self._reconstructed(model))) for model in models)]
        )

    def code(self, model: str) -> Image.Image:
        """Reconstructions, and the channels of the code of two digits."""
        lines = [("original", grey(self._digits)), (model, grey(self._reconstructed(model)))]
        for digit in (3, 8):
            channels = self._client.encode(model, self._digits[digit : digit + 1])[0]
            lines.append((f"code of the {digit}", grey(channels / max(float(channels.max()), 1e-6))))
        return strips(lines)

    def features(self, model: str) -> Image.Image:
        """Reconstructions, and what units of the first layer look at."""
        lines = [("original", grey(self._digits)), (model, grey(self._reconstructed(model)))]
        return strips([*lines, *unit_lines(f"units of\n{model}", self._weights(model))])

    def drawn_by_units(self, *models: str) -> Image.Image:
        """Reconstructions by the first model; what units of each put into a picture: the decoder's weights."""
        lines = [("original", grey(self._digits)), (models[0], grey(self._reconstructed(models[0])))]
        for model in models:
            lines += unit_lines(f"drawn by units of\n{model}", self._weights(model, "decoder"))
        return strips(lines)

    def denoised(self, model: str, *, features: bool = False) -> Image.Image:
        spoilt = noisy(self._client.model(model), self._digits)
        clean = self._client.denoise(model, spoilt).rows
        lines = [("original", grey(self._digits)), ("corrupted", grey(spoilt)), (model, grey(clean))]
        return strips([*lines, *(unit_lines(f"units of\n{model}", self._weights(model)) if features else [])])

    def walks(self, *models: str) -> Image.Image:
        """From a 3 to an 8: the pixels cross-faded, then through the latents of each model, by a line and by an arc."""
        start, end = self._digits[3:4], self._digits[8:9]
        weights = np.linspace(0, 1, SHOWN, dtype=np.float32)[:, None, None]
        lines = [("pixels, cross-faded", grey((1 - weights) * start + weights * end))]
        for model in models:
            for method in ("linear", "spherical"):
                walk = self._client.interpolate(model, start, end, steps=SHOWN, method=method)
                lines.append((f"{model}\n{method}", grey(walk.rows[0])))
        return strips(lines)

    def classes(self, model: str) -> Image.Image:
        """The pixels and the latents of all digits on their two principal axes, each drawn as its label."""
        panels = {
            "pixels, two principal axes": self._all,
            f"latents of {model}, two principal axes": self._client.encode(model, self._all),
        }
        sheet = Image.new("RGB", (2 * SCATTER_SIDE + 3 * MARGIN, SCATTER_SIDE + 2 * MARGIN + 20), "white")
        pen = ImageDraw.Draw(sheet)
        for number, (title, rows) in enumerate(panels.items()):
            left = MARGIN + number * (SCATTER_SIDE + MARGIN)
            pen.text((left, MARGIN), title, fill="black", font=ImageFont.load_default(12))
            pen.rectangle((left, 24, left + SCATTER_SIDE, 24 + SCATTER_SIDE), outline="#bbbbbb")
            for (x, y), label in zip(principal_axes(rows), self._labels, strict=True):
                place = (left + 10 + x * (SCATTER_SIDE - 20), 34 + y * (SCATTER_SIDE - 20))
                font = ImageFont.load_default(11)
                pen.text(place, str(label), fill=_COLOURS[label], font=font, anchor="mm")
        return sheet

    def _reconstructed(self, model: str) -> Rows:
        return self._client.reconstruct(model, self._digits).rows

    def _weights(self, model: str, half: str = "encoder") -> Rows:
        """The weights of the encoder's first layer, or of a decoder of one layer, as pictures [U, 28, 28]."""
        graph = onnx.load(self._models / model / "1" / f"{half}.onnx").graph
        (found,) = (value for value in graph.initializer if value.name == f"network.{half}.0.weight")
        weights: Rows = numpy_helper.to_array(found)
        return (weights if half == "encoder" else weights.T).reshape(-1, 28, 28)


def unit_lines(label: str, weights: Rows) -> list[tuple[str, Pixels]]:
    """Two lines of the units with the largest weights: one with small weights learned nothing and looks like noise."""
    order = np.argsort(-np.linalg.norm(weights.reshape(len(weights), -1), axis=1), kind="stable")
    return [(label, signed(weights[order[:SHOWN]])), ("", signed(weights[order[SHOWN : 2 * SHOWN]]))]


def principal_axes(rows: Rows) -> Rows:
    """Rows [N, ...] on the two principal axes, [N, 2], scaled to 0..1."""
    centred = rows.reshape(len(rows), -1) - rows.reshape(len(rows), -1).mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of an axis is free; the largest element of each is made positive, so that every machine draws the same.
    signs = np.sign(axes[range(2), np.abs(axes[:2]).argmax(axis=1)])
    points = centred @ (axes[:2] * signs[:, None]).T
    low, high = points.min(axis=0), points.max(axis=0)
    scaled: Rows = (points - low) / (high - low)
    return scaled


def grey(rows: Rows) -> Pixels:
    """Values in 0..1 [N, H, W] as pixels [N, H, W, 3]."""
    pixels = (np.clip(rows, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=-1)


def signed(weights: Rows) -> Pixels:
    """Weights [U, H, W] as pixels [U, H, W, 3], each scaled to its own largest: red is positive, blue negative."""
    scaled = weights / np.abs(weights).max(axis=(1, 2), keepdims=True)
    fade = 1 - np.abs(scaled)
    red, blue = np.where(scaled > 0, 1, fade), np.where(scaled < 0, 1, fade)
    return (np.stack([red, fade, blue], axis=-1) * 255).round().astype(np.uint8)


def strips(lines: Sequence[tuple[str, Pixels]]) -> Image.Image:
    """Named lines of pictures [N, H, W, 3], one under the other."""
    width = 2 * MARGIN + LABEL_WIDTH + SHOWN * (SIDE + GAP)
    sheet = Image.new("RGB", (width, 2 * MARGIN + len(lines) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(lines):
        top = MARGIN + number * (SIDE + GAP)
        font = ImageFont.load_default(12)
        pen.multiline_text((MARGIN, top + SIDE // 2), label, fill="black", font=font, anchor="lm")
        for at, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + LABEL_WIDTH + at * (SIDE + GAP), top))
    return sheet


def draw(out: Path, models: Path) -> list[Path]:
    """Write all pictures into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with service(models) as address, Client(address) as client:
        for name, drawing in Pictures(client, models).drawings().items():
            path = out / f"{name}.png"
            drawing().quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
            written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.site.pictures", description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="model packages (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where they go (default: %(default)s)")
    arguments = parser.parse_args()
    for path in draw(arguments.out, arguments.models):
        print(f"{path.stat().st_size:>8,} bytes  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
