"""A real Prometheus scrapes a real service under load: rules, alerts and the dashboard find what they ask for."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import Client, HourglassError
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TINY, tensor

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
WAIT_S = 60.0
QUEUE_ROWS = 256
# Grafana's variables, as it fills them in where all is chosen.
VARIABLES = {"$job": ".*", "$instance": ".*", "$model": ".*", "$__rate_interval": "10s"}


def dashboard_expressions() -> dict[str, str]:
    expressions = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, f"{panel['title']}: an unknown variable in {expression}"
            expressions[f"{panel['title']} {target['refId']}"] = expression
    return expressions


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES / name).read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[ServerProcess]:
    """With workers, which have metrics of their own, and under load until the end."""
    flags = ("--workers", "2", "--max-queue-rows", str(QUEUE_ROWS), "--shadow-share", "0.5")
    with (
        ServerProcess(tiny_models, *flags) as process,
        load(process),
    ):
        yield process


@contextmanager
def load(server: ServerProcess) -> Iterator[None]:
    """Calls of every kind, over and over, of which each fourth is more than the service takes."""
    enough = threading.Event()

    def call() -> None:
        with Client(server.address) as client, server.channel() as channel:
            stub = AutoencoderServiceStub(channel)
            while not enough.is_set():
                rows = tiny.rows(3)
                client.decode("tiny", client.encode("tiny", rows))
                client.reconstruct("tiny", rows)
                client.denoise("tiny", rows)
                client.interpolate("tiny", rows[:1], rows[1:2], steps=3)
                list(
                    stub.Stream(iter([pb.StreamRequest(id=1, encode=pb.EncodeRequest(model=TINY, rows=tensor(rows)))]))
                )
                with suppress(HourglassError), Client(server.address, max_message_rows=2 * QUEUE_ROWS) as whole:
                    whole.encode("tiny", tiny.rows(2 * QUEUE_ROWS))
                enough.wait(0.02)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call) for _ in range(2)]
        try:
            yield
        finally:
            enough.set()
            for done in calls:
                done.result()


def test_the_rules_and_the_dashboard_ask_for_metrics_that_a_server_exports(server: ServerProcess) -> None:
    expressions = [*dashboard_expressions().values()]
    expressions += [rule["expr"] for name in ("recording.yml", "alerts.yml") for rule in rules(name)]
    recorded = {rule["record"] for rule in rules("recording.yml")}
    by_pattern = re.compile(r'__name__=~"([^"]+)"')
    patterns = {pattern for text in expressions for pattern in by_pattern.findall(text)}
    wanted = {
        name for text in expressions for name in re.findall(r"[a-z_:]*autoencoder_[\w:]+", by_pattern.sub("", text))
    }
    assert len(wanted) > 20
    assert patterns
    until = time.monotonic() + WAIT_S
    while True:  # the load begins with the server: some metrics come with the first call of their kind
        text = server.get("/metrics")[1]
        # Those of certificates and of object storage have values only where there are such.
        exported = set(re.findall(r"^(\w+)[{ ]|^# TYPE (autoencoder_(?:certificate|store)_\w+)", text, re.MULTILINE))
        exported = {name or certificates for name, certificates in exported}
        missing = wanted - exported - recorded
        if not missing and all(any(re.fullmatch(pattern, name) for name in exported) for pattern in patterns):
            return
        assert time.monotonic() < until, f"no such metrics: {missing}"


class Prometheus:
    def __init__(self, server: ServerProcess, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        configuration["rule_files"] = [str(RULES / name) for name in configuration["rule_files"]]
        (job,) = configuration["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [server.http.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.url = f"http://{address}"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}",
                ], stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer of its API. Raises OSError while it starts."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10
        ) as response:
            return json.loads(response.read())["data"]

    def wait_for_data(self, expression: str) -> list[Any]:
        """The first answer that is not empty, nor all NaN."""
        until = time.monotonic() + WAIT_S
        while True:
            with suppress(ConnectionError, urllib.error.URLError):
                found = [
                    sample for sample in self.get("query", query=expression)["result"] if sample["value"][1] != "NaN"
                ]
                if found:
                    return found
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, f"no data: {expression}"


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    prometheus = Prometheus(server, tmp_path_factory.mktemp("prometheus"))
    try:
        yield prometheus
    finally:
        prometheus.stop()


def test_every_panel_of_the_dashboard_shows_data(prometheus: Prometheus) -> None:
    for expression in dashboard_expressions().values():
        prometheus.wait_for_data(expression)


def test_every_recording_rule_gives_data(prometheus: Prometheus) -> None:
    # Errors of the service's own making there are none; their rules are sums over nothing.
    for rule in rules("recording.yml"):
        if not re.search(r"_(errors|late):", rule["record"]):
            prometheus.wait_for_data(rule["record"])


def test_refused_calls_raise_the_alert(prometheus: Prometheus) -> None:
    (alert,) = [rule for rule in rules("alerts.yml") if rule["alert"] == "HourglassRefusing"]
    (found,) = prometheus.wait_for_data(alert["expr"])
    assert 0.01 < float(found["value"][1]) < 0.5
    prometheus.wait_for_data('ALERTS{alertname="HourglassRefusing", alertstate="pending"}')
    states = {alert["labels"]["alertname"]: alert["state"] for alert in prometheus.get("alerts")["alerts"]}
    assert states["HourglassRefusing"] == "pending"
    # A refusal is no fault. What depends on how fast this machine is, or on what random weights make of rows, may be.
    faults = ("Absent", "ErrorsFast", "ErrorsSlow", "Late", "ModelRefused", "WorkersDie", "SlowTransport")
    assert not states.keys() & {f"Hourglass{name}" for name in faults}
    # One scrape that came too late on a busy machine would do for this one; it passes with the next.
    prometheus.wait_for_data('absent(ALERTS{alertname="HourglassDown"})')
