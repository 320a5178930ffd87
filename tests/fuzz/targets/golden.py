"""bytes of golden.npz -> arrays of the manifest's shapes, or PackageError"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from service import packages
from service.errors import PackageError
from tests import tiny


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    directory = tiny.write(folder)
    manifest = directory / packages.MANIFEST
    facts = json.loads(manifest.read_text())
    (listed,) = [file for file in facts["files"] if file["name"] == packages.GOLDEN]

    def one(data: bytes) -> None:
        (directory / packages.GOLDEN).write_bytes(data)
        listed.update(sha256=hashlib.sha256(data).hexdigest(), sizeBytes=str(len(data)))
        manifest.write_text(json.dumps(facts))
        try:
            golden = packages.read(directory).golden
        except PackageError as error:
            assert error.file == packages.GOLDEN, error
            return
        count = len(golden.rows)
        assert golden.rows.shape == golden.reconstructions.shape == (count, *tiny.ROW_SHAPE)
        assert golden.latents.shape == (count, tiny.LATENT)
        assert all(np.isfinite(array).all() for array in (golden.rows, golden.latents, golden.reconstructions))

    yield one


def _zip(**members: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content)
    return target.getvalue()


def _npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def seeds() -> dict[str, bytes]:
    rows = np.zeros((1, *tiny.ROW_SHAPE), np.float32)
    latents = np.zeros((1, tiny.LATENT), np.float32)
    array = io.BytesIO()
    np.save(array, rows)
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (17179869184,), }"
    objects = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    return {
        "good": tiny.npz(rows=rows, latents=latents, reconstructions=rows),
        "compressed": _zip(rows=array.getvalue(), latents=array.getvalue(), reconstructions=array.getvalue()),
        "npy": array.getvalue(),
        "huge": _zip(rows=_npy(huge), latents=b"", reconstructions=b""),
        "objects": _zip(rows=_npy(objects, b"\x80\x04."), latents=b"", reconstructions=b""),
        "expression": _zip(rows=_npy("((((((((" * 12), latents=b"", reconstructions=b""),
    }
