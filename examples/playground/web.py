"""The page's files and its calls over HTTP, with nothing but the standard library.

The page may ask this server and nobody else: its Content-Security-Policy forbids the rest.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.playground.calls import Calls, QuestionError
from hourglass import DeadlineExceeded, HourglassError, InvalidArgument, NotFound, Unavailable, Unsupported
from hourglass.channel import is_local

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_QUESTION_BYTES = 1 << 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    def __init__(self, host: str, port: int, calls: Calls) -> None:
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise OSError(f"{host}:{port}: {error.strerror}; --port takes another, 0 a free one") from error
        self.calls = calls
        self.files = {f"/{path.name}": path for path in PAGE.iterdir() if path.suffix in TYPES}
        self.files["/"] = PAGE / "index.html"
        # Another site's page could reach a server on this machine by a name of its own that points here.
        self.checks_host = is_local(f"{host}:{port}")

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError as error:
        raise QuestionError("a question is not nested so deeply") from error


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; on a connection that stays open Nagle would hold the second back for 40 ms.
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        path = self.server.files.get(self.path.partition("?")[0])
        if not self._is_for_us():
            return
        if path is None:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: no such file"})
        else:
            self._send(HTTPStatus.OK, f"{TYPES[path.suffix]}; charset=utf-8", path.read_bytes())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_QUESTION_BYTES:
            # What was sent is not read, so that nothing more can be asked on this connection.
            self.close_connection = True
            text = f"Content-Length: must be at most {MAX_QUESTION_BYTES}; got {length or 'none'}"
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": text})
            return
        body = self.rfile.read(int(length))
        if not self._is_for_us():
            return
        # Other sites cannot send this type without asking first, and nobody here says yes.
        if self.headers.get_content_type() != "application/json":
            self._answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "questions are application/json"})
            return
        call = self.server.calls.by_name.get(self.path.removeprefix("/api/"))
        if call is None:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: no such call"})
            return
        try:
            question = _parse(body)
            if not isinstance(question, dict):
                raise QuestionError("a question is a JSON object")
            self._answer(HTTPStatus.OK, call(question))
        except (Unavailable, DeadlineExceeded) as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
        except (InvalidArgument, NotFound, Unsupported, ValueError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except HourglassError as error:
            self._answer(HTTPStatus.BAD_GATEWAY, {"error": str(error)})

    def _is_for_us(self) -> bool:
        host = self.headers.get("Host", "")
        if not self.server.checks_host or is_local(host):
            return True
        self._answer(HTTPStatus.FORBIDDEN, {"error": f"Host: must be this machine; got {host!r}"})
        return False

    def _answer(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            # The page was closed meanwhile.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
