"""A real service in a subprocess, on free ports of the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

ROOT = Path(__file__).parents[2]
STOP_S = 60.0


class ServerProcess:
    """`python -m service` on `models`; ready when the block is entered, ended by SIGTERM when it is left."""

    def __init__(
        self,
        models: Path | str,
        *arguments: str,
        device: str = "cpu",
        ready: bool = True,
        module: str = "service",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", module, "--models", str(models), "--port", "0", "--http-port", "0",
                "--log-format", "json", "--device", device, *arguments,
            ],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.events: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if ready:
            try:
                serving = self.wait_for("serving")
            except BaseException:
                self.stop()
                raise
            self.address = str(serving["address"])
            self.http = f"http://{serving['http']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.other_lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, event: str, timeout_s: float = 60.0, *, count: int = 1) -> dict[str, Any]:
        """The `count`-th log line of that event. Raises AssertionError where the process ends without one."""

        def found() -> dict[str, Any] | None:
            lines = [line for line in self.events if line["event"] == event]
            return lines[count - 1] if len(lines) >= count else None

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive() or self.process.poll(), timeout_s)
            line = found()
        assert line is not None, f"no {event!r} in the log: {self.events} {self.other_lines}"
        return line

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        code = self.process.wait(STOP_S)
        self._reader.join(STOP_S)
        return code

    def stop(self) -> int:
        """End the process and return its exit code."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            assert self.process.stderr is not None
            self.process.stderr.close()

    def get(self, path: str) -> tuple[int, str]:
        """The HTTP port's answer."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, line_start: str) -> float:
        """The value of the metric line that begins with `line_start`; 0 where there is none."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(line_start):
                return float(line.rpartition(" ")[2])
        return 0.0

    def channel(self) -> grpc.Channel:
        # A channel of its own for each caller: the library shares connections between equal ones.
        return grpc.insecure_channel(
            self.address,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)],
        )
