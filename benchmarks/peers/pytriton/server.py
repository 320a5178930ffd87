"""PyTriton: Triton's own gRPC front end and dynamic batcher, with the model in Python behind them.

Needs Debian's Python 3.11: Triton's Python backend is linked against the system's libpython3.11. The batcher is the
default one, which takes what has come and does not wait; delays, preferred sizes and larger pools changed nothing.
"""

import logging

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.encoder import Encoder, Floats, arguments, free_port

options = arguments("PyTriton")
encoder = Encoder(options.encoder)
logging.disable(logging.INFO)


@batch
def infer(rows: Floats) -> dict[str, Floats]:
    return {"latents": encoder.run(rows)}


config = TritonConfig(
    grpc_address="127.0.0.1",
    grpc_port=options.port,
    http_address="127.0.0.1",
    http_port=free_port(),
    allow_metrics=False,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="encoder",
        infer_func=infer,
        inputs=[Tensor(name="rows", dtype=np.float32, shape=encoder.row_shape)],
        outputs=[Tensor(name="latents", dtype=np.float32, shape=encoder.latent_shape)],
        config=ModelConfig(max_batch_size=256, batcher=DynamicBatcher()),
        strict=False,
    )
    triton.serve()
