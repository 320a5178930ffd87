from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from autoencoder.v1 import autoencoder_pb2_grpc
from tests import tiny
from tests.integration.playing import Playground, copy_models
from tests.integration.serving import ServerProcess


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages `tiny` (versions 1 and 2) and `plain`, which does not denoise."""
    models = tmp_path_factory.mktemp("models")
    tiny.write(models)
    tiny.write(models, version=2)
    tiny.write(models, "plain", denoises=False)
    return models


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_models, "--max-message-bytes", "100000", "--max-queue-rows", "2000") as process:
        yield process
    assert process.process.returncode == 0
    assert not process.other_lines, "everything on stderr is a log line"


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with server.channel() as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> autoencoder_pb2_grpc.AutoencoderServiceStub:
    return autoencoder_pb2_grpc.AutoencoderServiceStub(channel)


@pytest.fixture(scope="session")
def digit_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the real models."""
    models = tmp_path_factory.mktemp("digit-models")
    copy_models(models)
    return models


@pytest.fixture(scope="module")
def playground(digit_models: Path) -> Iterator[Playground]:
    with ServerProcess(digit_models) as process:
        playground = Playground(process.address)
        yield playground
        playground.close()
