"""The service with a leak, which the measurement of leaks has to find: python -m tests.chaos.leaking FLAGS..."""

from __future__ import annotations

import os
import sys
from typing import Any

from service import grpc_core

grpc_core.poll_connections(os.environ)

from service import __main__, rpcs, stream_rpcs  # noqa: E402
from service.calls import Method, perform  # noqa: E402

_KEPT: list[bytes] = []


def _perform(method: Method[Any], request: bytes, call: Any) -> None:
    _KEPT.append(bytes(bytearray(request)))
    perform(method, request, call)


if __name__ == "__main__":
    for module in (rpcs, stream_rpcs):
        vars(module)["perform"] = _perform
    sys.exit(__main__.main())
