"""Checkpoint files: named tensors with facts beside them, in safetensors, whole or refused.

The header holds the facts as JSON and a SHA-256 over facts and tensors. A file is written beside its place, flushed to
the disk and renamed, so that a reader sees the old one or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.errors import RunError

SUFFIX = ".safetensors"
_FACTS, _CHECKSUM = "facts", "sha256"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write or replace the file at `path`; `facts` is anything that JSON can hold.

    Raises RunError where the disk does not take it; what was there stays.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(facts)
    staging = path.with_name(f".{path.stem}.new")
    try:
        save_file(plain, staging, metadata={_FACTS: text, _CHECKSUM: _checksum(plain, text)})
        with open(staging, "rb+") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error}") from error
    os.replace(staging, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the facts. Raises RunError where the file is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    text = metadata.get(_FACTS, "{}")
    if metadata.get(_CHECKSUM) != _checksum(tensors, text):
        raise RunError(f"{path}: is not what was written: its checksum differs")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: its facts are not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise RunError(f"{path}: its facts must be a JSON object; got {type(facts).__name__}")
    return tensors, facts


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
