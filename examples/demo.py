"""A tour in one command: start the service, send it real digits through the client, draw what comes back.

Prints a table of all models and writes a contact sheet. Ends the service.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from examples.local_service import ROOT, service
from hourglass import Client, HourglassError, ModelCard

Rows = npt.NDArray[np.float32]

DIGITS = Path(__file__).parent / "digits.npz"
SHOWN = 10
STEPS = 10
REPEATS = 5
SCALE = 2
MARGIN, GAP, LABEL_WIDTH, HEADING = 16, 4, 190, 34
WIDTHS = (11, 12, 8, 9, 9, 9)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="model packages (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "demo.png", help="the contact sheet (default: %(default)s)"
    )
    arguments = parser.parse_args()
    with np.load(DIGITS) as file:
        digits, labels = (file["images"] / np.float32(255)).astype(np.float32), file["labels"]
    try:
        with service(arguments.models) as address, Client(address) as client:
            cards = [card for card in client.models() if card.input.shape == digits.shape[1:]]
            if not cards:
                print(f"no model in {arguments.models} takes rows of {digits.shape[1:]}", file=sys.stderr)
                return 1
            print_table(client, cards, digits)
            sheet = draw(client, cards, digits, labels)
    except HourglassError as error:
        print(f"the service answered: {error}", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out)
    print(f"\nwrote {arguments.out} ({sheet.width} x {sheet.height}): open it")
    return 0


def noisy(card: ModelCard, rows: Rows) -> Rows:
    """Rows with the corruption that the model was trained to undo, the same at every call."""
    random = np.random.default_rng(0)
    corruption = card.message.corruption
    spoilt: npt.NDArray[np.floating]
    match corruption.kind:
        case "gaussian":
            spoilt = rows + corruption.level * random.standard_normal(rows.shape)
        case "masking":
            spoilt = rows * (random.random(rows.shape) >= corruption.level)
        case "salt-and-pepper":
            salt = random.integers(0, 2, rows.shape)
            spoilt = np.where(random.random(rows.shape) < corruption.level, salt, rows)
        case other:
            raise ValueError(f"{card.name}: unknown corruption {other!r}")
    clipped: Rows = np.clip(spoilt, 0, 1).astype(np.float32)
    return clipped


def psnr_db(rows: Rows, clean: Rows) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over rows, for values from 0 to 1."""
    errors = np.maximum(((rows - clean) ** 2).reshape(len(rows), -1).mean(axis=1), 1e-12)
    return float(np.mean(-10 * np.log10(errors)))


def milliseconds(call: Callable[[], Any]) -> float:
    """The median time of a call."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1000


def print_table(client: Client, cards: list[ModelCard], digits: Rows) -> None:
    titles = ("latent", "reconstruct", "noisy", "denoised", "1 row", "all rows")
    columns = line("model", titles)
    print(f"{len(digits)} digits of MNIST's test set; PSNR in dB, time of encode through the client\n")
    print(columns)
    print("-" * len(columns))
    for card in cards:
        reconstruction = client.reconstruct(card.name, digits)
        before = after = "-"
        if "denoise" in card.operations:
            spoilt = noisy(card, digits)
            before = f"{psnr_db(spoilt, digits):.2f}"
            after = f"{psnr_db(client.denoise(card.name, spoilt).rows, digits):.2f}"
        latents = client.encode(card.name, digits)
        decoded = client.decode(card.name, latents)
        assert np.allclose(decoded, reconstruction.rows, atol=1e-4), "decode after encode must be reconstruct"
        one = milliseconds(partial(client.encode, card.name, digits[:1]))
        everything = milliseconds(partial(client.encode, card.name, digits))
        cells = (
            "x".join(map(str, card.latent.shape)),
            f"{psnr_db(reconstruction.rows, digits):.2f}",
            before,
            after,
            f"{one:.2f} ms",
            f"{everything:.1f} ms",
        )
        print(line(card.name, cells))


def line(name: str, cells: Sequence[str]) -> str:
    return f"{name:24} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


@dataclass(frozen=True)
class Strip:
    label: str
    rows: Rows


def draw(client: Client, cards: list[ModelCard], digits: Rows, labels: npt.NDArray[np.uint8]) -> Image.Image:
    """The contact sheet: noise and what is left of it, what every model keeps, walks between two digits."""
    one_of_each = digits[[int(np.flatnonzero(labels == digit)[1]) for digit in range(SHOWN)]]
    sections: list[tuple[str, list[Strip]]] = []
    for card in reversed(cards):
        if "denoise" in card.operations:
            spoilt = noisy(card, one_of_each)
            clean = client.denoise(card.name, spoilt).rows
            corruption = f"{card.message.corruption.kind} noise, level {card.message.corruption.level:.2g}"
            title = f"Denoise: {card.name}, {corruption}"
            strips = [Strip("original", one_of_each), Strip("noisy", spoilt), Strip("denoised", clean)]
            sections.append((title, strips))
    strips = [Strip("original", one_of_each)]
    strips += [Strip(card.name, client.reconstruct(card.name, one_of_each).rows) for card in cards]
    sections.append(("Encode and decode: the digits, and what each model keeps of them", strips))
    start, end = digits[labels == 3][1:2], digits[labels == 8][1:2]
    mixes = np.stack([(1 - w) * start[0] + w * end[0] for w in np.linspace(0, 1, STEPS, dtype=np.float32)])
    strips = [Strip("pixels, cross-faded", mixes)]
    strips += [Strip(card.name, client.interpolate(card.name, start, end, steps=STEPS).rows[0]) for card in cards]
    sections.append(("Interpolate: from a 3 to an 8 in each model's latent space", strips))
    return paint(sections)


def paint(sections: list[tuple[str, list[Strip]]]) -> Image.Image:
    side = 28 * SCALE
    width = 2 * MARGIN + LABEL_WIDTH + SHOWN * (side + GAP)
    height = MARGIN + sum(HEADING + len(strips) * (side + GAP) + MARGIN for _, strips in sections)
    sheet = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(sheet)
    title_font, label_font = ImageFont.load_default(18), ImageFont.load_default(14)
    top = MARGIN
    for title, strips in sections:
        pen.text((MARGIN, top), title, fill=0, font=title_font)
        top += HEADING
        for strip in strips:
            pen.text((MARGIN, top + side // 2), strip.label, fill=60, font=label_font, anchor="lm")
            for number, row in enumerate(strip.rows):
                pixels = (np.clip(row, 0, 1) * 255).round().astype(np.uint8)
                picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(picture, (MARGIN + LABEL_WIDTH + number * (side + GAP), top))
            top += side + GAP
        top += MARGIN
    return sheet


if __name__ == "__main__":
    sys.exit(main())
