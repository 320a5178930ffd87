"""bytes of model.json -> a package that holds what its manifest says, or PackageError"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service import packages, plans
from service.errors import PackageError
from tests import tiny


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    directory = tiny.write(folder)
    path = directory / packages.MANIFEST

    def one(data: bytes) -> None:
        path.write_bytes(data)
        plans.signature(directory)
        try:
            package = packages.read(directory)
        except PackageError as error:
            assert len(str(error)) < 4096, f"{len(str(error))} characters of text"
            return
        assert (package.manifest.name, package.manifest.version) == ("tiny", 1)
        packages.check_golden(package, tiny.encode, tiny.decode)

    yield one


def seeds() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        text = (tiny.write(Path(folder)) / packages.MANIFEST).read_text()
    facts = json.loads(text)
    files = [{"name": "encoder.onnx", "sizeBytes": float("inf")}]
    return {
        "good": json.dumps(facts).encode(),
        "infinite_size": json.dumps(facts | {"files": files}).encode(),
        "deep": b"[" * 3000,
        "deep_field": b'{"input": ' * 900,
        "long_number": b'{"version": ' + b"9" * 5000 + b"}",
        "time": json.dumps({"createTime": "0000-02-30T99:00:00Z", "version": 1e400}).encode(),
        "surrogate": b'{"name": "\\ud800"}',
        "long_name": json.dumps({"name": "n" * 8000}).encode(),
    }
