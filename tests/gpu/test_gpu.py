"""The GPU path on a real GPU: the same answers as the CPU, on the device that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import packages
from service.devices import CPU, CUDA, Device, choose_device
from service.errors import StartError
from service.session import OnnxSession, batch_sizes
from tests.integration.serving import ServerProcess
from tests.integration.test_service import array, tensor

pytestmark = pytest.mark.gpu

MODELS = Path(__file__).parents[2] / "models"
MAX_BATCH_ROWS = 64


@pytest.fixture(scope="module")
def cuda() -> Device:
    try:
        return choose_device("cuda")
    except StartError as error:
        pytest.skip(str(error))


@pytest.fixture(params=packages.find(MODELS), ids=lambda path: path.parent.name)
def package(request: pytest.FixtureRequest) -> packages.Package:
    return packages.read(request.param)


@pytest.fixture
def sessions(package: packages.Package, cuda: Device) -> Iterator[tuple[OnnxSession, OnnxSession]]:
    gpu, cpu = (
        OnnxSession(package, device, threads=1, max_batch_rows=MAX_BATCH_ROWS)
        for device in (cuda, Device(provider=CPU))
    )
    yield gpu, cpu
    gpu.close()
    cpu.close()


def test_every_model_gives_on_the_gpu_what_it_gives_on_the_cpu(
    package: packages.Package, sessions: tuple[OnnxSession, OnnxSession]
) -> None:
    gpu, cpu = sessions
    random = np.random.default_rng(0)
    for size in batch_sizes(MAX_BATCH_ROWS):
        for _ in range(2):  # the second run uses the buffers of the first
            rows = random.random((size, *package.input_shape), dtype=np.float32)
            latents = cpu.encode(rows)
            np.testing.assert_allclose(gpu.encode(rows), latents, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(gpu.decode(latents), cpu.decode(latents), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(gpu.reconstruct(rows), cpu.reconstruct(rows), rtol=1e-3, atol=1e-4)


def test_batches_are_padded_to_few_sizes(sessions: tuple[OnnxSession, OnnxSession]) -> None:
    assert [sessions[0].padded_rows(count) for count in (1, 3, 33, 64)] == [1, 4, 64, 64]


def test_auto_takes_the_gpu(cuda: Device) -> None:
    assert choose_device("auto").provider == CUDA


def test_a_memory_limit_is_taken(package: packages.Package, cuda: Device) -> None:
    device = choose_device("cuda", gpu_memory_limit_bytes=1 << 30)
    session = OnnxSession(package, device, threads=1, max_batch_rows=MAX_BATCH_ROWS)
    packages.check_golden(package, session.encode, session.decode)
    session.close()


def test_tensorrt_keeps_its_engines_and_gives_the_golden_outputs_from_them(
    package: packages.Package, tmp_path: Path
) -> None:
    try:
        device = choose_device("tensorrt", engine_cache=tmp_path)
    except StartError as error:
        pytest.skip(str(error))
    kept = []
    for _ in range(2):
        session = OnnxSession(package, device, threads=1, max_batch_rows=MAX_BATCH_ROWS)
        packages.check_golden(package, session.encode, session.decode)
        session.close()
        kept.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")})
    assert kept[0]
    assert kept[0] == kept[1], "the second session compiles nothing"


def test_the_service_says_that_it_serves_on_the_gpu(cuda: Device) -> None:
    with ServerProcess(MODELS, device="cuda") as server, server.channel() as channel:
        assert server.wait_for("serving")["device"] == CUDA
        stub = AutoencoderServiceStub(channel)
        for card in stub.ListModels(pb.ListModelsRequest(), timeout=60).models:
            assert card.runtime.provider == CUDA
            rows = np.random.default_rng(1).random((5, *card.input.row_shape), dtype=np.float32)
            selector = pb.ModelSelector(name=card.name)
            response = stub.Encode(pb.EncodeRequest(model=selector, rows=tensor(rows)), timeout=60)
            assert array(response.latents).shape == (5, *card.latent.row_shape)
        assert server.metric("autoencoder_batch_padding_rows_total") > 0
