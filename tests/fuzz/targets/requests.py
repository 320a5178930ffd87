"""an RPC's number and the bytes of its request -> an answer that is right, or a status, of AutoencoderService"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autoencoder.v1 import autoencoder_pb2 as pb
from service import tensors
from tests import tiny
from tests.fuzz.serving import close, served

RPCS = ("Encode", "Decode", "Reconstruct", "Denoise", "Interpolate", "GetModel", "ListModels")
IMAGE = tensors.Spec(row_shape=tiny.ROW_SHAPE, is_image=True)
VECTOR = tensors.Spec(row_shape=(tiny.LATENT,), is_image=False)


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    with served(folder) as subject:

        def one(data: bytes) -> None:
            name = RPCS[data[0] % len(RPCS)] if data else RPCS[0]
            (call,) = subject.ask(subject.native[name], data[1:])
            if call.answered is not None:
                check(name, data[1:], call.answered)
            # Whatever was sent before, a good request gets its answer.
            (good,) = subject.ask(subject.native["Encode"], encode(1))
            assert good.answered is not None, good.failed
            check("Encode", encode(1), good.answered)

        yield one


def check(name: str, sent: bytes, got: bytes) -> None:
    """Whether the answer is what numpy makes of the request."""
    with np.errstate(all="ignore"):
        if name == "Encode":
            request, answer = pb.EncodeRequest.FromString(sent), pb.EncodeResponse.FromString(got)
            same(answer.latents, tiny.encode(sent_rows(request.rows, IMAGE)))
        elif name == "Decode":
            latents = pb.DecodeRequest.FromString(sent).latents
            same(pb.DecodeResponse.FromString(got).rows, tiny.decode(sent_rows(latents, VECTOR)))
        elif name in ("Reconstruct", "Denoise"):
            rows = sent_rows(pb.ReconstructRequest.FromString(sent).rows, IMAGE)
            same(pb.ReconstructResponse.FromString(got).rows, tiny.decode(tiny.encode(rows)))


def sent_rows(sent: pb.Tensor, spec: tensors.Spec) -> tensors.Rows:
    return tensors.as_float32(tensors.decode("rows", sent, spec))


def same(got: pb.Tensor, expected: tensors.Rows) -> None:
    """Compare where the numbers are of a size that float16 has and in which float32 does not cancel."""
    values = np.frombuffer(got.data, "<f2" if got.dtype == 2 else "<f4").reshape(tuple(got.shape))
    assert values.shape == expected.shape
    if np.isfinite(expected).all() and np.abs(expected).max() < 1e3 and got.dtype != 2:
        scale = max(1.0, float(np.abs(expected).max()))
        close(values / scale, expected / scale)


def tensor(array: Any) -> pb.Tensor:
    return pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=array.shape, data=array.tobytes())


def selector(**fields: str) -> pb.ModelSelector:
    return pb.ModelSelector(**({"name": "tiny"} | fields))


def encode(count: int) -> bytes:
    return pb.EncodeRequest(model=selector(), rows=tensor(tiny.rows(count))).SerializeToString()


def requests() -> dict[str, tuple[str, Any]]:
    """A good request of each kind, with its RPC."""
    rows, latents = tensor(tiny.rows(2)), tensor(tiny.encode(tiny.rows(2)))
    bytes_ = pb.Tensor(dtype="DATA_TYPE_UINT8", shape=(1, 4, 4), data=bytes(range(16)))
    pair, latent_pair = pb.TensorPair(start=rows, end=rows), pb.TensorPair(start=latents, end=latents)
    walk = pb.InterpolateRequest(model=selector(), latents=latent_pair, return_latents=True)
    walk.weights.values.extend([0.0, 0.25, 1.5])
    return {
        "encode": ("Encode", pb.EncodeRequest(model=selector(), rows=rows)),
        "encode_half": ("Encode", pb.EncodeRequest(model=selector(version="1"), rows=rows, output_dtype=2)),  # type: ignore[arg-type]
        "encode_label": ("Encode", pb.EncodeRequest(model=selector(version="stable"), rows=bytes_)),
        "decode": ("Decode", pb.DecodeRequest(model=selector(), latents=latents)),
        "reconstruct": ("Reconstruct", pb.ReconstructRequest(model=selector(), rows=rows)),
        "denoise": ("Denoise", pb.DenoiseRequest(model=selector(), rows=bytes_)),
        "interpolate": ("Interpolate", pb.InterpolateRequest(model=selector(), rows=pair, steps=3)),
        "interpolate_latents": (
            "Interpolate",
            pb.InterpolateRequest(
                model=selector(), latents=latent_pair, steps=2, method="INTERPOLATION_METHOD_SPHERICAL"
            ),
        ),
        "huge": (
            "Reconstruct",
            pb.ReconstructRequest(model=selector(), rows=tensor(np.full((1, 4, 4), 3e38, np.float32))),
        ),
        "interpolate_weights": ("Interpolate", walk),
        "card": ("GetModel", pb.GetModelRequest(model=selector())),
        "cards": ("ListModels", pb.ListModelsRequest()),
        "unknown_model": ("GetModel", pb.GetModelRequest(model=selector(name="other"))),
        "unknown_version": ("GetModel", pb.GetModelRequest(model=selector(version="7"))),
        "unknown_label": ("GetModel", pb.GetModelRequest(model=selector(version="canary"))),
    }


def seeds() -> dict[str, bytes]:
    return {name: bytes([RPCS.index(rpc)]) + made.SerializeToString() for name, (rpc, made) in requests().items()}
