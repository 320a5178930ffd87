"""What containers ask of the service beside its calls."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import trustme

from service.settings import Settings
from tests.integration.serving import ROOT, ServerProcess


def healthcheck(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "service.healthcheck", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_the_health_check_passes_while_the_service_serves(tiny_models: Path) -> None:
    with ServerProcess(tiny_models, "--lame-duck-s", "60") as server:
        port = server.address.rpartition(":")[2]
        assert healthcheck("--port", port) == (0, "")
        assert healthcheck(HOURGLASS_PORT=port, HOURGLASS_HOST="0.0.0.0", http_proxy="http://127.0.0.1:1") == (0, "")
        server.terminate()
        while server.get("/readyz")[0] == 200:
            pass
        assert healthcheck("--port", port) == (1, f"127.0.0.1:{port}: NOT_SERVING\n")
        server.terminate()  # the second signal cuts the lame-duck delay short
        server.wait()
    code, reason = healthcheck("--port", port)
    assert code == 1
    assert reason.startswith(f"127.0.0.1:{port}: UNAVAILABLE: ")


def test_with_tls_the_health_check_asks_the_http_port(tiny_models: Path, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    with ServerProcess(tiny_models, "--lame-duck-s", "60", *tls) as server:
        port = server.http.rpartition(":")[2]
        assert healthcheck("--http-port", port, *tls) == (0, "")
        server.terminate()
        while server.get("/readyz")[0] == 200:
            pass
        assert healthcheck("--http-port", port, *tls) == (1, f"127.0.0.1:{port}/readyz: 503 Service Unavailable\n")
        server.terminate()
        server.wait()
    code, reason = healthcheck("--http-port", port, *tls)
    assert code == 1
    assert "refused" in reason


def test_nothing_but_log_lines_where_nothing_can_be_written(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime's telemetry, which stays silent in CI, would complain here that it cannot keep its identifier.
    for variable in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, "/dev/null")
    monkeypatch.delenv("CI", raising=False)
    with ServerProcess(tiny_models) as server:
        pass
    assert server.process.returncode == 0
    assert not server.other_lines


# What fills memory or process numbers where it is large, or is waited for.
COSTLY = {"port", "http_port", "threads", "handler_threads", "max_batch_rows", "lame_duck_s"}


@pytest.mark.parametrize("transport", ["completion-queue", "threaded"])
def test_the_largest_settings_serve_and_stop(tiny_models: Path, transport: str) -> None:
    largest = {
        "--" + setting.name.replace("_", "-"): str(setting.metadata["most"])
        for setting in fields(Settings)
        if setting.metadata["most"] is not None and setting.name not in COSTLY
    }
    flags = [word for pair in largest.items() for word in pair]
    with ServerProcess(tiny_models, "--transport", transport, *flags) as server:
        assert healthcheck("--port", server.address.rpartition(":")[2]) == (0, "")
    assert server.process.returncode == 0
    assert not server.other_lines
