"""LitServe: an HTTP server process and a worker process, with its batching and its ZeroMQ queue.

Raw float32 in and out. POST /predict.
"""

from typing import Annotated

import litserve
from fastapi import Depends, Request, Response

from benchmarks.peers.encoder import Encoder, arguments


async def raw_body(request: Request) -> bytes:
    return await request.body()


class EncoderAPI(litserve.LitAPI):
    def __init__(self, path: str, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.path = path

    def setup(self, device: str) -> None:
        self.encoder = Encoder(self.path)

    def decode_request(self, request: Annotated[bytes, Depends(raw_body)]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[bytes]:
        return self.encoder.run_bytes(inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    options = arguments("LitServe")
    api = EncoderAPI(options.encoder, max_batch_size=16, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers, fast_queue=True)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False, access_log=False)
