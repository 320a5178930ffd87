"""What libraries are told before they are imported: grpc as in the service's own processes; and torch, in the tests and
in the processes that they start, to compute the small things here on one thread, which is faster than on several."""

from __future__ import annotations

import os

from service import grpc_core

grpc_core.poll_connections(os.environ)
os.environ.setdefault("OMP_NUM_THREADS", "1")
