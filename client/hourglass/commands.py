"""What each command of the command line does."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from hourglass import files, pictures
from hourglass.client import Client
from hourglass.files import CommandError
from hourglass.in_process import InProcess
from hourglass.jobs import Progress
from hourglass.results import ModelCard, Spec
from hourglass.tensors import Array

__all__ = ["CommandError", "decode", "denoise", "encode", "interpolate", "models", "reconstruct"]

# Pixels from 0 to 255 that are no uint8 are told by the first rows: noise does not reach so far beyond the range.
_LOOKED_AT_ROWS = 1000
_FAR = 10

# What a table has room for: these first, then the others in the card's order.
_SHOWN_METRICS = 3
_SHOWN_FIRST = ("psnr_db", "denoised_psnr_db", "classifier_accuracy", "linear_probe_accuracy", "ssim")


def models(client: Client, arguments: argparse.Namespace) -> None:
    cards = client.models(timeout_s=arguments.timeout)
    if arguments.json:
        print(json.dumps([json_format.MessageToDict(card.message) for card in cards], indent=2))
        return
    head = ("name", "version", "variant", "input", "latent", "operations", "metrics", "provider")
    lines = [head, *(_line(card) for card in cards)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _line(card: ModelCard) -> tuple[str, ...]:
    names = [name for name in _SHOWN_FIRST if name in card.metrics]
    names += [name for name in card.metrics if name not in _SHOWN_FIRST]
    return (
        card.name,
        str(card.version),
        card.variant,
        _shape(card.input),
        _shape(card.latent),
        ",".join(card.operations),
        " ".join(f"{name}={card.metrics[name]:.4g}" for name in names[:_SHOWN_METRICS]),
        card.provider.removesuffix("ExecutionProvider"),
    )


def _shape(spec: Spec) -> str:
    return "x".join(map(str, spec.shape))


def encode(client: Client, arguments: argparse.Namespace) -> None:
    _convert(client, arguments, "encode", "latent")


def decode(client: Client, arguments: argparse.Namespace) -> None:
    _convert(client, arguments, "decode", "output")


def reconstruct(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.scores is None:
        _convert(client, arguments, "reconstruct", "output")
        return
    files.require_other(arguments.source, arguments.scores)
    if arguments.scores.resolve() == arguments.target.resolve():
        raise CommandError(f"--scores: {arguments.scores} is where the rows go; write elsewhere")
    # Opened first: a place that cannot be written to is found out before the rows are asked for.
    with files.replacing(arguments.scores) as temporary, temporary.open("w", newline="") as file:
        answer = _convert(client, arguments, "reconstruct", "output")
        table = csv.writer(file)
        table.writerow(("row", "reconstruction_error", "novelty"))
        table.writerows(zip(range(len(answer.errors)), answer.errors, answer.novelties, strict=True))


def _convert(client: Client, arguments: argparse.Namespace, operation: str, gives: str) -> Any:
    """Rows of one .npy file to rows of another, neither of them whole in memory."""
    files.require_suffix(arguments.target, ".npy")
    source = files.read_rows(arguments.source)
    files.require_other(arguments.source, arguments.target)
    card = choose(client, arguments, operation)
    if operation != "decode":
        warn_of_bytes(arguments.source, source, card)
    dtype = np.dtype(np.float16 if arguments.float16 else np.float32)
    shape = (len(source), *getattr(card, gives).shape)
    begin = time.monotonic()
    with files.writing_rows(arguments.target, shape, dtype) as out, progress_bar(len(source)) as progress:
        answer = getattr(client, operation)(
            card.name,
            source,
            version=card.version,
            dtype=dtype,
            out=out,
            timeout_s=arguments.timeout,
            progress=progress,
        )
    seconds = time.monotonic() - begin
    print(f"{arguments.target}: {'x'.join(map(str, shape))} {dtype} by {card.name}/{card.version} in {seconds:.2f} s")
    return answer


def warn_of_bytes(path: Path, rows: Array, card: ModelCard) -> None:
    """Say where pixels from 0 to 255 are sent as numbers that nobody scales; the service takes any."""
    if rows.dtype == np.uint8 or rows.dtype.kind not in "iuf" or not pictures.is_picture(card.input):
        return
    first = rows[:_LOOKED_AT_ROWS]
    largest, expected = float(np.max(first, where=np.isfinite(first), initial=0.0)), card.input.range
    if expected and largest > _FAR * expected[1]:
        white = 255 if largest <= 255 else 65535
        print(
            f"hourglass: warning: {path}: holds {largest:g} as {rows.dtype}, and {card.name} expects "
            f"{expected[0]:g} to {expected[1]:g}; only uint8 is scaled, so divide by {white}",
            file=sys.stderr,
        )


def denoise(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.source.suffix == ".npy":
        _convert(client, arguments, "denoise", "output")
        return
    files.require_suffix(arguments.target, ".png")
    files.require_other(arguments.source, arguments.target)
    pictures.require()
    card = choose(client, arguments, "denoise", image=True)
    picture = pictures.read(arguments.source, card.input.shape, resize=arguments.resize)
    answer = client.denoise(card.name, picture[None], version=card.version, timeout_s=arguments.timeout)
    pictures.write(arguments.target, answer.rows[0])
    print(f"{arguments.target}: by {card.name}/{card.version}, moved by {answer.distances[0]:.3f}")


def interpolate(client: Client, arguments: argparse.Namespace) -> None:
    files.require_suffix(arguments.target, ".png")
    for path in (arguments.start, arguments.end):
        files.require_other(path, arguments.target)
    pictures.require()
    card = choose(client, arguments, "interpolate", image=True)
    start, end = (
        pictures.read(path, card.input.shape, resize=arguments.resize) for path in (arguments.start, arguments.end)
    )
    answer = client.interpolate(
        card.name,
        start[None],
        end[None],
        steps=arguments.steps,
        method=arguments.method,
        version=card.version,
        timeout_s=arguments.timeout,
    )
    pictures.write(arguments.target, np.concatenate(list(answer.rows[0]), axis=1))
    print(f"{arguments.target}: {arguments.steps} steps, {arguments.method}, by {card.name}/{card.version}")


def choose(
    client: Client | InProcess, arguments: argparse.Namespace, operation: str, *, image: bool = False
) -> ModelCard:
    """The model that was named, or the only one that can do this."""

    def fits(card: ModelCard) -> bool:
        return operation in card.operations and (not image or pictures.is_picture(card.input))

    what = f"{operation} pictures" if image else operation
    if arguments.model is not None:
        name, _, version = arguments.model.partition("/")
        card = client.model(name, version or None, timeout_s=arguments.timeout)
        if not fits(card):
            raise CommandError(f"{name}: this model cannot {what}")
        return card
    # The latest of a name comes first.
    latest: dict[str, ModelCard] = {}
    for card in client.models(timeout_s=arguments.timeout):
        latest.setdefault(card.name, card)
    fitting = [card for card in latest.values() if fits(card)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise CommandError(f"--model: the service has no model that can {what}")
    names = ", ".join(card.name for card in fitting)
    raise CommandError(f"--model: must be given, as several models can {what}: {names}")


@contextmanager
def progress_bar(total: int) -> Iterator[Progress | None]:
    """A bar with the rate on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        import tqdm
    except ImportError as error:
        raise CommandError(files.needs_extra("tqdm")) from error
    with tqdm.tqdm(total=total, unit=" rows", unit_scale=True) as bar:

        def show(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        yield show
