"""What `make audit` makes of what pip-audit and pip-licenses say, with theirs played by scripts."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy import audit

VERSIONS = {"Some_Package": "1.0", "other": "2.0"}
SOUND = [{"name": "some-package", "version": "1.0", "vulns": []}, {"name": "other", "version": "2.0", "vulns": []}]
RULES: dict[str, Any] = {
    "allowed": {"MIT": "why", "Apache-2.0": "why"},
    "packages": {"tool-one": {"licence": "GPL-3.0", "why": "why"}},
}


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def faults(output: str, *, complaint: str = "", code: int = 0) -> list[str]:
        (tmp_path / "said").write_text(output)
        tool = tmp_path / "pip-audit"
        tool.write_text(f"#!/bin/sh\ncat {tmp_path}/said\necho '{complaint}' >&2\nexit {code}\n")
        tool.chmod(0o755)
        monkeypatch.setattr(audit, "TOOLS", tmp_path)
        return audit.vulnerability_faults(VERSIONS, [])

    return faults


def test_what_is_sound_has_no_faults(say: Callable[..., list[str]]) -> None:
    assert say(json.dumps({"dependencies": SOUND})) == []


def test_a_vulnerability_is_told_with_the_version_that_mends_it(say: Callable[..., list[str]]) -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["2.1"]}
    answer = {"dependencies": [SOUND[0], {"name": "other", "version": "2.0", "vulns": [found]}]}
    assert say(json.dumps(answer), code=1) == ["other 2.0: PYSEC-1, mended in 2.1"]


def test_a_service_that_cannot_be_reached_does_not_pass(say: Callable[..., list[str]]) -> None:
    (fault,) = say("", complaint="ConnectionError: no route", code=1)
    assert fault == "vulnerabilities: NOT CHECKED, the service could not be asked: ConnectionError: no route"


@pytest.mark.parametrize("answered", [[SOUND[0]], [SOUND[0], {"name": "other", "skip_reason": "not found"}]])
def test_a_package_that_was_skipped_does_not_pass(say: Callable[..., list[str]], answered: list[Any]) -> None:
    (fault,) = say(json.dumps({"dependencies": answered}))
    assert fault == "vulnerabilities: NOT CHECKED, not known to the service: other"


@pytest.mark.skipif(not (audit.TOOLS / "pip-audit").exists(), reason="needs .venv-audit, which make audit builds")
def test_pip_audit_itself_asks_the_service_that_it_is_told() -> None:
    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"]["name"]
            events = [{"introduced": "0"}, {"fixed": "2.1"}]
            affected = {
                "package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]
            }  # fmt: skip
            found = {"vulns": [{"id": "TEST-1", "affected": [affected]}]} if name == "other" else {}
            answer = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            faults = audit.vulnerability_faults(VERSIONS, ["--vulnerability-service", "osv", "--osv-url", url])
        finally:
            server.shutdown()
            thread.join()
    assert faults == ["other 2.0: TEST-1, mended in 2.1"]


def test_what_is_pinned_is_asked_for() -> None:
    assert {"grpcio", "onnxruntime-gpu", "protobuf"} <= audit.pinned().keys()


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("UNKNOWN", False),
        ("MIT AND Apache-2.0", True),
        ("MIT AND GPL-3.0", False),
        ("MIT; GPL-3.0", False),
        ("MIT OR GPL-3.0", True),
        ("GPL-2.0 OR GPL-3.0", False),
    ],
)
def test_a_licence_is_allowed_by_its_parts(licence: str, allowed: bool) -> None:
    assert (audit.licence_faults({"some": licence}, RULES) == []) == allowed


def test_an_exception_is_for_one_package_and_the_licence_that_it_had() -> None:
    assert audit.licence_faults({"Tool_One": "GPL-3.0"}, RULES) == []
    for stated in ({"other": "GPL-3.0"}, {"tool-one": "AGPL-3.0"}):
        (fault,) = audit.licence_faults(stated, RULES)
        assert "is not allowed in deploy/licences.toml" in fault


def test_every_licence_that_is_allowed_has_a_reason() -> None:
    rules = tomllib.loads(audit.ALLOWED.read_text())
    assert all(why for why in rules["allowed"].values())
    assert all(rule["licence"] and rule["why"] for rule in rules["packages"].values())
