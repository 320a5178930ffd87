"""Checks what is installed here: no package with a known vulnerability, none with a licence that is not allowed.

python -m deploy.audit [--service pypi|osv|esms] [--only vulnerabilities|licences]        # or: make audit

Vulnerabilities are asked for with pip-audit, by name and exact version, from a service in the network; of what is
pinned in constraints.txt too. Where it cannot be reached, or does not know a package, this fails and says so: what was
not looked at is not sound. Licences are those that the packages state (pip-licenses); which are allowed, and why,
stands in deploy/licences.toml.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "deploy" / "licences.toml"
TOOLS = ROOT / ".venv-audit" / "bin"
# Not of an index: this project.
OWN = ("hourglass", "hourglass-client")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--service", choices=("pypi", "osv", "esms"), default="osv", help="whom to ask (default osv)")
    parser.add_argument("--osv-url", metavar="URL", help="another address of OSV, such as one's own mirror")
    parser.add_argument("--only", choices=("vulnerabilities", "licences"), help="one of the two; both if left out")
    given = parser.parse_args(arguments)
    faults: list[str] = []
    if given.only != "vulnerabilities":
        faults += licence_faults(stated_licences(), tomllib.loads(ALLOWED.read_text()))
    if given.only != "licences":
        extra = ["--osv-url", given.osv_url] if given.osv_url else []
        faults += vulnerability_faults(installed() | pinned(), ["--vulnerability-service", given.service, *extra])
    for fault in faults:
        print(fault, file=sys.stderr)
    print("audit: " + (f"{len(faults)} faults" if faults else "nothing was found"))
    return int(bool(faults))


def installed() -> dict[str, str]:
    """Name to version of what is installed beside this project. Of a local build, such as torch's, the public part."""
    found = {each.metadata["Name"]: each.version.partition("+")[0] for each in distributions()}
    return {name: version for name, version in sorted(found.items()) if name.lower() not in OWN}


def pinned() -> dict[str, str]:
    """Name to version of what constraints.txt names exactly, installed here or not."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def vulnerability_faults(versions: Mapping[str, str], options: Sequence[str]) -> list[str]:
    """A line for each vulnerability, and for each package that could not be looked up."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.writelines(f"{name}=={version}\n" for name, version in versions.items())
        requirements.flush()
        command = [str(TOOLS / "pip-audit"), "--requirement", requirements.name, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [f"vulnerabilities: NOT CHECKED, the service could not be asked: {why}"]
    faults = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for each in dependencies
        for found in each.get("vulns", [])
    ]
    asked = {_same(each["name"]) for each in dependencies if "skip_reason" not in each}
    missed = sorted(name for name in versions if _same(name) not in asked)
    if missed:
        faults.append(f"vulnerabilities: NOT CHECKED, not known to the service: {', '.join(missed)}")
    return faults


def stated_licences() -> dict[str, str]:
    """Name to licence of all that is installed here."""
    command = [str(TOOLS / "pip-licenses"), "--python", sys.executable, "--format", "json", "--from", "mixed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {each["Name"]: each["License"] for each in json.loads(done.stdout)}


def licence_faults(stated: Mapping[str, str], rules: Mapping[str, Any]) -> list[str]:
    """A line for each package whose licence is not allowed."""
    packages = {_same(name): rule for name, rule in rules["packages"].items()}
    faults = []
    for name, licence in sorted(stated.items()):
        exception = packages.get(_same(name))
        if exception is not None and exception["licence"] == licence:
            continue
        if not _allowed(licence, rules["allowed"].keys()):
            faults.append(f"{name}: the licence {licence[:200]!r} is not allowed in deploy/licences.toml")
    return faults


def _allowed(licence: str, allowed: Iterable[str]) -> bool:
    known = set(allowed)
    return all(
        any(choice.strip(" ()") in known for choice in part.split(" OR ")) or part.strip() in known
        for part in re.split(r" AND |;", licence)
    )


def _same(name: str) -> str:
    """What is the same name to an index."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
