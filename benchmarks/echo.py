"""The transport's limit: grpcio's public threaded server with a handler that does nothing.

python -m benchmarks.echo THREADS RESPONSE_BYTES     # prints its port; ends with its standard input
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def main(threads: int, response_bytes: int) -> None:
    response = bytes(response_bytes)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, context: response
    )
    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("autoencoder.v1.AutoencoderService", {"Encode": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
