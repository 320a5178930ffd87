"""Two servers as one: calls spread evenly, and a server is drained and replaced under load without a failed call.

Behind a name with several addresses, over which the client takes turns (a headless Service), and behind Envoy.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hourglass import Client
from hourglass.channel import Endpoint
from tests import tiny
from tests.integration.names import HeadlessName
from tests.integration.serving import ROOT, ServerProcess

FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
CALLERS = 4
CALLS = 600
WAIT_S = 60.0
LAME_DUCK_S = 1.5
ENCODED = 'autoencoder_rpc_requests_total{code="OK",method="/autoencoder.v1.AutoencoderService/Encode"}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


class Callers:
    """Threads that call with rows unlike any other; an answer that is wrong, or none, is raised."""

    def __init__(self, client: Client, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._pool = pool
        self._seeds = itertools.count()

    def call(self) -> None:
        rows = tiny.rows(1, seed=next(self._seeds))
        latents = self._client.encode("tiny", rows, timeout_s=WAIT_S)
        np.testing.assert_allclose(latents, tiny.encode(rows), rtol=1e-4, atol=1e-5)

    def calls(self, count: int) -> None:
        for done in [self._pool.submit(self.call) for _ in range(count)]:
            done.result()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """They call without a pause until the block is left."""
        enough = threading.Event()

        def go_on() -> None:
            while not enough.is_set():
                self.call()

        callers = [self._pool.submit(go_on) for _ in range(CALLERS)]
        try:
            yield
        finally:
            enough.set()
            for done in callers:
                done.result()


@contextmanager
def envoy(names: HeadlessName, port: int, folder: Path) -> Iterator[str]:
    """Envoy as deploy/envoy.yaml has it, with these ports and this name server; its address."""
    configuration = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text())
    (listener,), (cluster,) = configuration["static_resources"].values()
    listen = free_port()
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": listen}
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    (member,) = endpoints["lb_endpoints"]
    member["endpoint"]["address"]["socket_address"] = {"address": "hourglass.test", "port_value": port}
    cluster["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": names.port}}],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    (folder / "envoy.yaml").write_text(yaml.safe_dump(configuration))
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("envoy")), "--config-path", str(folder / "envoy.yaml"),
                "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning",
            ], stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield f"127.0.0.1:{listen}"
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(WAIT_S)


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)  # asking costs the servers' time, too


@pytest.mark.parametrize("way", ["headless", "envoy"])
def test_calls_spread_evenly_and_none_fails_while_a_server_is_replaced(
    way: str, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gRPC asks a name again no sooner than after 30 s; here a new server shall not wait so long for its share.
    options: Any = vars(Endpoint)["options"]
    sooner = ("grpc.dns_min_time_between_resolutions_ms", 100)
    monkeypatch.setattr(Endpoint, "options", property(lambda self: [*options.fget(self), sooner]))
    port = free_port()
    with ExitStack() as stack:

        def start(host: str) -> ServerProcess:
            flags = ("--host", host, "--port", str(port), "--lame-duck-s", str(LAME_DUCK_S))
            return stack.enter_context(ServerProcess(tiny_models, *flags))

        first, second = start(FIRST), start(SECOND)
        names = stack.enter_context(HeadlessName(FIRST, SECOND))
        if way == "envoy":
            address = stack.enter_context(envoy(names, port, tmp_path))
            wait_until(lambda: answers(address))
        else:
            address = f"dns://127.0.0.1:{names.port}/hourglass.test:{port}"
        # Envoy hears of a drain from the health service in time; a client finds out, and tries again elsewhere.
        client = stack.enter_context(Client(address, attempts=1 if way == "envoy" else 5))
        callers = Callers(client, stack.enter_context(ThreadPoolExecutor(CALLERS)))
        while min(first.metric(ENCODED), second.metric(ENCODED)) < 20:
            callers.calls(20)

        before = first.metric(ENCODED), second.metric(ENCODED)
        callers.calls(CALLS)
        shares = first.metric(ENCODED) - before[0], second.metric(ENCODED) - before[1]
        assert sum(shares) == CALLS
        assert min(shares) > 0.9 * max(shares), shares

        with callers.calling():
            third = start(THIRD)
            names.addresses = (SECOND, THIRD)
            first.terminate()
            assert first.wait() == 0
            wait_until(lambda: third.metric(ENCODED) > 20)


def answers(address: str) -> bool:
    with Client(address, attempts=1) as client:
        try:
            client.models(timeout_s=5)
        except Exception:
            return False
        return True
