"""What the page can ask, each a call to the service.

Questions and answers are JSON. In them a row is the base64 text of its pixels, uint8 [H, W], and a latent a flat list
of numbers.

Shape legend: N digits, D latent units, H height, W width.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from hourglass import Client, ModelCard

Array = npt.NDArray[Any]
Json = dict[str, Any]

# A page that waits longer than this shows an error; the service answers within milliseconds.
TIMEOUT_S = 10.0
STEPS = 21


class QuestionError(ValueError):
    """The question lacks something, or breaks a rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Digits:
    # uint8 [N, H, W]
    images: Array
    # [N], 0 to 9
    labels: Array

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 3:
            raise ValueError(f"images: must be uint8 [N, H, W]; got {self.images.dtype} {self.images.shape}")
        if len(self.images) < 2 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: must be one for each of at least two images; got {self.labels.shape} for {self.images.shape}"
            )

    @classmethod
    def read(cls, path: Path) -> Digits:
        """From an .npz file with `images` and `labels`. Raises OSError, or ValueError with the file's name."""
        try:
            with np.load(path) as file:
                return cls(images=file["images"], labels=file["labels"])
        except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
            text = error.args[0] if error.args else error
            raise ValueError(f"{path}: must be an .npz file with images and labels; {text}") from error


class Calls:
    def __init__(self, client: Client, address: str, digits: Digits) -> None:
        self._client = client
        self._address = address
        self._digits = digits
        self.by_name: dict[str, Callable[[Json], Json]] = {
            "digits": self.digits,
            "models": self.models,
            "denoise": self.denoise,
            "reconstruct": self.reconstruct,
            "interpolate": self.interpolate,
            "encode": self.encode,
            "decode": self.decode,
            "map": self.map,
        }

    def digits(self, _question: Json) -> Json:
        height, width = self._digits.images.shape[1:]
        return {
            "height": height,
            "width": width,
            "rows": [_text(image) for image in self._digits.images],
            "labels": self._digits.labels.tolist(),
        }

    def models(self, _question: Json) -> Json:
        """The latest version of each model that takes pictures of the digits' size."""
        latest: dict[str, ModelCard] = {}
        for card in self._client.models(timeout_s=TIMEOUT_S):
            if card.input.shape == self._digits.images.shape[1:]:
                latest.setdefault(card.name, card)
        return {"address": self._address, "models": [_card(card) for card in latest.values()]}

    def denoise(self, question: Json) -> Json:
        began = time.perf_counter()
        answer = self._client.denoise(_model(question), self._row(question, "row"), timeout_s=TIMEOUT_S)
        return {"row": _text(_pixels(answer.rows[0])), "milliseconds": (time.perf_counter() - began) * 1000}

    def reconstruct(self, question: Json) -> Json:
        began = time.perf_counter()
        answer = self._client.reconstruct(_model(question), self._row(question, "row"), timeout_s=TIMEOUT_S)
        return {"row": _text(_pixels(answer.rows[0])), "milliseconds": (time.perf_counter() - began) * 1000}

    def interpolate(self, question: Json) -> Json:
        answer = self._client.interpolate(
            _model(question),
            self._row(question, "start"),
            self._row(question, "end"),
            steps=STEPS,
            method=str(question.get("method", "linear")),
            timeout_s=TIMEOUT_S,
        )
        return {"rows": [_text(_pixels(row)) for row in answer.rows[0]]}

    def encode(self, question: Json) -> Json:
        latents = self._client.encode(_model(question), self._row(question, "row"), timeout_s=TIMEOUT_S)
        return {"latent": _numbers(latents)}

    def decode(self, question: Json) -> Json:
        """`shape` is that of a latent, as the model's card has it."""
        try:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which the service refuses
                latents = np.array(question["latent"], np.float32).reshape(1, *question["shape"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise QuestionError(f"latent, shape: must be numbers and the shape that they fill; {error}") from error
        rows = self._client.decode(_model(question), latents, timeout_s=TIMEOUT_S)
        return {"row": _text(_pixels(rows[0]))}

    def map(self, question: Json) -> Json:
        """The digits' latents on their two principal axes.

        `points` [N][2]; a latent z lies at ((z - mean) @ axis for each of the two `axes`); `share` of the variance that
        the two hold; `low` and `high` [D] of each unit over the digits, and the units in the order of their `spread`.
        """
        latents = self._client.encode(_model(question), self._digits.images, timeout_s=TIMEOUT_S)
        flat = latents.reshape(len(latents), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        _, scales, axes = np.linalg.svd(flat - mean, full_matrices=False)
        return {
            "points": np.round((flat - mean) @ axes[:2].T, 4).tolist(),
            "mean": _numbers(mean),
            "axes": [_numbers(axis) for axis in axes[:2]],
            "share": float((scales[:2] ** 2).sum() / max((scales**2).sum(), 1e-12)),
            "low": _numbers(flat.min(axis=0)),
            "high": _numbers(flat.max(axis=0)),
            "spread": np.argsort(-flat.std(axis=0), kind="stable").tolist(),
        }

    def _row(self, question: Json, name: str) -> Array:
        """As uint8 [1, H, W]."""
        shape = self._digits.images.shape[1:]
        try:
            pixels = np.frombuffer(base64.b64decode(question[name], validate=True), np.uint8)
            return pixels.reshape(1, *shape)
        except (KeyError, TypeError, ValueError) as error:
            raise QuestionError(f"{name}: must be {shape[0]}x{shape[1]} pixels, in base64; {error}") from error


def _model(question: Json) -> str:
    model = question.get("model")
    if not isinstance(model, str):
        raise QuestionError(f"model: must be a name; got {model!r}")
    return model


def _card(card: ModelCard) -> Json:
    corruption = card.message.corruption
    return {
        "name": card.name,
        "version": card.version,
        "description": card.description,
        "latent": list(card.latent.shape),
        "denoises": "denoise" in card.operations,
        "corruption": {"kind": corruption.kind, "level": corruption.level} if corruption.kind else None,
    }


def _pixels(row: Array) -> Array:
    pixels: Array = np.rint(np.clip(row, 0, 1) * 255).astype(np.uint8)
    return pixels


def _text(pixels: Array) -> str:
    return base64.b64encode(pixels.tobytes()).decode("ascii")


def _numbers(values: Array) -> list[float]:
    return [float(f"{value:.6g}") for value in values.ravel()]
