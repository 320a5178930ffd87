"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for whatever watches over the process.

On a worker's own unix socket there are commands of its supervisor too.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from _thread import start_new_thread
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


class Probes:
    """/healthz answers 200 while the process lives, /readyz 200 while `ready()` and 503 otherwise.

    Owns `listener` and closes it. `registry`: whatever has a `collect`. `commands`: what a POST does, by its path, with
    the JSON that came; what it returns is sent as JSON.
    """

    def __init__(
        self,
        listener: socket.socket,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        commands: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
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

            def do_POST(self) -> None:
                command = (commands or {}).get(self.path)
                if command is None:
                    self._send(404, "text/plain", b"nothing takes a POST here\n")
                    return
                try:
                    facts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    self._send(200, "application/json", json.dumps(command(facts)).encode())
                except Exception as error:
                    log.exception("a command failed", extra={"command": self.path})
                    self._send(500, "text/plain", repr(error).encode())

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

    def process_request(self, request: Any, client_address: Any) -> None:
        # Thread.start waits until the thread says that it runs, for ever where memory ends before it can say so; then
        # nobody would be answered any more, and the process could not stop.
        start_new_thread(self.process_request_thread, (request, client_address))

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away is no event
