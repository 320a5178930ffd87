"""The client in Node.js of `examples/node`, against a real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem import languages
from tests.ecosystem.environments import ROOT
from tests.ecosystem.languages import Command, guarded, run, serving

pytestmark = pytest.mark.ecosystem


@pytest.fixture
def client(tmp_path: Path) -> Command:
    languages.need("node")
    languages.need_built("examples/node/node_modules/ready")
    return Command(["node", str(ROOT / "examples" / "node" / "client.js")], tmp_path)


def test_the_page_gives_what_our_own_client_gets(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        languages.assert_the_page_is_true("node", server, tmp_path)


def test_errors_have_their_status_and_details(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        languages.assert_errors_are_told(client, server)
        languages.assert_a_stop_is_told(client, server)


def test_tls_and_tokens(client: Command, tmp_path: Path) -> None:
    with guarded(tmp_path) as (server, files):
        languages.assert_tls_and_tokens_are_used(client, server, files)


def test_its_own_tests_pass(client: Command, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        done = run(["node", "--test", "examples/node/client.test.js"], ROOT, HOURGLASS_ADDRESS=server.address)
    assert done.returncode == 0, done.stdout
    assert "# skipped 0" in done.stdout
