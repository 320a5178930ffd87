"""As in the service's own processes: grpc is told before it is imported."""

from __future__ import annotations

import os

from service import grpc_core

grpc_core.poll_connections(os.environ)
