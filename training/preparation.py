"""One's own data, from a path to a data set: read, split, standardised, cut into windows.

Shape legend: B rows, T steps, C columns, W steps of a window, D... the dimensions of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training import arrays, images, recipes, splits, storage, tables
from training.data import Dataset, Kind, Scaling
from training.errors import DataError
from training.found import Found, Labels

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES)

# A column's standard deviation is at least so many times the distance of two float32 numbers at its mean.
_LEAST_STEPS = 100

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of each column [C], over the rows and steps in which no value is missing."""

    mean: Doubles
    deviation: Doubles
    minimum: Doubles
    maximum: Doubles


def read(settings: recipes.Data) -> Found:
    """What is at the path of the settings. Raises DataError."""
    assert settings.path is not None, "own data has a path; this is a bug"
    path = Path(settings.path)
    suffix = path.suffix.lower()
    if not path.exists():
        names = " or ".join(recipes.DATA_NAMES)
        raise DataError(f"data: no file or folder {settings.path!r}; give one, or {names}, which need none")
    is_table = path.is_file() and suffix in TABLE_SUFFIXES
    if (settings.columns or settings.label is not None) and not is_table:
        raise DataError(f"{path}: data.columns and data.label belong to tables, {' '.join(TABLE_SUFFIXES)}")
    if path.is_dir():
        return images.read_folder(path)
    if is_table:
        windows = settings.window is not None
        return tables.read_table(path, settings.columns, settings.label, keep_incomplete=windows)
    if suffix == ".npy":
        return arrays.read_npy(path)
    if suffix == ".npz":
        return arrays.read_npz(path)
    raise DataError(f"{path}: must be a folder of images or end in {' '.join(SUFFIXES)}; got {suffix or 'no suffix'!r}")


def load(settings: recipes.Data, *, seed: int) -> Dataset:
    """The data set at the path of the settings; `docs/training.md` states the rules. Raises DataError."""
    found = read(settings)
    if settings.window is not None:
        return _load_windows(settings, found, settings.window)
    kind = kind_of(found, settings.kind)
    split = splits.at_random(found, settings, seed)
    minimum, maximum, scaling = 0.0, 1.0, None
    if kind != "image":
        measured = statistics(split.train.rows)
        minimum, maximum = float(measured.minimum.min()), float(measured.maximum.max())
        if settings.standardise is not False:
            scaling = scaling_of(found, measured)
    elif settings.standardise:
        raise DataError(f"{found.path}: data.standardise: images are not standardised but scaled to 0..1")

    def rows(part: Array) -> Tensor:
        if kind == "series" and part.ndim == 2:
            part = part[:, :, None]
        return _tensor(part, scaling, divisor=255 if part.dtype == np.uint8 and kind == "image" else 1)

    train = rows(split.train.rows)
    return Dataset(
        name=settings.name,
        train_rows=train,
        train_labels=_labels(split.train.labels),
        validation_rows=rows(split.validation.rows),
        validation_labels=_labels(split.validation.labels),
        test_rows=rows(split.test.rows),
        test_labels=_labels(split.test.labels),
        kind=kind,
        minimum=minimum,
        maximum=maximum,
        scaling=_of_row(scaling, tuple(train.shape[1:])),
        columns=found.columns,
        in_order=storage.is_large(found.rows.shape),
    )


def kind_of(found: Found, wanted: Kind | None) -> Kind:
    """What the rows are: the kind that is wanted, where they can be that, or else by their shape and range.

    One dimension is a vector; more are an image where the values are uint8 or lie in 0..1, and else, of two, a series.
    Raises DataError.
    """
    shape, path = found.rows.shape[1:], found.path
    if not shape:
        raise DataError(f"{path}: is one list of {len(found.rows)} numbers: give data.window for windows of a series")
    possible: set[Kind] = set()
    if len(shape) == 1:
        possible = {"vector", "series"}
    elif len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        lies_in_unit = found.rows.dtype == np.uint8 or _lies_in_unit(found.rows)
        if lies_in_unit:
            possible.add("image")
        if len(shape) == 2:
            possible.add("series")
        if wanted != "series" and not lies_in_unit and found.rows.dtype.kind in "iu":
            raise DataError(f"{path}: pixels must be uint8, or floats from 0 to 1; got {found.rows.dtype}")
    if wanted is not None and wanted not in possible:
        raise DataError(
            f"{path}: data.kind: rows of shape {list(shape)} and type {found.rows.dtype} can be "
            f"{' or '.join(sorted(possible)) or 'nothing that is known'}; got {wanted!r} (images hold uint8 or 0..1)"
        )
    order: tuple[Kind, ...] = ("image", "vector", "series")
    chosen = wanted or next((kind for kind in order if kind in possible), None)
    if chosen is None:
        raise DataError(
            f"{path}: rows of shape {list(shape)} and type {found.rows.dtype} are neither vectors [columns], series "
            "[steps, columns] nor images [height, width] or [height, width, colours] of uint8 or 0..1"
        )
    return chosen


