"""The client in Go of `examples/go`, against a real service."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ecosystem import languages
from tests.ecosystem.environments import ROOT
from tests.ecosystem.languages import Command, guarded, run, serving

pytestmark = pytest.mark.ecosystem


@pytest.fixture
def client(tmp_path: Path) -> Command:
    languages.need("go")
    languages.need_built("build/go/client")
    return Command([str(ROOT / "build" / "go" / "client")], tmp_path)


def go(*words: str, stubs: Path = ROOT / "build" / "go", **environment: str) -> languages.Done:
    """With Debian's packages and the stubs in a GOPATH."""
    return run(["go", *words], ROOT, GO111MODULE="off", GOPATH=f"{stubs}:/usr/share/gocode", **environment)


def test_the_page_gives_what_our_own_client_gets(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        languages.assert_the_page_is_true("go", server, tmp_path)


def test_errors_have_their_status_and_details(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        languages.assert_errors_are_told(client, server)
        languages.assert_a_stop_is_told(client, server)


def test_tls_and_tokens(client: Command, tmp_path: Path) -> None:
    with guarded(tmp_path) as (server, files):
        languages.assert_tls_and_tokens_are_used(client, server, files)


def test_its_own_tests_pass(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        done = go("test", "-count=1", "-v", "./examples/go", HOURGLASS_ADDRESS=server.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIP" not in done.stdout


def test_it_is_formatted_and_builds_with_the_stubs_of_buf(client: Command, tmp_path: Path) -> None:
    assert run(["gofmt", "-l", "examples/go"], ROOT).stdout == ""
    buf = ROOT / "examples" / "shell" / "node_modules" / ".bin" / "buf"
    if not (buf.exists() and shutil.which("protoc-gen-go") and shutil.which("protoc-gen-go-grpc")):
        pytest.skip("buf or Go's plugins of protoc are not there")
    made = run([str(buf), "generate", "--template", "proto/buf.gen.yaml", "--output", str(tmp_path)], ROOT)
    assert made.returncode == 0, made.stderr
    vetted = go("vet", "./examples/go", stubs=tmp_path / "build" / "go")
    assert vetted.returncode == 0, vetted.stderr
