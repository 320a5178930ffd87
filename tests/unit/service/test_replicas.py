"""Changes of what several workers serve, over the sockets of workers whose repositories the test holds by the hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service import replicas
from service.errors import PackageError, Unavailable
from service.plans import Plan
from service.probes import Probes, unix_listener
from service.replicas import Replicas

PLAN = Plan(name="tiny", versions=(1, 3), labels={"stable": 3}, spares=(2,))


class FakeRepository:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.on_prepare: Callable[[], None] = lambda: None
        self.on_apply: Callable[[], None] = lambda: None
        self.lacking: frozenset[int] = frozenset()

    def prepare(self, name: str, version: int) -> None:
        self.on_prepare()
        self.calls.append(("prepare", name, version))

    def apply(self, plan: Plan) -> None:
        self.on_apply()
        self.calls.append(plan)

    def discard(self, name: str) -> None:
        self.calls.append(("discard", name))

    def forget(self, name: str, version: int) -> None:
        self.calls.append(("forget", name, version))

    def missing(self, name: str) -> frozenset[int]:
        return self.lacking if name == "tiny" else frozenset()


class Workers:
    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / f"{number}.socket" for number in range(count)]
        self.repositories = [FakeRepository() for _ in self.paths]
        self.given_up: list[Path] = []
        self._probes = [
            Probes(unix_listener(path), CollectorRegistry(), lambda: True, replicas.commands(repository))
            for path, repository in zip(self.paths, self.repositories, strict=True)
        ]
        for probes in self._probes:
            probes.start()
        self.subject = Replicas(lambda: self.paths, give_up=self.given_up.append, count=count)

    def kill(self, number: int) -> None:
        self._probes.pop(number).stop()

    def close(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Probes.stop, self._probes))
        self.subject.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    subject = Workers(tmp_path, 2)
    yield subject
    subject.close()


def test_every_worker_is_told_and_hears_the_same(workers: Workers) -> None:
    workers.subject.prepare("tiny", 3)
    workers.subject.apply(PLAN)
    workers.subject.discard("tiny")
    workers.subject.forget("tiny", 4)
    for repository in workers.repositories:
        assert repository.calls == [("prepare", "tiny", 3), PLAN, ("discard", "tiny"), ("forget", "tiny", 4)]
    assert workers.given_up == []


def test_what_any_worker_lacks_is_missing_and_one_that_does_not_say_is_given_up(workers: Workers) -> None:
    assert workers.subject.missing("tiny") == set()
    workers.repositories[0].lacking, workers.repositories[1].lacking = frozenset({3}), frozenset({1, 3})
    assert workers.subject.missing("tiny") == {1, 3}
    assert workers.subject.missing("other") == set()
    workers.kill(1)
    assert workers.subject.missing("tiny") == {3}
    assert workers.given_up == [workers.paths[1]]


def test_a_package_that_one_worker_refuses_is_refused(workers: Workers) -> None:
    def refuse() -> None:
        raise PackageError("encoder.onnx", "is refused")

    workers.repositories[1].on_prepare = refuse
    with pytest.raises(PackageError, match=r"encoder\.onnx: is refused"):
        workers.subject.prepare("tiny", 3)


def test_a_worker_that_ends_while_it_loads_counts_as_a_refusal(workers: Workers) -> None:
    workers.kill(0)
    with pytest.raises(PackageError, match="a worker: ended or failed while it loaded the version"):
        workers.subject.prepare("tiny", 3)


def test_a_worker_that_does_not_follow_is_given_up_and_the_others_follow(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    workers.repositories[0].on_apply = fail
    workers.subject.apply(PLAN)
    assert workers.given_up == [workers.paths[0]]
    assert workers.repositories[1].calls == [PLAN]
    assert "on purpose" in caplog.text


def test_while_a_worker_starts_nothing_is_changed(workers: Workers) -> None:
    def starting() -> list[Path]:
        raise Unavailable("STARTING", "worker 1 is starting")

    subject = Replicas(starting, give_up=workers.given_up.append, count=1)
    with pytest.raises(Unavailable):
        subject.prepare("tiny", 3)
    assert all(repository.calls == [] for repository in workers.repositories)
    subject.close()


def test_a_change_starts_no_thread(workers: Workers) -> None:
    def threads() -> set[int | None]:
        return {thread.ident for thread in threading.enumerate() if thread.name.startswith("replica")}

    before = threads()
    assert len(before) == 2
    workers.subject.apply(PLAN)
    assert threads() == before


def test_all_are_told_before_one_that_refuses_is_heard(workers: Workers) -> None:
    def refuse() -> None:
        raise PackageError("encoder.onnx", "is refused")

    workers.repositories[0].on_prepare = refuse
    with pytest.raises(PackageError):
        workers.subject.prepare("tiny", 3)
    assert workers.repositories[1].calls == [("prepare", "tiny", 3)]


def test_the_port_of_all_takes_no_orders(tmp_path: Path) -> None:
    probes = Probes(unix_listener(tmp_path / "socket"), CollectorRegistry(), lambda: True)
    probes.start()
    # Without a body, which would meet a connection that is closed already.
    connection = replicas._UnixConnection(tmp_path / "socket", 5.0)
    connection.request("POST", "/apply")
    assert connection.getresponse().status == 404
    connection.close()
    assert replicas.get(tmp_path / "socket", "/healthz") == "alive\n"
    probes.stop()
