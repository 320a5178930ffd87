"""Both clients behind one face, so that a test holds for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hourglass
from hourglass.__main__ import main
from tests.unit.client.batch_files import Run, write_inputs
from tests.unit.client.fake_service import FakeService, serving

Connect = Callable[..., Any]


class AwaitedClient:
    """AsyncClient with each call in an event loop of its own."""

    def __init__(self, address: str, **options: Any) -> None:
        self._address = address
        self._options = options

    def __getattr__(self, name: str) -> Any:
        async def run(*args: Any, **arguments: Any) -> Any:
            async with hourglass.AsyncClient(self._address, **self._options) as client:
                return await getattr(client, name)(*args, **arguments)

        return lambda *args, **arguments: asyncio.run(run(*args, **arguments))


@pytest.fixture(params=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    made: list[hourglass.Client] = []

    def make(address: str, **options: Any) -> Any:
        if request.param == "asyncio":
            return AwaitedClient(address, **options)
        made.append(hourglass.Client(address, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with serving(service) as bound:
        yield bound


@pytest.fixture(scope="module")
def shared_address() -> Iterator[str]:
    """For tests by hypothesis, whose examples share what a fixture gives."""
    with serving(FakeService()) as bound:
        yield bound


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the same rows in every format."""
    monkeypatch.chdir(tmp_path)
    write_inputs()
    return tmp_path


@pytest.fixture
def run(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("HOURGLASS_ADDRESS", address)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["batch", *argv])
        return (code, *capsys.readouterr())

    return call
