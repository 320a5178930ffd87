"""Builds the real Dockerfile without a container engine, runs the image as a cluster would, and calls it from outside.

python deploy/image_test.py [--device cpu|gpu]        # or: make image-test ARGS="--device gpu"

For machines without docker and without a registry. buildah builds (no daemon, no namespaces: --isolation chroot) on a
base that debootstrap makes and that is committed under the name in FROM; podman runs it with runc: read-only root and
no /tmp, all capabilities dropped, no new privileges, not root. The inventory in it must name what is installed. The
base is Debian's own Python of the same version as the official image's, so that the size printed is near the real
one's, not equal to it. Needs root, and apt-get install buildah podman runc debootstrap. All that it
makes lies under build/image/; the base is kept there.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from autoencoder.v1 import autoencoder_pb2, model_pb2
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from hourglass import Client

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "image"
IMAGE = "localhost/hourglass"
CONTAINER = "hourglass-image-test"
TOOLS = ("buildah", "podman", "runc", "debootstrap")
PORT, HTTP_PORT = 50951, 50952
READY_S = 120.0
CA = "/run/secrets/ca.pem"
INVENTORY = "/opt/venv/share/sbom/hourglass.cdx.json"
# Where packages come from: what of the machine's pip configuration the build needs too. Never part of the image.
INDEX_OPTIONS = ("index-url", "extra-index-url", "trusted-host")
# For machines with fewer rights than an engine expects: no raising of limits, no systemd that times health checks.
SANDBOX = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096", "--health-interval=disable"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="the build argument DEVICE")
    device = parser.parse_args().device
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(f"needs root and {', '.join(TOOLS)}; missing: {' '.join(missing) or 'root'}", file=sys.stderr)
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    image = f"{IMAGE}:{device}"
    make_base(base_name())
    began = time.monotonic()
    build(image, device)
    print(f"built     {image} in {time.monotonic() - began:.0f} s, {size_mb(image):.0f} MB "
          f"({size_mb(base_name()):.0f} MB of it the base)")  # fmt: skip
    with container(image) as began:
        with grpc.insecure_channel(f"127.0.0.1:{PORT}") as channel:
            wait_until_serving(channel)
            print(f"serving   {time.monotonic() - began:.2f} s after the start")
            methods = call_everything(channel)
        print(f"called    {', '.join(sorted(methods))}")
        look_inside()
    return 0


def base_name() -> str:
    names = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert len(names) == 1, f"the stages stand on different bases: {names}"
    return f"docker.io/library/{names.pop()}"


def make_base(name: str) -> None:
    """Debian's release of the official image's name, with its Python, committed as that image."""
    if run("buildah", "images", "--quiet", name, check=False).strip():
        return
    print(f"base      {name} by debootstrap, once", flush=True)
    folder = WORK / "base"
    shutil.rmtree(folder, ignore_errors=True)
    packages = "python3,python3-pip,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", name.rpartition("-")[2], folder],
        stdout=(WORK / "debootstrap.log").open("wb"), check=True,
    )  # fmt: skip
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for leftover in (*folder.glob("var/cache/apt/archives/*.deb"), *folder.glob("var/lib/apt/lists/*_*")):
        leftover.unlink()
    scratch = run("buildah", "from", "scratch").strip()
    run("buildah", "copy", scratch, str(folder), "/")
    run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", scratch)
    run("buildah", "commit", "--format", "docker", scratch, name)
    run("buildah", "rm", scratch)
    shutil.rmtree(folder)


def build(image: str, device: str) -> None:
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    log = WORK / f"build-{device}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            command(
                "buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker",
                "--layers", "--tag", image, "--build-arg", f"DEVICE={device}",
                "--build-arg", f"REVISION={revision or 'unknown'}", *pip_of_this_machine(), str(ROOT),
            ), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the build failed; the end of {log}:\n{log.read_text()[-3000:]}")


def pip_of_this_machine() -> list[str]:
    """What lets pip inside the build reach the index that pip here reaches."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"^\S*?\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    configuration = configparser.RawConfigParser()
    configuration["global"] = {
        option: found[option] for option in INDEX_OPTIONS if option in found and "file:" not in found[option]
    }
    flags = ["--secret", f"id=pip-config,src={WORK / 'pip.conf'}"]
    if "cert" in found:
        configuration["global"]["cert"] = CA
        flags += ["--volume", f"{found['cert']}:{CA}:ro"]
    with (WORK / "pip.conf").open("w") as file:
        configuration.write(file)
    return flags


@contextmanager
def container(image: str) -> Iterator[float]:
    """The running container; its start on the monotonic clock. At the end: SIGTERM, and the exit code must be 0."""
    run("podman", "rm", "--force", "--ignore", CONTAINER)
    began = time.monotonic()
    run(
        "podman", "run", "--detach", "--name", CONTAINER, "--read-only", "--read-only-tmpfs=false", "--cap-drop=all",
        "--security-opt=no-new-privileges", "--network=host", *SANDBOX,
        "--env", "HOURGLASS_HOST=127.0.0.1", "--env", f"HOURGLASS_PORT={PORT}",
        "--env", f"HOURGLASS_HTTP_PORT={HTTP_PORT}", "--env", "HOURGLASS_LAME_DUCK_S=1", image,
    )  # fmt: skip
    try:
        yield began
        began = time.monotonic()
        run("podman", "stop", "--time", "40", CONTAINER)
        took_s = time.monotonic() - began
        code = int(run("podman", "inspect", "--format", "{{.State.ExitCode}}", CONTAINER))
        last = run("podman", "logs", CONTAINER, stderr=subprocess.STDOUT)
        assert code == 0, f"exit code {code} after SIGTERM; the log: {last}"
        # onnxruntime's telemetry would say that it found no place for its identifier.
        assert "telemetry" not in last, last
        # Beside our lines there may be onnxruntime's own, where the GPU's build finds no driver.
        events = [json.loads(line)["event"] for line in last.splitlines() if line.startswith("{")]
        assert events[-1] == "stopped", f"it did not stop in order: {last}"
        assert took_s > 1, "the lame-duck delay was not kept: the signal did not reach the service"
        print(f"stopped   by SIGTERM in {took_s:.2f} s, 1 s of it as a lame duck; exit code {code}")
    except BaseException:
        print(run("podman", "logs", "--tail", "20", CONTAINER, check=False, stderr=subprocess.STDOUT), file=sys.stderr)
        raise
    finally:
        run("podman", "rm", "--force", CONTAINER)


