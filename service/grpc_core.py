"""What is known of the grpcio that is installed, and how its core is told to do its network I/O. Imports no grpc."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.metadata import version

# The versions whose private layers, and names of experiments, are known to be these.
OLDEST, BEFORE = (1, 81), (1, 86)
KNOWN = f"{OLDEST[0]}.{OLDEST[1]} up to, without, {BEFORE[0]}.{BEFORE[1]}"

_VARIABLE = "GRPC_EXPERIMENTS"
_POLLED_LISTENER = "-event_engine_listener"


def is_known() -> bool:
    release = tuple(int(part) for part in version("grpcio").split(".")[:2])
    return OLDEST <= release < BEFORE


def poll_connections(environment: MutableMapping[str, str]) -> None:
    """Have the connections of servers read and written by the threads that poll the completion queue.

    By default threads of grpc's own do it, and every call costs two hand-offs more. grpc reads the variable when it is
    imported, so this comes before; a variable that is set already is left as it is.
    """
    if is_known():
        environment.setdefault(_VARIABLE, _POLLED_LISTENER)
