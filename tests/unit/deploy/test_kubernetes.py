"""The manifests, without a cluster: each is valid, and they agree with each other, the image and the service."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.servicer import SERVICE
from service.settings import Settings
from tests.unit.deploy.configuration import CLOSING_S, ROOT, environment_settings, image_instructions

KUBERNETES = ROOT / "deploy" / "kubernetes"
FOLDERS = sorted(path.parent for path in KUBERNETES.glob("*/kustomization.yaml"))
# Kinds that are not Kubernetes's own: their schemas are in no list.
CUSTOM = {"ServiceMonitor"}


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, Any]]:
    """The manifests of the base, by kind."""
    files = sorted(path for path in (KUBERNETES / "base").glob("*.yaml") if path.name != "kustomization.yaml")
    manifests = [document for path in files for document in documents(path.read_text())]
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    assert len(kinds) == len(manifests)
    return kinds


@pytest.fixture(scope="module")
def pod(base: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = base["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


@pytest.fixture(scope="module")
def settings(container: Mapping[str, Any]) -> Settings:
    """What the service makes of the pod's environment."""
    return environment_settings({entry["name"]: entry["value"] for entry in container["env"]})


def every(value: Any, key: str) -> Iterator[Any]:
    """All values of that key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_kustomization_names_every_file_beside_it_and_no_other(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))]
    assert all((folder / name).exists() for name in named)
    files = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
    assert files == {name for name in named if not name.startswith("..")}


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_valid(base: Mapping[str, Any]) -> None:
    for manifest in base.values():
        if manifest["kind"] not in CUSTOM:
            validate(manifest)


def test_the_validation_refuses_what_is_misspelt(base: Mapping[str, Any]) -> None:
    budget = base["PodDisruptionBudget"]
    with pytest.raises(kubernetes_validate.ValidationError):
        validate({**budget, "spec": {**budget["spec"], "maxUnavailible": 1}})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl kustomize renders; kubectl is not installed")
def test_what_kustomize_renders_is_valid(folder: Path) -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    manifests = {manifest["kind"]: manifest for manifest in documents(rendered)}
    for manifest in manifests.values():
        if manifest["kind"] not in CUSTOM:
            validate(manifest)
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    gpu = folder.name == "gpu"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"] == f"hourglass:{version}{'-gpu' if gpu else ''}"
    settings = environment_settings({entry["name"]: entry["value"] for entry in container["env"]})
    assert settings.device == ("cuda" if gpu else "cpu")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == gpu
    assert settings.lame_duck_s > 0, "a patch lost the environment of the base"


def test_a_pod_has_the_time_that_its_stop_takes(pod: Mapping[str, Any], settings: Settings) -> None:
    assert pod["terminationGracePeriodSeconds"] >= settings.lame_duck_s + settings.drain_s + CLOSING_S


def test_a_pod_is_out_of_the_endpoints_before_it_refuses_calls(
    container: Mapping[str, Any], settings: Settings
) -> None:
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.lame_duck_s


def test_the_probes_ask_for_what_the_service_serves(container: Mapping[str, Any], settings: Settings) -> None:
    probes = {name: container[name]["grpc"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {settings.port}
    assert {probe.get("service", "") for probe in probes.values()} == {"", SERVICE}


def test_all_speak_of_the_same_pods_and_ports(base: Mapping[str, Any], settings: Settings) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        base["Service"]["spec"]["selector"],
        base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(base[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")),
        *(labels["matchLabels"] for labels in every(base["Deployment"]["spec"]["template"], "labelSelector")),
    ]
    assert all(selector == labels for selector in selectors)
    named = [port for listed in every(base["Deployment"], "ports") for port in listed]
    ports = {port["name"]: port["containerPort"] for port in named}
    assert ports == {"grpc": settings.port, "http": settings.http_port}
    assert {port["targetPort"]: port["port"] for port in base["Service"]["spec"]["ports"]} == ports
    opened = {port["port"] for listed in every(base["NetworkPolicy"], "ports") for port in listed}
    assert opened == set(ports.values())
    assert {endpoint["port"] for endpoint in base["ServiceMonitor"]["spec"]["endpoints"]} <= set(ports)
    assert base["Service"]["spec"]["clusterIP"] == "None"
    target = base["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", base["Deployment"]["metadata"]["name"])


def test_models_from_object_storage_have_a_cache_that_can_be_written_and_a_way_out(
    container: Mapping[str, Any],
) -> None:
    (deployment,) = documents((KUBERNETES / "objects" / "deployment.yaml").read_text())
    spec = deployment["spec"]["template"]["spec"]
    (patch,) = spec["containers"]
    assert patch["name"] == container["name"]
    settings = environment_settings({entry["name"]: entry["value"] for entry in patch["env"]})
    assert settings.models.startswith("s3://")
    assert settings.watch_s > 0
    (mount,), (volume,) = patch["volumeMounts"], spec["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], settings.model_cache)
    assert "sizeLimit" in volume["emptyDir"]
    (policy,) = documents((KUBERNETES / "objects" / "network-policy.yaml").read_text())
    assert set(every(policy["spec"], "port")) == {53, 443}
    validate({**policy, "spec": {"podSelector": {}, **policy["spec"]}})


def test_the_autoscaler_goes_by_a_metric_that_there_is(base: Mapping[str, Any]) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    names = {metric["name"] for metric in every(base["HorizontalPodAutoscaler"], "metric")}
    assert names == {"autoencoder_queue_rows"}
    assert names <= {family.name for family in registry.collect()}


def test_a_pod_has_no_more_rights_than_the_image_needs(
    base: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]
) -> None:
    user, group = (int(number) for number in image_instructions()["USER"][-1].split(":"))
    assert pod["securityContext"]["runAsNonRoot"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (user, group)
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    policy = base["NetworkPolicy"]["spec"]
    assert "Egress" in policy["policyTypes"]
    assert policy["egress"] == []