def wait_until_serving(channel: grpc.Channel) -> None:
    grpc.channel_ready_future(channel).result(READY_S)
    health: Any = health_pb2_grpc.HealthStub(channel)
    for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=READY_S):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return
    raise AssertionError("the health service ended its answers")


def call_everything(channel: grpc.Channel) -> set[str]:
    """Calls every RPC of the contract; Encode's and Decode's answers must be the package's golden ones."""
    name, package = "mnist-denoising-conv", ROOT / "models" / "mnist-denoising-conv" / "1"
    with np.load(package / "golden.npz") as golden:
        rows, latents, reconstructions = golden["rows"], golden["latents"], golden["reconstructions"]
    with Client(f"127.0.0.1:{PORT}") as client:
        assert {card.name for card in client.models()} == {path.parent.name for path in ROOT.glob("models/*/1")}
        assert client.model(name).name == name
        close(client.encode(name, rows), latents)
        close(client.decode(name, latents), reconstructions)
        close(client.reconstruct(name, rows).rows, reconstructions)
        assert client.denoise(name, rows).rows.shape == rows.shape
        assert client.interpolate(name, rows[:1], rows[1:2], steps=5).rows.shape == (1, 5, *rows.shape[1:])
    encode = autoencoder_pb2.EncodeRequest(
        model=autoencoder_pb2.ModelSelector(name=name),
        rows=autoencoder_pb2.Tensor(
            dtype=model_pb2.DATA_TYPE_FLOAT32, shape=rows.shape, data=rows.astype("<f4").tobytes()
        ),
    )
    messages = iter([autoencoder_pb2.StreamRequest(id=7, encode=encode)])
    (answer,) = AutoencoderServiceStub(channel).Stream(messages, timeout=READY_S)
    assert answer.id == 7
    close(np.frombuffer(answer.encode.latents.data, "<f4").reshape(latents.shape), latents)
    described = autoencoder_pb2.DESCRIPTOR.services_by_name["AutoencoderService"]
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    (listed,) = reflection.ServerReflectionInfo(asked, timeout=READY_S)
    assert described.full_name in {service.name for service in listed.list_services_response.service}
    called = {"ListModels", "GetModel", "Encode", "Decode", "Reconstruct", "Denoise", "Interpolate", "Stream"}
    assert called == set(described.methods_by_name), "an RPC of the contract is not called here"
    return called | {"Health.Watch", "ServerReflectionInfo"}


def close(values: Any, expected: Any) -> None:
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)


def look_inside() -> None:
    """What is true of the running container."""
    run("podman", "healthcheck", "run", CONTAINER)
    status = run("podman", "exec", CONTAINER, "cat", "/proc/1/status")
    facts = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE))
    assert facts["CapEff"] == facts["CapBnd"] == "0" * 16, facts
    assert facts["NoNewPrivs"] == "1", facts
    assert set(facts["Uid"].split()) == {"65532"}, facts
    program = """
import os, shutil, sys
print(*(tool for tool in ('gcc', 'cc', 'make', 'ld') if shutil.which(tool)))
print(*(path for path in ('/.cache', '/root/.cache', '/tmp/.cache') if os.path.exists(path)))
print(*(path for path in ('/', '/tmp', '/app', '/opt/venv', '/models') if os.access(path, os.W_OK)))
print(*(name for name in os.listdir(sys.prefix + '/bin') if 'pip' in name))
print(*(name for name in ('torch', 'training', 'hourglass') if __import__('importlib.util').util.find_spec(name)))
"""
    answers = run("podman", "exec", CONTAINER, "python", "-c", program).splitlines()
    for what, found in zip(
        ("compilers", "caches", "folders that can be written", "pip", "what serving does not need"),
        answers,
        strict=True,
    ):
        assert not found, f"in the image there are {what}: {found}"
    print("inside    no capabilities, uid 65532, nothing writable, no compiler, cache or pip; the health check passes")
    program = (ROOT / "deploy" / "inventory.py").read_text()
    print("inventory", run("podman", "exec", CONTAINER, "python", "-c", program, INVENTORY).strip())


def size_mb(image: str) -> float:
    return int(run("podman", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def command(tool: str, *arguments: str) -> list[str]:
    """With storage of our own, so that nothing is left in the machine's."""
    own = ["--root", str(WORK / "storage"), "--runroot", str(WORK / "run")]
    if tool == "podman":
        own += ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    return [tool, *own, *arguments]


def run(tool: str, *arguments: str, check: bool = True, stderr: int = subprocess.PIPE) -> str:
    done = subprocess.run(command(tool, *arguments), stdout=subprocess.PIPE, stderr=stderr, text=True)
    if check and done.returncode:
        raise SystemExit(f"{tool} {arguments[0]} failed with {done.returncode}: {done.stdout}{done.stderr or ''}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
