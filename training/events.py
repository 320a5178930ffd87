"""The log of a run as TensorBoard events, beside its JSON lines; needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training.errors import RunError
from training.runs import Run

FOLDER = "tensorboard"


def watch(run: Run) -> Callable[[Mapping[str, Any]], None]:
    """What writes every number of a line of the log as `phase/name` at its epoch; lines that are there come first.

    Events of an earlier attempt are replaced: a training that goes on writes the lines after its checkpoint again.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise RunError("--tensorboard: needs the extra: pip install 'hourglass[tensorboard]'") from error
    folder = run.folder / FOLDER
    for old in folder.glob("events.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))

    def write(entry: Mapping[str, Any]) -> None:
        for name, value in entry.items():
            if name != "epoch" and isinstance(value, int | float):
                writer.add_scalar(f"{entry['phase']}/{name}", value, entry["epoch"])
        writer.flush()

    for entry in run.metrics():
        write(entry)
    return write
