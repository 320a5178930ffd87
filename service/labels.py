"""The labels of a model, kept beside its versions: `<models>/<name>/labels.json`.

`{"stable": [3, 2], "canary": [4]}`: each label points at the first version of its list; the others are where it pointed
before, the newest first, for a rollback. A file beside the packages is there after a restart, and for every replica
that serves the same directory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from service import files
from service.errors import PackageError
from service.plans import LABEL, VERSION

FILE = "labels.json"
MAX_BYTES = 1 << 16
_MAX_HISTORY = 16

Labels = dict[str, list[int]]


def read(models: Path, name: str) -> Labels:
    """Empty where there is no file. Raises PackageError where there is one that cannot be used."""
    if not os.path.lexists(models / name / FILE):
        return {}
    return parse(files.read(models / name, FILE, MAX_BYTES))


def parse(content: bytes) -> Labels:
    """Raises PackageError where it cannot be used."""
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PackageError(FILE, f"is not JSON: {error}") from error
    rule = "must be an object of labels, each with a list of versions"
    if not isinstance(labels, dict):
        raise PackageError(FILE, rule)
    for label, versions in labels.items():
        if not (
            LABEL.fullmatch(label)
            and isinstance(versions, list)
            and versions
            and all(type(version) is int and VERSION.fullmatch(str(version)) for version in versions)
        ):
            raise PackageError(FILE, f"{rule}; got {label[:64]!r}: {str(versions)[:64]}")
    return labels


def write(models: Path, name: str, labels: Labels) -> None:
    """Raises PackageError where the file cannot be written; then the old one is as it was."""
    target = models / name / FILE
    try:
        descriptor, staging = tempfile.mkstemp(prefix=".labels-", dir=target.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(text(labels))
                file.flush()
                os.fsync(file.fileno())
            # mkstemp gives the file to its owner alone; other replicas read it too.
            os.chmod(staging, 0o644)
            os.replace(staging, target)
        except BaseException:
            os.unlink(staging)
            raise
    except OSError as error:
        raise PackageError(FILE, f"cannot be written in {target.parent}: {error.strerror}") from error


def text(labels: Labels) -> bytes:
    """The content of the file. Raises PackageError where it would be too large to be read again."""
    kept = {label: versions[:_MAX_HISTORY] for label, versions in sorted(labels.items())}
    content = (json.dumps(kept) + "\n").encode()
    if len(content) > MAX_BYTES:
        raise PackageError(FILE, f"must have at most {MAX_BYTES} bytes; so many labels make {len(content)}")
    return content


def moved(labels: Labels, label: str, version: int) -> Labels:
    """With `label` pointing at `version`."""
    history = labels.get(label, [])
    if history and history[0] == version:
        return labels
    return {**labels, label: [version, *history]}


def current(labels: Labels) -> Mapping[str, int]:
    return {label: versions[0] for label, versions in labels.items()}
