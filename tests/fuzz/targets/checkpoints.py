"""bytes of a checkpoint, or facts under a right checksum -> tensors and facts that can be written again, or RunError"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training import checkpoints
from training.errors import RunError

FILE, FACTS = 0, 1


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    path, again = folder / "one.safetensors", folder / "again.safetensors"

    def one(data: bytes) -> None:
        # A checksum is not found by chance: what is behind it gets inputs of its own.
        sealed = bool(data) and data[0] % 2 == FACTS
        path.write_bytes(seal(data[1:].decode(errors="replace")) if sealed else data[1:])
        try:
            tensors, facts = checkpoints.read(path)
        except RunError as error:
            assert str(error).startswith(f"{path}: "), error
            return
        assert isinstance(facts, dict)
        checkpoints.write(again, tensors, facts)
        same, facts_again = checkpoints.read(again)
        # As text: a NaN is not equal to itself.
        assert json.dumps(facts_again) == json.dumps(facts)
        assert same.keys() == tensors.keys()
        for name, value in tensors.items():
            assert (same[name].dtype, same[name].shape) == (value.dtype, value.shape)
            assert torch.equal(same[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))

    yield one


def seal(facts: str) -> bytes:
    """A checkpoint without tensors whose checksum is right for these facts."""
    return container({"__metadata__": {"facts": facts, "sha256": hashlib.sha256(facts.encode()).hexdigest()}})


def container(header: object, content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def seeds() -> dict[str, bytes]:
    tensors = {
        "network.weight": torch.arange(6.0).reshape(2, 3),
        "step": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "chosen": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "good.safetensors")
        checkpoints.write(path, tensors, {"epoch": 3, "losses": [0.5, 0.25]})
        good = path.read_bytes()

    def tensor(dtype: str, shape: list[int], content: bytes) -> bytes:
        return container({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}, content)

    files = {
        "good": good,
        "cut": good[:-1],
        "long_header": (2**63).to_bytes(8, "little") + b"{}",
        "no_checksum": container({}),
        "eight_bits": tensor("F8_E4M3", [2], b"ab"),
        "four_bits": tensor("F4", [2], b"a"),
        "six_bits": tensor("F6_E2M3", [4], b"abc"),
        "huge": tensor("F32", [0, 2**62], b""),
        "many_dimensions": tensor("F32", [1] * 300, b"abcd"),
    }
    facts = {
        "facts": b'{"epoch": 3, "learning_rate": NaN}',
        "facts_list": b"[1]",
        "facts_cut": b'{"epoch": ',
        "facts_deep": b"[" * 8000,
        "facts_long_number": b'{"epoch": ' + b"9" * 5000 + b"}",
        "facts_surrogate": b'{"a": "\\ud800"}',
    }
    return {name: bytes([FILE]) + data for name, data in files.items()} | {
        name: bytes([FACTS]) + data for name, data in facts.items()
    }
