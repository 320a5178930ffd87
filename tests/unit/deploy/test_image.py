"""What the Dockerfile and compose.yaml promise, without an engine; `make image-test` builds and runs the image."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.unit.deploy.configuration import CLOSING_S, ROOT, environment_settings, image_instructions


def test_hadolint_has_nothing_to_say() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(tool), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_ends_by_a_signal_that_the_service_takes_and_tells_its_ports() -> None:
    instructions = image_instructions()
    environment = dict(re.findall(r"(HOURGLASS_\w+)=(\S+)", " ".join(instructions["ENV"])))
    settings = environment_settings(environment)
    assert instructions["STOPSIGNAL"] == ["SIGTERM"]
    assert instructions["EXPOSE"] == [f"{settings.port} {settings.http_port}"]
    assert settings.host == "0.0.0.0"
    assert f"--from=build {settings.models} /models" in instructions["COPY"]


def test_all_name_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert f"VERSION={version}" in image_instructions()["ARG"]
    assert compose["services"]["hourglass"]["image"] == f"hourglass:{version}"
    for folder in ("base", "gpu"):
        kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / folder / "kustomization.yaml").read_text())
        (image,) = kustomization["images"]
        assert image == {"name": "hourglass", "newTag": version + ("-gpu" if folder == "gpu" else "")}


def test_the_build_context_has_what_is_copied_and_no_more() -> None:
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for source in sources.split()
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[lines.index("*") :]
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize(("device", "extras"), [("cpu", ""), ("gpu", ""), ("cpu", "s3 gcs")])
def test_every_build_installs_one_onnxruntime_of_an_exact_version(device: str, extras: str) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    found = re.search(r'python -c "(.+?)" "\$DEVICE"', text, re.DOTALL)
    assert found is not None
    requirements = subprocess.run(
        [sys.executable, "-c", found[1], device, extras],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split("\n")[:-1]
    (runtime,) = [line for line in requirements if line.startswith("onnxruntime")]
    assert runtime.startswith("onnxruntime-gpu[cuda,cudnn]" if device == "gpu" else "onnxruntime>")
    names = {re.split(r"[\[><=]", line)[0] for line in requirements}
    assert "hourglass-client" not in names
    assert "opentelemetry-sdk" in names, "--otel-endpoint needs it"
    pinned = {line.partition("==")[0].replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
    assert ({"s3fs", "gcsfs"} <= names) == bool(extras)


def test_compose_stops_the_service_in_its_own_time_and_mounts_what_there_is() -> None:
    folder = ROOT / "deploy"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    service = services["hourglass"]
    settings = environment_settings(service["environment"])
    assert float(service["stop_grace_period"].removesuffix("s")) >= settings.lame_duck_s + settings.drain_s + CLOSING_S
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert (folder / service["build"]["context"] / "Dockerfile").exists()
    for other in services.values():
        assert all((folder / volume.split(":")[0]).exists() for volume in other.get("volumes", []))
        assert all(port.startswith("127.0.0.1:") for port in other["ports"])
    (scraped,) = yaml.safe_load((folder / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = scraped["dns_sd_configs"]
    assert scraped["job_name"] == "hourglass"
    assert (set(discovery["names"]), discovery["port"]) == ({"hourglass"}, settings.http_port)
