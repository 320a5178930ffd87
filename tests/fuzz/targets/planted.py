"""The negative control: a fault behind four bytes that chance does not find, and coverage does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class PlantedError(Exception):
    pass


def one(data: bytes) -> None:
    # One branch a byte, so that each right byte is new coverage.
    if len(data) > 3 and data[0] == 0xB5:  # noqa: SIM102
        if data[1] == 0x0F:  # noqa: SIM102
            if data[2] == 0xD6:  # noqa: SIM102
                if data[3] == 0x99:
                    raise PlantedError("the planted fault")


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    yield one


def seeds() -> dict[str, bytes]:
    return {"zeros": bytes(8)}
