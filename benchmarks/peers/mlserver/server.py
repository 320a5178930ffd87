"""MLServer: Open Inference Protocol v2 over gRPC.

Its adaptive batching stays off, as by default: it joins tensors as lists of Python numbers, which costs this encoder
more processor time a request than a larger batch saves. The model runs in the server's process when there is one worker
(the documentation's parallel_workers=0, which saves a hop), and in a pool of processes when there are more.
"""

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop

from benchmarks.peers.encoder import Encoder, arguments, free_port


class EncoderModel(MLModel):
    async def load(self) -> bool:
        self.encoder = Encoder(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        latents = self.encoder.run(rows.astype(np.float32, copy=False))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("latents", latents)])


if __name__ == "__main__":
    options = arguments("MLServer")
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=free_port(),
        grpc_port=options.port,
        grpc_max_message_length=64 * 2**20,
        metrics_endpoint=None,
        parallel_workers=0 if options.workers == 1 else options.workers,
    )
    model = ModelSettings(
        name="encoder",
        implementation=EncoderModel,
        parameters=ModelParameters(uri=options.encoder),
    )

    async def main() -> None:
        await MLServer(settings).start([model])

    install_uvloop_event_loop()
    asyncio.run(main())
