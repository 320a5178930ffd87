"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for whatever watches over the process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_TIMEOUT_S = 10.0


class Probes:
    """/healthz answers 200 while the process lives, /readyz 200 while `ready()` and 503 otherwise.

    Owns `listener` and closes it. `registry`: whatever has a `collect`.
    """

    def __init__(self, listener: socket.socket, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT_S
            server_version = "hourglass"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._send(200, content_type, encode(registry))
                elif path == "/healthz":
                    self._send(200, "text/plain", b"alive\n")
                elif path == "/readyz":
                    self._send(*((200, "text/plain", b"ready\n") if ready() else (503, "text/plain", b"not ready\n")))
                else:
                    self._send(404, "text/plain", b"here are /metrics, /healthz and /readyz\n")

            def _send(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass  # a probe every few seconds is no event

        self._server = _Server(listener.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self.port = int(listener.getsockname()[1]) if listener.family != socket.AF_UNIX else 0
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def tcp_listener(host: str, port: int) -> socket.socket:
    """Raises OSError where the port is taken."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away is no event
