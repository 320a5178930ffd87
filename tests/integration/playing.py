"""The playground's server in a thread, and a few of the models in models/ for it."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from pathlib import Path
from typing import Any

from examples.playground.calls import Calls, Digits
from examples.playground.web import Server
from hourglass import Client
from tests.integration.serving import ROOT

MODELS = ("mnist-deep", "mnist-denoising", "mnist-denoising-conv", "mnist-undercomplete")
WAIT_S = 20


def copy_models(models: Path) -> None:
    for name in MODELS:
        shutil.copytree(ROOT / "models" / name, models / name)


class Playground(Server):
    """The playground's server in a thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = Client(address, attempts=1)
        self.digits = Digits.read(ROOT / "examples" / "digits.npz")
        super().__init__("127.0.0.1", 0, Calls(self.client, address, self.digits))
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        self.client.close()

    def ask(
        self, call: str, question: Any = None, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and the answer."""
        data = json.dumps(question or {}).encode() if body is None else body
        connection = http.client.HTTPConnection("127.0.0.1", int(self.server_address[1]), timeout=WAIT_S)
        try:
            connection.request("POST", f"/api/{call}", data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, json.load(response)
        finally:
            connection.close()
