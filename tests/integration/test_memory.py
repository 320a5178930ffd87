"""The service keeps what it needs and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from tests.integration.serving import ROOT, ServerProcess
from tests.integration.test_service import TIMEOUT_S, tensor


def resident_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("transport", ["completion-queue", "threaded"])
def test_memory_stays_flat_while_large_messages_stream(transport: str, tmp_path: Path) -> None:
    """Messages of 800 KB. How many are under way at a time, and so the memory in use, settles in a while; a service that
    kept a tenth of each would go on growing. (The chaos tests look for smaller leaks.)"""
    (tmp_path / "mnist-pca").symlink_to(ROOT / "models" / "mnist-pca")
    request = pb.EncodeRequest(
        model=pb.ModelSelector(name="mnist-pca"),
        rows=tensor(np.random.default_rng(0).random((256, 28, 28), np.float32)),
    )

    def requests(count: int) -> Iterator[pb.StreamRequest]:
        return (pb.StreamRequest(id=number, encode=request) for number in range(count))

    arguments = ("--transport", transport, "--threads", "1", "--max-stream-requests", "8")
    with ServerProcess(tmp_path, *arguments) as server, server.channel() as channel:
        stub = AutoencoderServiceStub(channel)

        def stream(count: int) -> int:
            answers = sum(
                answer.WhichOneof("response") == "encode"
                for answer in stub.Stream(requests(count), timeout=4 * TIMEOUT_S)
            )
            assert answers == count
            return resident_bytes(server.process.pid)

        sizes = [stream(200)]
        calm = 0
        while calm < 2 and len(sizes) < 15:
            sizes.append(stream(200))
            calm = calm + 1 if sizes[-1] <= max(sizes[:-1]) + (1 << 20) else 0
    assert calm == 2, f"it goes on growing: {[size >> 20 for size in sizes]} MiB"
