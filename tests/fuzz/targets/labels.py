"""bytes of labels.json -> labels that can be written back, or PackageError"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service import labels
from service.errors import PackageError
from service.plans import LABEL


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    (folder / "tiny").mkdir()
    path = folder / "tiny" / labels.FILE

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = labels.read(folder, "tiny")
        except PackageError as error:
            assert len(str(error)) < 4096, f"{len(str(error))} characters of text"
            return
        for label, versions in found.items():
            assert LABEL.fullmatch(label)
            assert versions
            assert all(1 <= version <= 999_999_999 for version in versions)

    yield one


def seeds() -> dict[str, bytes]:
    return {
        "good": b'{"stable": [3, 2], "canary": [4]}',
        "empty": b"{}",
        "numbers": b'{"stable": [1e400, NaN, true, -1, 0]}',
        "deep": b"[" * 3000,
        **{f"deep_{depth}": b'{"a": ' + b"[" * depth + b"]" * depth + b"}" for depth in (300, 600, 900, 960)},
        "long_number": b'{"stable": [' + b"9" * 5000 + b"]}",
        "surrogate": b'{"\\ud800": [1]}',
    }
