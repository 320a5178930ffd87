"""Ray Serve over HTTP, with its dynamic batching. Raw float32 in and out. POST /."""

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.encoder import Encoder, arguments


@serve.deployment
class EncoderDeployment:
    def __init__(self, path: str) -> None:
        self.encoder = Encoder(path)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
    async def encode(self, bodies: list[bytes]) -> list[bytes]:
        return self.encoder.run_bytes(bodies)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.encode(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    options = arguments("Ray Serve")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # As many processors as its actors ask for: the kernel shares out the real ones.
    ray.init(num_cpus=options.workers + 4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port}, logging_config={"enable_access_log": False})
    deployment = EncoderDeployment.options(num_replicas=options.workers, max_ongoing_requests=512)
    serve.run(deployment.bind(options.encoder))
    stop.wait()
    serve.shutdown()
    ray.shutdown()
