"""The command `hourglass`, quiet: gRPC reads how much of some things it is to log when it is imported."""

from __future__ import annotations

import os


def main() -> int:
    # Its own lines would come between those that are meant for people.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from hourglass.__main__ import main

    return main()
