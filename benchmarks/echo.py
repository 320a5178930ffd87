"""The limit of a transport: the service's own, with a handler that answers every message with the same bytes.

python -m benchmarks.echo completion-queue|threaded THREADS RESPONSE_BYTES   # prints its port; ends with its stdin
"""

from __future__ import annotations

import os
import sys
from typing import Any

from prometheus_client import CollectorRegistry

from service import grpc_core
from service.calls import Call, Method
from service.metrics import Metrics


class _Bytes:
    """What a transport asks of a message, for bytes that are there already."""

    def __init__(self, content: bytes) -> None:
        self.SerializeToString = lambda: content


def main(kind: str, threads: int, response_bytes: int) -> None:
    grpc_core.poll_connections(os.environ)
    from service.completion_queue import CompletionQueueTransport
    from service.threaded import ThreadedTransport
    from service.transport import Limits, Transport

    response: Any = _Bytes(bytes(response_bytes))

    def answer(request: bytes, call: Call) -> None:
        call.answer(lambda: response)

    limits = Limits(max_concurrent_requests=4096, max_message_bytes=16 << 20, max_stream_requests=256)
    metrics = Metrics(CollectorRegistry())
    transport: Transport
    if kind == "threaded":
        transport = ThreadedTransport(threads=threads, limits=limits, metrics=metrics)
    else:
        transport = CompletionQueueTransport(limits=limits, metrics=metrics)
    methods: dict[str, Method[Any]] = {
        "Encode": Method(parse=bytes, handle=answer),
        "Stream": Method(parse=bytes, handle=answer, stream=True),
    }
    transport.add_service("autoencoder.v1.AutoencoderService", methods)
    print(transport.bind("127.0.0.1:0"), flush=True)
    transport.start()
    sys.stdin.read()
    transport.stop(1.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
