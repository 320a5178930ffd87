"""Models in a bucket: a real service, s3fs, and a real S3 server (moto's) on the loopback interface."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import hourglass
from hourglass import AdminClient, Client
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_admin import ADMIN, admin_address, scale_of, write

SECRET = "a-secret-of-the-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "an-id-of-the-tests", "AWS_SECRET_ACCESS_KEY": SECRET}
REGION = "us-east-1"


class Bucket:
    """A bucket of its own for one test, and the local packages that were put there."""

    def __init__(self, endpoint: str, name: str, folder: Path) -> None:
        self.models, self.cache = folder / "models", folder / "cache"
        self.url = f"s3://{name}/some/models"
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": REGION}
        self._s3: Any = boto3.client(
            "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
        )
        self._name = name
        self._s3.create_bucket(Bucket=name)

    def close(self) -> None:
        self._s3.close()

    def put(self, version: int, changed: dict[str, bytes] | None = None, *, scale: int | None = None) -> None:
        """Upload a version whose latents are `scale` times those of `tiny`; the manifest last."""
        write(self.models, version, scale=version if scale is None else scale)
        folder = self.models / "tiny" / str(version)
        content = {path.name: path.read_bytes() for path in folder.iterdir()} | (changed or {})
        for name in sorted(content, key=lambda name: name == "model.json"):
            key = f"some/models/tiny/{version}/{name}"
            self._s3.put_object(Bucket=self._name, Key=key, Body=content[name])

    def labels(self) -> Any:
        body = self._s3.get_object(Bucket=self._name, Key="some/models/tiny/labels.json")["Body"]
        with body:
            return json.loads(body.read())

    def serve(self, *arguments: str, ready: bool = True, endpoint: str = "") -> ServerProcess:
        flags = ("--model-cache", str(self.cache), *arguments)
        environment = self.environment | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
        return ServerProcess(self.url, *flags, ready=ready, environment=environment)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(endpoint, f"bucket-{abs(hash(request.node.name))}", tmp_path)
    yield made
    made.close()


def events(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    return [event for event in server.events if event["event"] == name]


def test_models_in_a_bucket_serve_and_change_as_those_in_a_directory(bucket: Bucket) -> None:
    bucket.put(1)
    rows = tiny.rows(40)
    with ServerProcess(bucket.models) as local, Client(local.address) as client:
        expected = client.encode("tiny", rows)
    with (
        bucket.serve(*ADMIN, "--watch-s", "0.1", "--versions", "latest:1", "--log-level", "debug") as server,
        Client(server.address) as client,
        AdminClient(admin_address(server)) as admin,
    ):
        np.testing.assert_array_equal(client.encode("tiny", rows), expected)

        # A new version is seen, loaded beside the old, and serves.
        bucket.put(2)
        assert server.wait_for("model changed")["versions"] == [1, 2]
        assert server.wait_for("model changed", count=2)["versions"] == [2]
        assert scale_of(rows, client.encode("tiny", rows)) == 2
        cached = {path.parent.name for path in bucket.cache.rglob("model.json")}
        assert cached == {"2"}, "what serves no more leaves the cache"

        # What is broken changes nothing, and the reason is in the log or in the administrator's answer.
        decoder = (bucket.models / "tiny" / "2" / "decoder.onnx").read_bytes()
        bucket.put(3, {"decoder.onnx": decoder[:-1] + b"?"}, scale=2)
        assert "decoder.onnx: sha256 is" in server.wait_for("what was served serves on")["reason"]
        bucket.put(4, {"decoder.onnx": decoder[:-1]}, scale=2)
        with pytest.raises(hourglass.Unsupported, match=rf"version 4: decoder.onnx: has {len(decoder) - 1} bytes"):
            admin.load("tiny", 4)
        manifest = json.loads((bucket.models / "tiny" / "2" / "model.json").read_text()) | {"version": 5}
        manifest["files"].append({"name": "../../evil", "sizeBytes": "1", "sha256": "0"})
        bucket.put(5, {"model.json": json.dumps(manifest).encode()})
        with pytest.raises(hourglass.Unsupported, match=r"version 5: model.json: files: a plain name inside"):
            admin.load("tiny", 5)
        assert {entry.version: entry.state for entry in admin.versions("tiny")} == {
            1: "available", 2: "ready", 3: "failed", 4: "failed", 5: "failed",
        }  # fmt: skip
        assert server.metric('autoencoder_model_ready{model="tiny",version="4"}') == 0.0
        assert scale_of(rows, client.encode("tiny", rows)) == 2
        assert not list(bucket.cache.rglob("evil"))

        # Labels are kept in the bucket; versions are loaded by them.
        admin.label("tiny", "stable", 1)
        assert bucket.labels() == {"stable": [1]}
        np.testing.assert_array_equal(client.encode("tiny", rows, version="stable"), expected)

        # A version that is replaced is fetched again.
        bucket.put(2, scale=7)
        admin.reload("tiny", 2)
        assert scale_of(rows, client.encode("tiny", rows)) == 7
        assert server.metric("autoencoder_store_read_bytes_total") > 10_000
        assert server.metric('autoencoder_store_calls_total{outcome="ok"}') > 5
    assert server.process.returncode == 0
    assert not server.other_lines
    told = json.dumps(server.events)
    assert SECRET not in told
    assert CREDENTIALS["AWS_ACCESS_KEY_ID"] not in told


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_store_that_is_away_costs_a_start_with_copies_nothing(bucket: Bucket, silent: str) -> None:
    bucket.put(1)
    bucket.put(2)
    rows = tiny.rows(3)
    with bucket.serve("--workers", "2") as server:
        fetched = [event["version"] for event in events(server, "model fetched")]
        assert sorted(fetched) == ["1", "2"], "the workers share the copies"
    with (
        bucket.serve("--workers", "2", "--store-timeout-s", "1", *ADMIN, endpoint=silent) as server,
        Client(server.address, connections=4) as client,
        AdminClient(admin_address(server)) as admin,
        ThreadPoolExecutor(1) as pool,
    ):
        warning = server.wait_for("the store is away: copies in the cache are served")
        assert warning["url"] == bucket.url
        assert warning["reason"] == "find took longer than --store-timeout-s=1"
        assert {scale_of(rows, client.encode("tiny", rows)) for _ in range(8)} == {2}
        assert scale_of(rows, client.encode("tiny", rows, version=1)) == 1

        # A change waits for the store and fails; what serves is not held up.
        change, answered = pool.submit(admin.reload, "tiny", 2, timeout_s=60), 0
        while not change.done():
            assert scale_of(rows, client.encode("tiny", rows)) == 2
            answered += 1
        with pytest.raises(hourglass.Unsupported, match=f"{bucket.url}: find took longer"):
            change.result()
        assert answered > 1
        assert not events(server, "model fetched")
    assert not server.other_lines


def test_a_start_without_store_and_copies_says_which_url(bucket: Bucket) -> None:
    with bucket.serve("--store-timeout-s", "1", ready=False, endpoint="http://127.0.0.1:1") as server:
        assert server.wait() == 1
        assert server.wait_for("cannot start")["reason"].startswith(f"--models: {bucket.url}: find ")
