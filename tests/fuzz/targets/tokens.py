"""bytes of a file of tokens -> grants, or ValueError with the rule"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service import tokens


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    path = folder / "tokens.toml"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = tokens.read(path)
        except ValueError:
            return
        assert found
        for digest, grant in found:
            assert len(digest) == 32
            assert grant.groups <= set(tokens.GROUPS)
            grant.allows("tiny")

    yield one


def seeds() -> dict[str, bytes]:
    digest = hashlib.sha256(b"secret").hexdigest()
    return {
        "good": f'[tokens.a]\nsha256 = "{digest}"\nallow = ["infer"]\nmodels = ["mnist-*"]\n'.encode(),
        "wrong_group": f'[tokens."a.b"]\nsha256 = "{digest}"\nallow = ["all", 1]\n'.encode(),
        "deep": b"a = " + b"[" * 3000,
        "deep_table": b"tokens.a = " + b"{a = " * 500,
        "long_number": b"[tokens.a]\nallow = [0x" + b"f" * 8000 + b"]\n",
    }
