"""What is in a file or a folder, said before anything is trained, and a recipe to start from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import preparation, recipes, splits, storage, tables
from training.data import Kind
from training.errors import DataError
from training.found import Found

_NAME_LENGTH = 21
_SHOWN = 40
_STEPS = 1500  # of training, about, in a recipe to start from
_BATCH_ROWS = 128
_LEARNING_RATES: dict[Kind, float] = {"image": 1e-3, "vector": 2e-3, "series": 5e-3}
_LEAST_LATENT_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table; the figures are of the values that are not missing."""

    name: str
    type: str
    numeric: bool
    missing: int = 0
    minimum: float = math.nan
    maximum: float = math.nan
    rising: bool = False

    @property
    def unfit(self) -> str:
        """Why a recipe to start from leaves the column out; empty where it does not."""
        if not self.numeric:
            return "no numbers"
        if math.isnan(self.minimum):
            return "empty"
        if self.minimum == self.maximum:
            return "constant"
        if self.rising:
            return "rises in every row: a clock or a counter"
        return "constant in single precision" if np.float32(self.minimum) == np.float32(self.maximum) else ""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found; `settings` take it as it is, and with the columns that are fit."""

    settings: recipes.Data
    kind: Kind
    row_count: int
    row_shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    columns: tuple[Column, ...] = ()
    incomplete_rows: int = 0
    classes: tuple[tuple[str, int], ...] = ()
    constant_elements: int = 0

    def lines(self) -> Iterator[str]:
        """The findings, a line each."""
        shape = " x ".join(map(str, self.row_shape))
        window = self.settings.window
        yield f"path     {self.settings.path}"
        yield f"kind     {self.kind}" + (f": windows of {window} steps, every {self.settings.stride}" if window else "")
        yield f"rows     {self.row_count:,} of {shape}, {self.dtype}" + (
            "; mapped from the disk, not held in memory" if storage.is_large((self.row_count, *self.row_shape)) else ""
        )
        yield f"range    {self.minimum:.6g} to {self.maximum:.6g}"
        if self.columns:
            yield f"missing  {self.incomplete_rows:,} rows lack a value; " + (
                "windows over them are left out" if window else "they are left out"
            )
        elif self.constant_elements:
            yield f"constant {self.constant_elements:,} of {math.prod(self.row_shape):,} elements never change"
        if self.classes:
            shown = ", ".join(f"{name} ({count:,})" for name, count in self.classes[:_SHOWN])
            yield f"labels   {len(self.classes)} classes: {shown}" + (", ..." if len(self.classes) > _SHOWN else "")
        else:
            yield "labels   none: no linear probe, nearest neighbours or classifier"
        for column in self.columns:
            yield (
                f"  {column.name:<24} {column.type:<10} "
                + (
                    f"{column.minimum:>12.6g} to {column.maximum:<12.6g} missing {column.missing:,}"
                    if column.numeric
                    else ""
                )
                + (f"  left out: {column.unfit}" if column.unfit else "")
            )


def inspect(settings: recipes.Data) -> Inspection:
    """Look at everything at the path of the settings. Raises DataError as training would.

    In a table without chosen columns, those that are no numbers, empty, constant or a clock are left out.
    """
    assert settings.path is not None, "what is inspected has a path; this is a bug"
    path = Path(settings.path)
    columns: tuple[Column, ...] = ()
    if path.is_file() and path.suffix.lower() in preparation.TABLE_SUFFIXES:
        table = tables.Table(path)
        label = table.label(settings.label, settings.columns)
        asked = dict.fromkeys(settings.columns or table.columns)
        looked_at = [name for name in asked if name in table.columns and name != label]
        columns = _columns(table, looked_at)
        names = settings.columns or [column.name for column in columns if not column.unfit]
        if not names:
            reasons = ", ".join(f"{column.name!r} ({column.unfit})" for column in columns)
            raise DataError(f"{path}: has no column of numbers that change: {reasons or 'none beside the label'}")
        settings = settings.model_copy(update={"columns": tuple(names), "label": label})
    found = preparation.read(settings)
    rows = found.rows
    if settings.window is not None:
        kind: Kind = "series"
        rows = preparation.steps_of(found)
        starts = splits.by_time(path, rows, settings, settings.window)
        count = len(starts.train) + len(starts.validation) + len(starts.test)
        row_shape: tuple[int, ...] = (settings.window, rows.shape[1])
    else:
        kind, count, row_shape = preparation.kind_of(found, settings.kind), len(rows), rows.shape[1:]
        splits.require_rows(found)
    flat = preparation.statistics(rows.reshape(len(rows), -1))
    constant = int((flat.minimum == flat.maximum).sum())
    if kind == "vector" or settings.window is not None:
        preparation.scaling_of(found, flat)
    return Inspection(
        settings=settings,
        kind=kind,
        row_count=count,
        row_shape=row_shape,
        dtype=str(rows.dtype),
        minimum=float(flat.minimum.min()),
        maximum=float(flat.maximum.max()),
        columns=columns,
        incomplete_rows=found.incomplete_rows,
        classes=_class_counts(found),
        constant_elements=constant,
    )


def name_for(path: str) -> str:
    """A data set's name made of its file's."""
    stem = Path(path).resolve().stem if Path(path).is_file() else Path(path).resolve().name
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    name = name if name[:1].isalpha() else f"data-{name}".rstrip("-")
    return name[:_NAME_LENGTH].rstrip("-")


def starting_recipe(found: Inspection) -> str:
    """A recipe, as TOML, that trains on what was found as it stands."""
    data = found.settings.model_dump(exclude_none=True, exclude_defaults=True)
    data["name"] = found.settings.name
    network, loss = _network(found)
    train_rows = max(1, round(found.row_count * 0.8))
    epochs = min(200, max(3, round(_STEPS * _BATCH_ROWS / train_rows)))
    left_out = [f"{column.name} ({column.unfit})" for column in found.columns if column.unfit]
    tables_of = {
        "data": data,
        "network": network,
        "loss": {"kind": loss},
        "procedure": {
            "kind": "joint",
            "epochs": epochs,
            "batch_rows": _BATCH_ROWS,
            "learning_rate": _LEARNING_RATES[found.kind],
            "schedule": "cosine",
        },
    }
    text = "# Written by `python -m training inspect`, to start from.\n"
    if left_out:
        text += f"# Columns left out: {_toml(left_out)[1:-1]}.\n"
    description = f"An autoencoder of {found.settings.name}: {found.row_count} rows of kind {found.kind}."
    text += f"description = {_toml(description)}\n"
    for name, table in tables_of.items():
        text += f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
    return text


def _network(found: Inspection) -> tuple[dict[str, Any], str]:
    """A network of the kind that fits, with a code of an eighth of the row or so, and its loss."""
    size = math.prod(found.row_shape)
    if found.kind == "series":
        steps, columns = found.row_shape
        levels = min(3, max(1, int(math.log2(max(2, steps / _LEAST_LATENT_STEPS)))))
        latent_steps = math.ceil(steps / 2**levels)
        width = min(64, max(1, round(steps * columns / (8 * latent_steps))))
        return {"kind": "conv1d", "channels": [16] * (levels - 1) + [width]}, "squared-error"
    if found.kind == "vector":
        hidden = min(256, max(16, 4 * size))
        dense = {"hidden": [hidden], "latent": max(1, min(64, size // 3)), "latent_activation": "linear"}
        return {"kind": "dense", **dense, "output_activation": "linear"}, "squared-error"
    height, width = found.row_shape[:2]
    if height % 4 == 0 and width % 4 == 0 and min(height, width) >= 16:
        channels = {"channels": [32, 8], "decoder_channels": [32, 32], "upsampling": "transposed"}
        return {"kind": "convolutional", **channels}, "cross-entropy"
    latent = max(1, min(64, size // 8))
    return {"kind": "dense", "hidden": [min(512, 2 * size)], "latent": latent}, "cross-entropy"


def _columns(table: tables.Table, looked_at: Sequence[str]) -> tuple[Column, ...]:
    names = tuple(name for name in looked_at if name in table.numeric)
    missing = np.zeros(len(names), dtype=np.int64)
    minimum, maximum = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    rising, last = np.full(len(names), True), np.full(len(names), -np.inf)
    for values, _ in table.batches(names, None) if names else ():
        if not len(values):
            continue
        hole = np.isnan(values)
        missing += hole.sum(axis=0)
        minimum = np.minimum(minimum, np.where(hole, np.inf, values).min(axis=0))
        maximum = np.maximum(maximum, np.where(hole, -np.inf, values).max(axis=0))
        rising &= (np.diff(np.vstack([last, values]), axis=0) > 0).all(axis=0)
        last = values[-1].astype(np.float64)
    figures = {
        name: Column(
            name=name,
            type=table.types[name],
            numeric=True,
            missing=int(missing[index]),
            minimum=float(minimum[index]) if np.isfinite(minimum[index]) else math.nan,
            maximum=float(maximum[index]) if np.isfinite(maximum[index]) else math.nan,
            rising=bool(rising[index]),
        )
        for index, name in enumerate(names)
    }
    return tuple(figures.get(name) or Column(name=name, type=table.types[name], numeric=False) for name in looked_at)


def _class_counts(found: Found) -> tuple[tuple[str, int], ...]:
    if found.labels is None:
        return ()
    counts: npt.NDArray[np.int64] = np.bincount(found.labels, minlength=len(found.classes))
    return tuple(zip(found.classes, counts.tolist(), strict=True))


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # A JSON text, number or truth value is one of TOML too, but for one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
