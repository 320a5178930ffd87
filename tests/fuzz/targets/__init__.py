"""What is fuzzed: one module a target.

Each has `opened(folder)`, a context manager whose value takes the bytes of one input and raises where a property does
not hold, and `seeds()`, inputs by name to begin with. `folder` is empty and the target's own. The first line of the
module's docstring is what `--help` says of it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "tensors", "requests", "stream", "inference", "admin", "answers", "manifest", "golden", "graph", "labels", "tokens",
    "certificates", "recipes", "checkpoints",
)  # fmt: skip

# Whose coverage leads the fuzzer: what is fuzzed; and libraries in Python that it reads with, which take seconds to
# prepare.
OWN = ("service", "training", "hourglass", "tests.fuzz.targets")
LIBRARIES = (
    "google.protobuf.json_format",
    "google.protobuf.internal.well_known_types",
    "numpy.lib",
    "zipfile",
    "tomllib",
    "json",
)


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
