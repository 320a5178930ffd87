"""Both clients behind one face, so that a test holds for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hourglass
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
