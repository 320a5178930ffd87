"""The command line of the service."""

from __future__ import annotations

import logging
import os
import sys

from service import grpc_core, logs, settings
from service.cores import worker_count
from service.signals import Signals

log = logging.getLogger("service")


def main() -> int:
    # onnxruntime's builds for Linux report to their vendor unless told not to, before they are loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # gRPC's own log is not in the format that was asked for; what it has to say of clients is in the metrics.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    configuration = settings.read(sys.argv[1:], os.environ)
    # For the workers too, which inherit it.
    grpc_core.poll_connections(os.environ)
    human = logs.configure(format=configuration.log_format, level=configuration.log_level)
    for variable, nearest in settings.unread(os.environ).items():
        log.warning("this variable is set, and nothing reads it", extra={"variable": variable, "nearest": nearest})
    workers = worker_count(configuration.workers, configuration.device)
    # Each imports only what it needs: the process that watches over workers has neither grpc nor onnxruntime.
    with Signals() as signals:
        if workers == 1:
            from service import single

            code = single.run(configuration, signals, banner=human)
        else:
            from service.supervisor import Supervisor

            code = Supervisor(configuration, workers, banner=human).run(signals)
    if code == 0:
        log.info("stopped")
    return code


if __name__ == "__main__":
    sys.exit(main())
