"""What the clients in other languages are held to: the commands of their pages, run as written, and their errors.

The clients are in `examples/`; `make test-ecosystem` builds those that this machine has the tools for.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hourglass import Client
from tests.ecosystem.environments import ROOT
from tests.integration.serving import ServerProcess
from tests.integration.test_security import Files

CONV, DENOISER = "mnist-conv", "mnist-denoising-conv"
DIGITS: npt.NDArray[np.uint8] = np.load(ROOT / "examples" / "digits.npz")["images"]
Done = subprocess.CompletedProcess[str]


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def need_built(path: str) -> None:
    if not (ROOT / path).exists():
        pytest.skip(f"{path} is not there: make test-ecosystem builds it, where it can")


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """A service with two models."""
    models = folder / "models"
    models.mkdir()
    for name in (CONV, DENOISER):
        (models / name).symlink_to(ROOT / "models" / name)
    with ServerProcess(models, *arguments) as process:
        yield process


def run(words: list[str], folder: Path, **environment: str) -> Done:
    """A command in `folder`; HOURGLASS_ADDRESS and HOURGLASS_TOKEN are only what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOURGLASS_")}
    return subprocess.run(
        words, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=100, check=False
    )


def commands(page: str, before: str) -> str:
    """The one block of commands of a page that follows a line with that end."""
    blocks = re.findall(re.escape(before) + r"\n\n```\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) == 1, f"{page} has {len(blocks)} blocks"
    return str(blocks[0])


def run_commands(lines: str, server: ServerProcess, folder: Path) -> str:
    """Runs them where `examples/` and `build/` are as in the repository; returns what they print."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "build").mkdir()
    (folder / "build" / "go").symlink_to(ROOT / "build" / "go")
    done = run(["bash", "-euo", "pipefail", "-c", lines], folder, HOURGLASS_ADDRESS=server.address)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def run_the_page(language: str, server: ServerProcess, folder: Path) -> str:
    page = commands(f"examples/{language}/README.md", "with `make run` in another terminal:")
    return run_commands(page, server, folder)


def table(server: ServerProcess) -> list[str]:
    """What a client's `models` prints."""

    def shape(dimensions: tuple[int, ...]) -> str:
        return "x".join(map(str, dimensions))

    with Client(server.address) as client:
        return [
            f"{card.name}/{card.version}  {shape(card.input.shape)} -> {shape(card.latent.shape)}  "
            + ",".join(card.operations)
            for card in client.models()
        ]


def assert_the_page_is_true(language: str, server: ServerProcess, folder: Path) -> None:
    """The answers of the page's commands are those that our own client gets, bit for bit."""
    lines = run_the_page(language, server, folder).splitlines()
    models = table(server)
    assert lines[: len(models)] == models
    with Client(server.address) as client:
        denoised = client.denoise(DENOISER, DIGITS)
        latents = client.encode(CONV, DIGITS)
        expected = {
            "latents": latents,
            "clean": denoised.rows,
            "walks": client.interpolate(CONV, DIGITS[:-1], DIGITS[1:], steps=5).rows,
            "streamed": latents,
        }
    moved = [f"row {row} moved by {distance:.4f}" for row, distance in enumerate(denoised.distances)]
    assert [line for line in lines if line.startswith("row ")] == moved
    for name, wanted in expected.items():
        received = np.load(folder / "build" / f"{name}.npy")
        assert received.dtype == np.float32
        np.testing.assert_array_equal(received, wanted, err_msg=name)
        assert f"build/{name}.npy: {'x'.join(map(str, wanted.shape))} float32" in lines


@dataclass(frozen=True)
class Command:
    """A client with the command line that those in Node.js and Go share."""

    words: list[str]
    folder: Path

    def __call__(
        self, command: str, *arguments: str, rows: npt.NDArray[np.generic] = DIGITS[:3], **environment: str
    ) -> Done:
        files = []
        if command != "models":
            np.save(self.folder / "rows.npy", rows)
            (self.folder / "answer.npy").unlink(missing_ok=True)
            files = ["rows.npy", "answer.npy"]
        return run([*self.words, command, *arguments, *files], self.folder, **environment)

    def fails(
        self, command: str, *arguments: str, rows: npt.NDArray[np.generic] = DIGITS[:3], **environment: str
    ) -> str:
        """What it says on stderr."""
        done = self(command, *arguments, rows=rows, **environment)
        assert done.returncode == 1, done
        assert not (self.folder / "answer.npy").exists()
        return done.stderr


def closed_port() -> tuple[socket.socket, str]:
    """An address at which nobody listens until the socket is closed."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken, f"127.0.0.1:{taken.getsockname()[1]}"


def assert_errors_are_told(command: Command, server: ServerProcess) -> None:
    where = ("--address", server.address)
    no_model = "NOT_FOUND: there is no model 'huge'\n  reason NO_SUCH_MODEL\n"
    assert command.fails("encode", *where, "--model", "huge") == no_model
    streamed = command.fails("stream", *where, "--model", "huge")
    for row in range(3):
        assert f"row {row}: {no_model}" in streamed
    assert streamed.endswith("\n3 of 3 rows have no latent\n")
    no_version = command.fails("encode", *where, "--model", f"{CONV}/7")
    assert no_version.startswith("NOT_FOUND: ")
    assert "reason NO_SUCH_VERSION" in no_version
    unsupported = command.fails("denoise", *where, "--model", CONV)
    assert unsupported.startswith("FAILED_PRECONDITION: ")
    assert "reason NO_SUCH_OPERATION" in unsupported
    late = command.fails("encode", *where, "--timeout", "0.0001", rows=DIGITS)
    assert late.startswith("DEADLINE_EXCEEDED: ")
    bad = command.fails("encode", *where, rows=np.full((1, 28, 28), np.nan, np.float32))
    assert bad == "INVALID_ARGUMENT: rows.data: row 0 holds NaN or infinity\n  reason NOT_FINITE\n"
    assert command.fails("interpolate", *where, rows=DIGITS[:1]) == "interpolate: needs at least two rows; got 1\n"
    doubles = command.fails("encode", *where, rows=np.zeros((1, 28, 28)))
    assert doubles == "rows.npy: must be of float32 or uint8; got <f8\n"
    assert "must be row-major" in command.fails("encode", *where, rows=np.asfortranarray(DIGITS[:3]))
    taken, address = closed_port()
    with taken:
        for what in ("models", "encode", "stream"):
            assert command.fails(what, "--address", address).startswith("UNAVAILABLE: ")
    usage = command("nonsense")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.startswith("usage: ")


def assert_a_stop_is_told(command: Command, server: ServerProcess) -> None:
    """The service stops in the middle of a stream."""
    np.save(command.folder / "rows.npy", np.concatenate([DIGITS] * 200))
    with subprocess.Popen(
        [*command.words, "stream", "--address", server.address, "--in-flight", "2", "rows.npy", "answer.npy"],
        cwd=command.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        answered = 'autoencoder_stream_messages_total{code="OK"}'
        while server.metric(answered) < 100:
            assert process.poll() is None, process.communicate()
        server.terminate()
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("UNAVAILABLE: ")
    assert not (command.folder / "answer.npy").exists()


@contextmanager
def guarded(folder: Path) -> Iterator[tuple[ServerProcess, Files]]:
    """A service that asks for the certificates and tokens of the Files."""
    files = Files(folder)
    with serving(folder, *files.flags) as server:
        yield server, files


def assert_tls_and_tokens_are_used(command: Command, server: ServerProcess, files: Files) -> None:
    def token(name: str) -> list[str]:
        (files.folder / "token").write_text(f"{name}\n")
        return ["--token-file", str(files.folder / "token")]

    # Not by number: Node warns of that with TLS, for the name of a server is sent to it.
    ca = ["--address", server.address.replace("127.0.0.1", "localhost"), "--tls-ca", str(files.folder / "ca.pem")]
    own = [*ca, "--tls-cert", str(files.folder / "client.pem"), "--tls-key", str(files.folder / "client.key")]
    for let_in in (
        command("encode", *own, *token("old-all")),
        command("encode", *own, HOURGLASS_TOKEN="old-all"),
        command("stream", *own, *token("old-all")),
    ):
        assert let_in.returncode == 0, let_in.stderr
        with Client(server.address, tls=files.tls, token="old-all") as client:
            np.testing.assert_array_equal(np.load(command.folder / "answer.npy"), client.encode(CONV, DIGITS[:3]))
    unknown = "UNAUTHENTICATED: the token is not known\n  reason UNKNOWN_TOKEN\n"
    assert command.fails("encode", *own, *token("wrong")) == unknown
    assert command.fails("stream", *own, *token("wrong")) == unknown
    assert "a token is asked for" in command.fails("encode", *own)
    assert "PERMISSION_DENIED: the token plain allows models like plain" in command.fails(
        "encode", *own, *token("old-plain")
    )
    assert "row 2: PERMISSION_DENIED: " in command.fails("stream", *own, *token("old-plain"))
    for strangers in (ca, own[:2], [*own[:2], "--tls"]):
        assert command.fails("encode", *strangers, *token("old-all")).startswith("UNAVAILABLE: ")
    assert command.fails("encode", "--address", "192.0.2.1:50051", HOURGLASS_TOKEN="old-all") == (
        "token: sent without TLS only to a loopback address or a unix socket, not to 192.0.2.1:50051\n"
    )
