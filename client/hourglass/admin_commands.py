"""The commands `hourglass admin ...`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from hourglass.admin import AdminClient, ModelVersion

DEFAULT_ADDRESS = "127.0.0.1:50052"

_EPILOG = """\
examples:
  hourglass admin list
  hourglass admin load mnist-conv 4             # beside what is served; without a number: what is new on disk
  hourglass admin label mnist-conv canary 4     # clients ask for mnist-conv/canary
  hourglass admin label mnist-conv stable canary
  hourglass admin rollback mnist-conv stable    # back to the version before
  hourglass admin reload mnist-conv             # the files were replaced
  hourglass admin unload mnist-conv 3

The service listens for these at its --admin-address. Each command prints the versions of the model as they are then.
"""


def add_parsers(add: Callable[..., argparse.ArgumentParser], connection: argparse.ArgumentParser) -> None:
    """`connection`: the flags that say how the service is reached, without --address."""
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument(
        "--address",
        default=os.environ.get("HOURGLASS_ADMIN_ADDRESS") or DEFAULT_ADDRESS,
        help=f"the service's --admin-address (default: HOURGLASS_ADMIN_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    admin = add(
        "admin",
        help="load, label, roll back and unload versions of models",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = admin.add_subparsers(dest="action", metavar="ACTION", required=True, help="what to do")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        return parsers.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}. Prints the versions of the model as they are then.",
            allow_abbrev=False,
            parents=[address, connection],
        )

    listing = action("list", help="all versions, served or not, with their labels and why they failed")
    listing.add_argument("name", metavar="NAME", nargs="?", default="", help="one model; all if left out")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(act=lambda client, a: client.versions(a.name, timeout_s=a.timeout))

    for name, text, act in (
        ("load", "serve a version, or what is new on disk", AdminClient.load),
        ("unload", "serve a version, or the whole model, no more", AdminClient.unload),
        ("reload", "load from disk again what is served, and swap it", AdminClient.reload),
    ):
        command = action(name, help=text)
        command.add_argument("name", metavar="NAME", help="the model")
        command.add_argument("version", metavar="VERSION", nargs="?", help="a number or a label")
        command.set_defaults(act=partial(_versioned, act))

    label = action("label", help="point a label at a version, or delete it")
    label.add_argument("name", metavar="NAME", help="the model")
    label.add_argument("label", metavar="LABEL", help="such as stable")
    version = label.add_mutually_exclusive_group(required=True)
    version.add_argument("version", metavar="VERSION", nargs="?", help="a number or another label")
    version.add_argument("--delete", action="store_true", help="delete the label instead")
    label.set_defaults(act=_label)

    rollback = action("rollback", help="point a label at the version that it pointed at before")
    rollback.add_argument("name", metavar="NAME", help="the model")
    rollback.add_argument("label", metavar="LABEL", help="such as stable")
    rollback.set_defaults(act=lambda client, a: client.rollback(a.name, a.label, timeout_s=a.timeout))
    admin.set_defaults(run=run, connect=AdminClient)


def run(client: AdminClient, arguments: argparse.Namespace) -> None:
    versions: list[ModelVersion] = arguments.act(client, arguments)
    if getattr(arguments, "json", False):
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return
    lines = [("name", "version", "state", "labels", "reason"), *map(_line, versions)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _versioned(act: Callable[..., list[ModelVersion]], client: AdminClient, a: argparse.Namespace) -> Any:
    return act(client, a.name, a.version, timeout_s=a.timeout)


def _label(client: AdminClient, a: argparse.Namespace) -> list[ModelVersion]:
    if a.delete:
        return client.unlabel(a.name, a.label, timeout_s=a.timeout)
    return client.label(a.name, a.label, a.version, timeout_s=a.timeout)


def _line(version: ModelVersion) -> Sequence[str]:
    return version.name, str(version.version), version.state, ",".join(version.labels), version.reason
