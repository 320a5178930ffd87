"""an RPC's number and the bytes of its request -> an answer or a status, of the Open Inference Protocol"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from service import inference_messages
from tests import tiny
from tests.fuzz.serving import close, served
from tests.integration.inference import arrays, message, request

RPCS = (
    "ModelInfer", "ModelStreamInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "RepositoryIndex", "RepositoryModelLoad",
)  # fmt: skip


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    with served(folder) as subject:

        def one(data: bytes) -> None:
            name = RPCS[data[0] % len(RPCS)] if data else RPCS[0]
            (call,) = subject.ask(subject.inference[name], data[1:])
            if name == "ModelStreamInfer" and call.answered is not None:
                answer = inference_messages.StreamInferResponse.FromString(call.answered)
                assert not answer.error_message.startswith("internal error"), answer.error_message
                assert answer.infer_response.id == inference_messages.InferRequest.FromString(data[1:]).id
            (good,) = subject.ask(subject.inference["ModelInfer"], GOOD)
            assert good.answered is not None, good.failed
            latents = arrays(inference_messages.InferResponse.FromString(good.answered))["latents"]
            close(latents, tiny.encode(tiny.rows(1)))

        yield one


GOOD: bytes = request("tiny.encode", {"rows": tiny.rows(1)}).SerializeToString()


def seeds() -> dict[str, bytes]:
    rows = tiny.rows(2)
    latents = tiny.encode(rows)
    typed = request("tiny.encode", {"rows": rows}, typed=True, id="7", parameters={"timeout": 5_000_000})
    many = request("tiny.encode", {"rows": rows[:1]}, typed=True)
    del many.inputs[0].shape[:]
    many.inputs[0].shape.extend([2**62] * 300)
    ends = {"start": rows, "end": rows}
    half = {"rows": rows.astype(np.float16)}
    infers = {
        "encode": request("tiny.encode", {"rows": rows}),
        "typed": typed,
        "half": request("tiny.encode", half, parameters={"output_datatype": "FP16"}, model_version="1"),
        "bytes": request("tiny.denoise", {"rows": np.arange(16, dtype=np.uint8).reshape(1, 4, 4)}, typed=True),
        "decode": request("tiny.decode", {"latents": latents}, model_version="stable"),
        "reconstruct": request("tiny.reconstruct", {"rows": rows}, outputs=("novelties", "reconstructions")),
        "interpolate": request("tiny.interpolate", ends, parameters={"steps": 3, "method": "spherical"}),
        "weights": request(
            "tiny.interpolate",
            {"start_latents": latents, "end_latents": latents, "weights": np.array([0, 0.5], np.float32)},
        ),
        "many_dimensions": many,
    }
    final = request("tiny.encode", {"rows": rows}, id="a", parameters={"triton_enable_empty_final_response": True})
    others = {
        "stream": (1, final),
        "ready": (2, message("ModelReadyRequest")(name="tiny.encode")),
        "metadata": (3, message("ModelMetadataRequest")(name="tiny.interpolate", version="1")),
        "config": (4, message("ModelConfigRequest")(name="tiny.encode")),
        "statistics": (5, message("ModelStatisticsRequest")(name="tiny.denoise")),
        "statistics_of_all": (5, message("ModelStatisticsRequest")()),
        "index": (6, message("RepositoryIndexRequest")()),
        "load": (7, message("RepositoryModelLoadRequest")(model_name="tiny")),
    }
    everything = {name: (0, made) for name, made in infers.items()} | others
    return {
        name: bytes([number]) + made.SerializeToString(deterministic=True)
        for name, (number, made) in everything.items()
    }
