"""Mosec: its Rust front end batches; raw float32 in and out. POST /inference."""

import os
import sys

from mosec import Server, Worker

from benchmarks.peers.encoder import Encoder, arguments


class EncoderWorker(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        self.encoder = Encoder(os.environ["ENCODER"])

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self.encoder.run_bytes(data)


if __name__ == "__main__":
    options = arguments("Mosec")
    os.environ["ENCODER"] = options.encoder
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(options.port), "--log-level", "warning"]
    server = Server()
    server.append_worker(EncoderWorker, num=options.workers, max_batch_size=64, max_wait_time=1)
    server.run()
