"""KServe's Python server: Open Inference Protocol v2 over gRPC. It has no batching of its own.

Lines a request (access and latency logs) are off. Its gRPC server is one asyncio process whatever --workers says.
"""

import logging

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.logging import KSERVE_LOGGER_NAME

from benchmarks.peers.encoder import Encoder, arguments, free_port


class EncoderModel(Model):
    def __init__(self, path: str) -> None:
        super().__init__("encoder")
        self.encoder = Encoder(path)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        latents = self.encoder.run(payload.inputs[0].as_numpy())
        output = InferOutput(name="latents", shape=list(latents.shape), datatype="FP32")
        output.set_data_from_numpy(latents, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    options = arguments("KServe")
    server = ModelServer(http_port=free_port(), grpc_port=options.port, enable_latency_logging=False)
    logging.getLogger(KSERVE_LOGGER_NAME).setLevel(logging.WARNING)
    server.start([EncoderModel(options.encoder)])
