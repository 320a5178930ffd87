"""The manifests for KServe: every field is one that its SDK knows, and what they set is what the service has.

Not checked, without a cluster: that the controller of KServe takes them, and the storage initialiser.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from service.inference_messages import SERVICE
from service.settings import PREFIX, Settings
from tests.ecosystem.environments import ROOT, python

pytestmark = pytest.mark.ecosystem
MANIFESTS = sorted((ROOT / "deploy" / "kserve").glob("*.yaml"))


@pytest.fixture(scope="module")
def read() -> Any:
    done = subprocess.run(
        [python("kserve"), Path(__file__).with_name("kserve_manifests.py"), *MANIFESTS],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kserve_knows_every_field(read: Any) -> None:
    assert read["faults"] == {"ServingRuntime": [], "InferenceService": []}


def test_the_runtime_sets_what_the_service_has(read: Any) -> None:
    (container,) = read["manifests"]["ServingRuntime"]["spec"]["containers"]
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    assert {each["name"] for each in container["env"]} <= known
    assert container["ports"][0]["containerPort"] == Settings().port
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"] == {"port": Settings().port, "service": SERVICE}


def test_the_service_asks_for_the_runtime(read: Any) -> None:
    runtime = read["manifests"]["ServingRuntime"]
    model = read["manifests"]["InferenceService"]["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = {(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]}
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
