"""BentoML, with its adaptive batching. Raw float32 in and out, by a descriptor for them. POST /encode.

Access log, metrics and traces of requests are off; uvloop and httptools are installed. Traces alone would double the
processor time of a request.
"""

import os
import sys

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.encoder import Encoder, arguments


class Bodies(IORootModel[list[bytes]]):
    """One request's body; many in a batch, for lists are what BentoML joins and splits."""

    __root_input__ = True

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "Bodies":
        return cls.model_construct(root=[await request.body()])

    @classmethod
    async def to_http_response(cls, obj: list[bytes], serde: object) -> Response:
        return Response(obj[0], media_type="application/octet-stream")


@bentoml.service(
    workers=int(os.environ.get("WORKERS", "1")),
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": "encode"},
)
class EncoderService:
    def __init__(self) -> None:
        self.encoder = Encoder(os.environ["ENCODER"])

    @bentoml.api(input_spec=Bodies, output_spec=Bodies, batchable=True, max_batch_size=64, max_latency_ms=10_000)
    async def encode(self, bodies: list[bytes]) -> list[bytes]:
        return self.encoder.run_bytes(bodies)


if __name__ == "__main__":
    options = arguments("BentoML")
    os.environ |= {"ENCODER": options.encoder, "WORKERS": str(options.workers), "BENTOML_DO_NOT_TRACK": "True"}
    where = ["--host", "127.0.0.1", "--port", str(options.port)]
    target = "benchmarks.peers.bentoml.server:EncoderService"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", target, *where])
