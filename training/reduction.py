"""A package in less than float32: its graphs, judged by what they lose, and what changes in the manifest.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from autoencoder.v1 import model_pb2
from training.data import Dataset
from training.errors import ParityError
from training.evaluate import QUANTILE_COUNT, picture_metrics, row_metrics
from training.graphs import Graphs, session
from training.precision import CALIBRATION_ROWS, Precision, psnr_loss_db, to_fp16, to_int8

MAX_PSNR_LOSS_DB = 0.2

_BATCH_ROWS = 1000
_TIMED_ROWS, _TIMED_ROUNDS = 256, 9
_SLOWER = 1.1  # less than that is within the noise of a busy machine
# The golden rows are a few; on another machine's instructions, others may be a little further off.
_GOLDEN_MARGIN = 2.0
_NAMES = {"fp16": model_pb2.PRECISION_FLOAT16, "int8": model_pb2.PRECISION_INT8}

Array = npt.NDArray[np.float32]


def reduce(
    graphs: Graphs,
    precision: Precision,
    dataset: Dataset,
    manifest: model_pb2.Model,
    *,
    max_psnr_loss_db: float,
    say: Callable[[str], None],
) -> Graphs:
    """The graphs in `precision`; the manifest gets another name, and the figures of these graphs. What it brings here
    and costs is told to `say`.

    Scales come from training rows, the loss from test rows. Raises ParityError where it is over `max_psnr_loss_db`.
    """
    made = convert(graphs, precision, dataset)
    unit: Array = dataset.scaling.scale.numpy() if dataset.scaling else np.ones((), np.float32)
    rows = dataset.raw(dataset.test_rows).contiguous().numpy()
    before, after = RoundTrip(graphs, rows), RoundTrip(made, rows)
    loss_db = psnr_loss_db(*((values / unit).astype(np.float32) for values in (rows, before.rows, after.rows)))
    if loss_db > max_psnr_loss_db:
        raise ParityError(
            f"{precision}: costs {loss_db:.3g} dB of the test rows' PSNR, more than {max_psnr_loss_db:g} "
            "(--max-psnr-loss); nothing was exported"
        )
    times = time_ratio(graphs, made, rows[:_TIMED_ROWS])
    cost = f"{precision} costs {round(loss_db, 3) + 0.0:g} dB of PSNR"
    slower = "; this model is faster in fp32" if times > _SLOWER else ""
    say(f"{cost} and takes {times:.2f} of fp32's time on this processor{slower}")
    # What the decoder itself does is seen on the same latents.
    decoded = _run(made.decoder, before.latents)
    off = max(float(np.abs(after.latents - before.latents).max()), float((np.abs(decoded - before.rows) / unit).max()))
    manifest.name = f"{manifest.name}-{precision}"
    manifest.precision = _NAMES[precision]
    manifest.parity.max_absolute_difference = off
    manifest.parity.golden_absolute_tolerance = _GOLDEN_MARGIN * off
    similarity = picture_metrics if dataset.kind == "image" else row_metrics
    metrics = similarity(torch.from_numpy(after.rows / unit), torch.from_numpy(rows / unit))
    del manifest.metrics[:]
    for name, value in sorted((metrics | {"precision_psnr_loss_db": loss_db}).items()):
        manifest.metrics.add(name=name, value=value)
    manifest.reconstruction_error_quantiles[:] = _quantiles(made, dataset, unit)
    return made


def convert(graphs: Graphs, precision: Precision, dataset: Dataset) -> Graphs:
    """The graphs in `precision`; scales of int8 come from training rows."""
    if precision == "fp32":
        return graphs
    if precision == "fp16":
        return Graphs(encoder=to_fp16(graphs.encoder), decoder=to_fp16(graphs.decoder))
    rows = dataset.raw(dataset.sample(CALIBRATION_ROWS)[0]).contiguous().numpy()
    latents = _run(graphs.encoder, rows)
    return Graphs(
        encoder=to_int8(graphs.encoder, rows, latent_side="output"),
        decoder=to_int8(graphs.decoder, latents, latent_side="input"),
    )


def time_ratio(before: Graphs, after: Graphs, rows: Array) -> float:
    """The processor time that rows [B, D...] take there and back through `after`, over that of `before`, on one thread:
    the median of rounds in which they take turns."""

    def timed(graphs: Graphs) -> Callable[[], float]:
        encoder, decoder = session(graphs.encoder), session(graphs.decoder)
        given, code = encoder.get_inputs()[0].name, decoder.get_inputs()[0].name

        def run() -> float:
            began_s = time.process_time()
            decoder.run(None, {code: encoder.run(None, {given: rows})[0]})
            return time.process_time() - began_s

        return run

    first, second = timed(before), timed(after)
    rounds = [(first(), second()) for _ in range(_TIMED_ROUNDS + 1)][1:]  # the first warms up
    return statistics.median(one for _, one in rounds) / statistics.median(one for one, _ in rounds)


class RoundTrip:
    """Rows [B, D...] to latents [B, L...] and back."""

    def __init__(self, graphs: Graphs, rows: Array) -> None:
        self.latents = _run(graphs.encoder, rows)
        self.rows = _run(graphs.decoder, self.latents)


def _quantiles(graphs: Graphs, dataset: Dataset, unit: Array) -> list[float]:
    rows = dataset.raw(dataset.validation_rows).contiguous().numpy()
    difference = (RoundTrip(graphs, rows).rows - rows) / unit
    errors = np.square(difference, dtype=np.float64).reshape(len(rows), -1).mean(1)
    return [float(value) for value in np.quantile(errors, np.linspace(0, 1, QUANTILE_COUNT))]


def _run(graph: bytes, inputs: Array) -> Array:
    made = session(graph)
    name = made.get_inputs()[0].name
    return np.concatenate(
        [made.run(None, {name: inputs[at : at + _BATCH_ROWS]})[0] for at in range(0, len(inputs), _BATCH_ROWS)]
    )
