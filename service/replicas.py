"""The processes of one service as one: what a supervisor says to its workers, over the unix socket of each.

A worker answers GETs of its probes there, and takes changes of what it serves: a POST of a small JSON object.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from service.errors import PackageError
from service.plans import Plan
from service.threads import started_pool

log = logging.getLogger(__name__)

# A graph may be compiled for minutes; a worker that dies ends its connection.
_PREPARE_S = 1800.0
_APPLY_S = 300.0
_SCRAPE_S = 2.0

Command = Callable[[Any], Mapping[str, Any]]


def commands(repository: Any) -> dict[str, Command]:
    """The worker's side: the changes of a `Repository`, by their path."""

    def prepare(facts: Any) -> Mapping[str, str]:
        try:
            repository.prepare(facts["name"], facts["version"])
        except PackageError as error:
            return {"file": error.file, "rule": error.rule}
        return {}

    def apply(facts: Any) -> Mapping[str, str]:
        repository.apply(Plan.of(facts))
        return {}

    def discard(facts: Any) -> Mapping[str, str]:
        repository.discard(facts["name"])
        return {}

    def forget(facts: Any) -> Mapping[str, str]:
        repository.forget(facts["name"], facts["version"])
        return {}

    def missing(facts: Any) -> Mapping[str, Any]:
        return {"versions": sorted(repository.missing(facts["name"]))}

    return {"/prepare": prepare, "/apply": apply, "/discard": discard, "/forget": forget, "/missing": missing}


class Replicas:
    """The supervisor's side: a `catalogue.Replica`.

    `sockets` gives those of the workers that serve, and raises Unavailable while one is starting: it was told what to
    load already. One that dies on the way is replaced with what is planned then, so that nothing is lost with it; one
    that lives and does not follow is given to `give_up`, to be replaced too. `count` of them are talked to at a time.
    To be closed.
    """

    def __init__(self, sockets: Callable[[], list[Path]], *, give_up: Callable[[Path], object], count: int) -> None:
        self._sockets = sockets
        self._give_up = give_up
        # A change for which there was no thread in its middle would be made in some of them.
        self._pool = started_pool(count, "replica")

    def close(self) -> None:
        self._pool.shutdown()

    def prepare(self, name: str, version: int) -> None:
        def one(path: Path) -> None:
            try:
                answer = _post(path, "/prepare", {"name": name, "version": version}, _PREPARE_S)
            except (OSError, HTTPException, ValueError) as error:
                raise PackageError("a worker", f"ended or failed while it loaded the version: {error!r}") from error
            if answer:
                raise PackageError(answer["file"], answer["rule"])

        self._all(one)

    def apply(self, plan: Plan) -> None:
        self._tell("/apply", asdict(plan))

    def discard(self, name: str) -> None:
        self._tell("/discard", {"name": name})

    def forget(self, name: str, version: int) -> None:
        self._tell("/forget", {"name": name, "version": version})

    def missing(self, name: str) -> set[int]:
        found: set[int] = set()

        def one(path: Path) -> None:
            found.update(self._order(path, "/missing", {"name": name}).get("versions", []))

        self._all(one)
        return found

    def _tell(self, what: str, facts: Mapping[str, Any]) -> None:
        self._all(lambda path: self._order(path, what, facts))

    def _order(self, path: Path, what: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return _post(path, what, facts, _APPLY_S)
        except (OSError, HTTPException, ValueError):
            log.warning("a worker does not follow", extra={"socket": str(path), "what": what}, exc_info=True)
            self._give_up(path)
            return {}

    def _all(self, one: Callable[[Path], object]) -> None:
        told = [self._pool.submit(one, path) for path in self._sockets()]
        wait(told)
        for each in told:
            each.result()


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, what: str) -> str:
    """Raises OSError or HTTPException."""
    connection = _UnixConnection(path, _SCRAPE_S)
    try:
        connection.request("GET", what)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def _post(path: Path, what: str, facts: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Raises OSError, HTTPException or ValueError."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("POST", what, json.dumps(facts))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"{what}: {response.status} {body[:200]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer
    finally:
        connection.close()
