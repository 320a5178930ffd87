"""Whether an inventory in CycloneDX names exactly what is installed beside the Python that runs this.

PYTHON deploy/inventory.py FILE     # exit code 1, with the differences, where it does not; needs nothing but PYTHON
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any


def installed(found: Iterable[Distribution]) -> dict[str, str]:
    """Versions by normalised name (PEP 503)."""
    return {_normalised(one.metadata["Name"]): one.version for one in found}


def listed(inventory: dict[str, Any]) -> dict[str, str]:
    """Versions by normalised name: of the components, and of what the inventory is of. Raises KeyError for something
    else than an inventory."""
    components = [inventory["metadata"]["component"], *inventory["components"]]
    return {_normalised(one["name"]): one.get("version", "") for one in components}


def differences(inventory: dict[str, Any], found: dict[str, str]) -> list[str]:
    """What is installed and not listed as such, or listed and not installed; but for the thing itself, which need not
    be installed to be described."""
    names = listed(inventory)
    itself = _normalised(inventory["metadata"]["component"]["name"])
    return [
        f"{name}: installed {found.get(name, 'not at all')}, listed {names.get(name, 'not at all')}"
        for name in sorted(found | names)
        if found.get(name) != names.get(name) and not (name == itself and name not in found)
    ]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    found = installed(distributions())
    try:
        wrong = differences(json.loads(path.read_text()), found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: is no inventory in CycloneDX: {error!r}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"{path}: {line}", file=sys.stderr)
    if not wrong:
        print(f"{path}: all {len(found)} packages that are installed, and no other")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