def statistics(rows: Array) -> Statistics:
    """Of the last dimension of rows [B, ..., C], in double precision, merging chunk by chunk (Chan et al. 1979)."""
    columns = rows.shape[-1]
    count, mean, squares = 0, np.zeros(columns), np.zeros(columns)
    minimum, maximum = np.full(columns, np.inf), np.full(columns, -np.inf)
    for chunk in storage.chunks(rows):
        values = chunk.reshape(-1, columns).astype(np.float64)
        values = values[~np.isnan(values).any(axis=1)]
        if not len(values):
            continue
        together = count + len(values)
        center = values.mean(axis=0)
        squares += np.square(values - center).sum(axis=0) + np.square(center - mean) * count * len(values) / together
        mean += (center - mean) * len(values) / together
        count = together
        minimum, maximum = np.minimum(minimum, values.min(axis=0)), np.maximum(maximum, values.max(axis=0))
    return Statistics(mean=mean, deviation=np.sqrt(squares / max(1, count)), minimum=minimum, maximum=maximum)


def scaling_of(found: Found, measured: Statistics) -> Scaling:
    """Mean and standard deviation of each column [C]; a constant one is only centred.

    Raises DataError that names a column whose variation float32, in which clients send rows, cannot hold.
    """
    constant = measured.minimum == measured.maximum
    step = np.spacing(np.abs(measured.mean).astype(np.float32)).astype(np.float64)
    for index in np.flatnonzero(~constant & (measured.deviation < _LEAST_STEPS * step)):
        raise DataError(
            f"{found.path}: {column_name(found, int(index))} varies by {measured.deviation[index]:.3g} around "
            f"{measured.mean[index]:.12g}, which single precision cannot hold: subtract an offset in the file, or "
            "leave the column out"
        )
    scale = np.where(constant, 1.0, measured.deviation)
    return Scaling(shift=torch.from_numpy(measured.mean).float(), scale=torch.from_numpy(scale).float())


def steps_of(found: Found) -> Array:
    """Steps [T, C] to cut windows from. Raises DataError where what was found is something else."""
    steps = found.rows[:, None] if found.rows.ndim == 1 else found.rows
    if steps.ndim != 2 or found.test is not None or found.path.is_dir():
        raise DataError(f"{found.path}: data.window: windows are cut from one array [steps] or [steps, columns]")
    return steps


def column_name(found: Found, index: int) -> str:
    return f"column {found.columns[index]!r}" if found.columns else f"column {index}"


def _load_windows(settings: recipes.Data, found: Found, window: int) -> Dataset:
    steps = steps_of(found)
    starts = splits.by_time(found.path, steps, settings, window)
    measured = statistics(steps[: starts.train_steps])
    scaling = scaling_of(found, measured) if settings.standardise is not False else None
    series = _tensor(steps, scaling)

    def labels(first: npt.NDArray[np.int64]) -> Tensor:
        return _labels(None if found.labels is None else found.labels[first + window - 1])

    return Dataset(
        name=settings.name,
        train_rows=_windows(series, starts.train, window),
        train_labels=labels(starts.train),
        validation_rows=_windows(series, starts.validation, window),
        validation_labels=labels(starts.validation),
        test_rows=_windows(series, starts.test, window),
        test_labels=labels(starts.test),
        kind="series",
        minimum=float(measured.minimum.min()),
        maximum=float(measured.maximum.max()),
        scaling=_of_row(scaling, (window, steps.shape[1])),
        columns=found.columns,
        in_order=True,
    )


def _windows(series: Tensor, starts: npt.NDArray[np.int64], window: int) -> Tensor:
    """Windows [B, W, C] of a series [T, C]: a view of it where they lie at even distances."""
    distances = np.diff(starts)
    if len(starts) == 1 or bool((distances == distances[0]).all()):
        stride = int(distances[0]) if len(distances) else 1
        return series[int(starts[0]) : int(starts[-1]) + window].unfold(0, window, stride).transpose(1, 2)
    every = series.unfold(0, window, 1).transpose(1, 2)
    shape = (window, series.shape[1])
    step = max(1, storage.CHUNK_ELEMENTS // (window * series.shape[1]))
    parts = (every[torch.from_numpy(part)].numpy() for part in np.split(starts, range(step, len(starts), step)))
    return torch.from_numpy(storage.gather(parts, shape, np.float32))


def _tensor(rows: Array, scaling: Scaling | None, *, divisor: int = 1) -> Tensor:
    """Float32 rows [B, ..., C], divided or standardised; mapped from a file where they are large."""
    if scaling is None and divisor == 1 and rows.dtype == np.float32 and rows.flags.c_contiguous:
        return torch.from_numpy(rows)

    def parts() -> Iterator[Array]:
        for chunk in storage.chunks(rows):
            values = torch.from_numpy(np.ascontiguousarray(chunk, dtype=np.float32))
            yield (values / divisor if scaling is None else scaling.standardise(values)).numpy()

    if storage.is_large(rows.shape):
        return torch.from_numpy(storage.gather(parts(), rows.shape[1:], np.float32))
    return torch.from_numpy(np.concatenate(list(parts())))


def _labels(labels: Labels | None) -> Tensor:
    return torch.empty(0, dtype=torch.int64) if labels is None else torch.from_numpy(np.ascontiguousarray(labels))


def _of_row(scaling: Scaling | None, row_shape: tuple[int, ...]) -> Scaling | None:
    """The scaling of columns [C] as one of rows [D...], whose last dimension they are."""
    if scaling is None:
        return None
    return Scaling(
        shift=scaling.shift.expand(row_shape).contiguous(), scale=scaling.scale.expand(row_shape).contiguous()
    )


def _lies_in_unit(rows: Array) -> bool:
    return all(chunk.min() >= 0 and chunk.max() <= 1 for chunk in storage.chunks(rows))
