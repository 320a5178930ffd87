"""The Job of many shares, without a cluster: it is valid, and its command lines are those of the client."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hourglass.__main__ import parser
from tests.unit.deploy.configuration import ROOT

BATCH = ROOT / "deploy" / "batch"


def read(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((BATCH / name).read_text())
    return manifest


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def arguments_of(manifest: dict[str, Any], index: int = 0) -> Any:
    """What the client makes of a pod's arguments, once the kubelet has put the index in."""
    given = [each.replace("$(JOB_COMPLETION_INDEX)", str(index)) for each in container_of(manifest)["args"]]
    return parser().parse_args(["batch", *given])


@pytest.mark.parametrize("name", ["job.yaml", "join.yaml"])
def test_the_manifests_are_valid_and_name_the_version(name: str) -> None:
    manifest = read(name)
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    version = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]["version"]
    assert container_of(manifest)["image"] == f"hourglass-batch:{version}"
    assert f"\nARG VERSION={version}\n" in (BATCH / "Dockerfile").read_text()


def test_the_shares_of_the_job_are_all_and_each_once() -> None:
    job = read("job.yaml")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    shards = [arguments_of(job, index).shard for index in range(spec["completions"])]
    assert [str(shard) for shard in shards] == [f"{index}/{len(shards)}" for index in range(len(shards))]


def test_the_join_takes_what_the_shares_write() -> None:
    job, join = read("job.yaml"), read("join.yaml")
    assert arguments_of(join).operation == "join"
    assert arguments_of(join).source == arguments_of(job).target
    assert job["spec"]["template"]["spec"]["volumes"] == join["spec"]["template"]["spec"]["volumes"]
    assert container_of(job)["volumeMounts"] == container_of(join)["volumeMounts"]


def test_the_job_reaches_the_service_of_the_other_manifests() -> None:
    base = ROOT / "deploy" / "kubernetes" / "base"
    job = read("job.yaml")
    service = yaml.safe_load((base / "service.yaml").read_text())
    (port,) = [each["port"] for each in service["spec"]["ports"] if each["name"] == "grpc"]
    assert arguments_of(job).address == f"dns:///{service['metadata']['name']}.hourglass.svc.cluster.local:{port}"
    policy = yaml.safe_load((base / "network-policy.yaml").read_text())
    allowed = [peer["podSelector"]["matchLabels"] for rule in policy["spec"]["ingress"] for peer in rule["from"]
               if "podSelector" in peer]  # fmt: skip
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert any(wanted.items() <= labels.items() for wanted in allowed)


def test_the_other_way_that_the_job_names_is_a_command_line_too() -> None:
    job = read("job.yaml")
    argv = [each for each in container_of(job)["args"] if not each.startswith(("--address", "--model"))]
    container_of(job)["args"] = [*argv, "--package=/data/models/mnist-conv/1", "--threads=2"]
    comment = (BATCH / "job.yaml").read_text()
    assert all(each in comment for each in container_of(job)["args"][-2:])
    assert arguments_of(job).threads == int(container_of(job)["resources"]["requests"]["cpu"])


def test_hadolint_has_nothing_to_say() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(tool), "deploy/batch/Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_build_context_has_what_is_copied_and_no_more() -> None:
    lines = (BATCH / "Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line}
    ignore = (BATCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"{line.removeprefix('!')}" for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
