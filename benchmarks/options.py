"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--rounds", type=_rounds, default=default, metavar="N", help="of which medians are taken (default: %(default)s)"
    )


def _rounds(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text!r}")
    return count
