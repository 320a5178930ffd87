"""Which versions of which models are on disk, and which of them are to be served. Light: a supervisor needs it too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import files
from service.errors import PackageError

MANIFEST = "model.json"
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
LABEL = re.compile(r"[a-z][a-z0-9-]{0,62}")

MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How many versions of each model are served, the largest first; 0 for all."""

    latest: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """`all` or `latest:N`. Raises ValueError."""
        if text == "all":
            return cls()
        kind, _, count = text.partition(":")
        if kind != "latest" or not re.fullmatch(r"[1-9][0-9]{0,5}", count):
            raise ValueError(f"must be all or latest:N with N at least 1; got {text}")
        return cls(latest=int(count))

    def choose(self, versions: Iterable[int]) -> set[int]:
        return set(sorted(versions)[-self.latest :])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a process is to serve of one model: versions in ascending order, and the version of each label.

    `spares`: versions to try, in this order, in place of those that are refused at the start.
    """

    name: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    spares: tuple[int, ...] = ()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Plan:
        """From what JSON made of `asdict(plan)`."""
        return cls(
            name=facts["name"],
            versions=tuple(facts["versions"]),
            labels=dict(facts["labels"]),
            spares=tuple(facts["spares"]),
        )


def find(models: Path) -> dict[str, list[int]]:
    """The versions of each model under `models`, ascending; what does not look like a package is left out.

    Raises PackageError where a directory cannot be read.
    """
    if not models.is_dir():
        raise PackageError(str(models), "is not a directory of model packages")
    try:
        found = {
            model.name: sorted(
                int(version.name) for version in model.iterdir() if VERSION.fullmatch(version.name) and version.is_dir()
            )
            for model in sorted(models.iterdir())
            if NAME.fullmatch(model.name) and model.is_dir()
        }
    except OSError as error:
        raise PackageError(str(error.filename or models), f"cannot be read: {error.strerror}") from error
    return {name: versions for name, versions in found.items() if versions}


Signature = tuple[tuple[str | int, ...], ...]


def signature(directory: Path) -> Signature | None:
    """Tells two states of a package apart without reading all of it; None while it is not complete."""
    try:
        sizes = listed_sizes(files.read(directory, MANIFEST, MAX_MANIFEST_BYTES))
        stats = {name: (directory / name).stat() for name in (MANIFEST, *sizes)}
    except (PackageError, OSError, ValueError):
        return None
    if any(stats[name].st_size != size for name, size in sizes.items()):
        return None
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items()))


def listed_sizes(manifest: bytes) -> dict[str, int]:
    """The bytes of each file that a manifest lists; its other rules are for `packages`. Raises ValueError."""
    try:
        return {str(file["name"]): int(file["sizeBytes"]) for file in json.loads(manifest)["files"]}
    except (LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"lists no files: {error!r}") from error
