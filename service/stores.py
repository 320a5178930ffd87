"""Where model packages are: in a directory, or in object storage with copies in a cache (`service.objects`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from service import labels as label_files
from service import plans
from service.labels import Labels
from service.plans import Signature

SCHEME = "://"


class Store(Protocol):
    """`<name>/<version>/` with the files of a package, and `<name>/labels.json`. PackageError where it cannot be had.

    `find` looks; `signature` and `labels` tell what was there at the last look. One thread at a time changes what is
    served: it looks first, then asks them. Any may call `find` and `package`.
    """

    def find(self, *, starting: bool = False) -> dict[str, list[int]]:
        """The versions of each model, ascending. `starting`: what was there before will do where nothing can be had."""

    def signature(self, name: str, version: int) -> Signature | None:
        """Tells two states of a package apart without reading all of it; None while it is not complete."""

    def labels(self, name: str) -> Labels:
        """Empty where there are none."""

    def write_labels(self, name: str, labels: Labels) -> None: ...

    def package(
        self, name: str, version: int, *, starting: bool, stop: Callable[[], bool]
    ) -> AbstractContextManager[Path]:
        """A directory with the package, which nobody replaces during the block. Given up when `stop()` is true.
        `starting`: as in `find`."""

    def trim(self, serving: Mapping[str, Collection[int]]) -> None:
        """Keep no copies but of these versions."""


class Directory:
    """Packages in a directory are read where they are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, *, starting: bool = False) -> dict[str, list[int]]:
        return plans.find(self._path)

    def signature(self, name: str, version: int) -> Signature | None:
        return plans.signature(self._path / name / str(version))

    def labels(self, name: str) -> Labels:
        return label_files.read(self._path, name)

    def write_labels(self, name: str, labels: Labels) -> None:
        label_files.write(self._path, name, labels)

    @contextmanager
    def package(self, name: str, version: int, *, starting: bool, stop: Callable[[], bool]) -> Iterator[Path]:
        yield self._path / name / str(version)

    def trim(self, serving: Mapping[str, Collection[int]]) -> None:
        pass


def open_store(
    models: str, *, cache: str, timeout_s: float, on_call: Callable[[bool, int], None] = lambda well, read_bytes: None
) -> Store:
    """The store of `--models`, with `--model-cache` and `--store-timeout-s`, which only object storage has; `on_call`
    is told of each call to it whether it went well, and how many bytes it read.

    Raises StartError where its library is missing or the cache cannot be used.
    """
    if SCHEME not in models:
        return Directory(Path(models))
    # Not before it is needed: a directory does without fsspec.
    from service import objects

    return objects.ObjectStore(models, cache=Path(cache), timeout_s=timeout_s, on_call=on_call)


def check_url(models: str) -> None:
    """Raises ValueError, without the value: it has what must not be logged."""
    _, scheme, rest = models.partition(SCHEME)
    if scheme and ("@" in rest.partition("/")[0] or "?" in rest):
        raise ValueError("must be a URL without user, password or query: credentials come from the environment")
