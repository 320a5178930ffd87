"""Which packages are loaded, and which of them answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from prometheus_client import CollectorRegistry

from autoencoder.v1 import autoencoder_pb2
from service import packages
from service.devices import CPU, Device
from service.errors import InvalidArgument, NotFound, Retired, ServiceError, StartError, Unavailable
from service.metrics import Metrics
from service.plans import Plan, find
from service.repository import Repository
from service.stores import Directory
from tests import tiny


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def repository(registry: CollectorRegistry, tmp_path: Path) -> Iterator[Repository]:
    subject = Repository(
        store=Directory(tmp_path),
        device=Device(provider=CPU),
        threads=1,
        max_batch_rows=4,
        max_queue_rows=16,
        metrics=Metrics(registry),
    )
    yield subject
    subject.close()


def plans_of(models: Path) -> list[Plan]:
    return [Plan(name=name, versions=tuple(versions)) for name, versions in find(models).items()]


def never() -> bool:
    return False


def version_of(repository: Repository, name: str, version: str = "") -> int:
    return repository.get(autoencoder_pb2.ModelSelector(name=name, version=version)).version


def test_the_start_and_each_change_settle_once(registry: CollectorRegistry, tmp_path: Path) -> None:
    settled = []
    subject = Repository(
        store=Directory(tmp_path),
        device=Device(provider=CPU),
        threads=1,
        max_batch_rows=4,
        max_queue_rows=16,
        metrics=Metrics(registry),
        settle=lambda: settled.append([card.version for card in subject.all()]),
    )
    for version in (1, 2):
        tiny.write(tmp_path, version=version)
    subject.load_all(plans_of(tmp_path), stop=never)
    subject.apply(Plan(name="tiny", versions=(2,)))
    assert settled == [[2, 1], [2]]
    subject.close()


def test_the_latest_version_answers_unless_another_is_named(repository: Repository, tmp_path: Path) -> None:
    for version in (10, 9):
        tiny.write(tmp_path, version=version)
    assert repository.load_all(plans_of(tmp_path), stop=never) == {}
    assert version_of(repository, "tiny") == 10
    assert version_of(repository, "tiny", "9") == 9


@pytest.mark.parametrize(
    ("name", "version", "error", "says"),
    [
        ("", "", InvalidArgument, "model.name: must be given"),
        ("tiny", "One", InvalidArgument, "must be a decimal number, a label or empty; got 'One'"),
        ("tiny", "stable", NotFound, "tiny has no label 'stable'; it has none"),
        ("tiny", "-1", InvalidArgument, "got '-1'"),
        ("tiny", "\u0661", InvalidArgument, "must be a decimal number, a label or empty"),
        ("tiny", "0", NotFound, "tiny has no version 0; it has 1"),
        ("tiny", "2", NotFound, "tiny has no version 2; it has 1"),
        ("tiny", "1" * 5000, NotFound, "tiny has no version 1111"),
        ("none", "", NotFound, "there is no model 'none'"),
    ],
)
def test_what_is_not_there_is_named(
    repository: Repository, tmp_path: Path, name: str, version: str, error: type[ServiceError], says: str
) -> None:
    tiny.write(tmp_path)
    repository.load_all(plans_of(tmp_path), stop=never)
    with pytest.raises(error) as caught:
        version_of(repository, name, version)
    assert says in caught.value.text
    assert len(caught.value.text) < 200


def test_while_models_load_those_that_are_ready_answer_and_the_others_may_come(
    repository: Repository, tmp_path: Path
) -> None:
    tiny.write(tmp_path)
    repository.prepare("tiny", 1)
    repository.apply(Plan(name="tiny", versions=(1,)))
    assert version_of(repository, "tiny") == 1
    for name, version in (("other", ""), ("tiny", "2")):
        with pytest.raises(Unavailable):
            version_of(repository, name, version)


def test_what_is_planned_and_refused_may_be_had_elsewhere(repository: Repository, tmp_path: Path) -> None:
    for name, version in (("tiny", 1), ("tiny", 2), ("other", 1)):
        tiny.write(tmp_path, name=name, version=version)
    for broken in ("tiny/2", "other/1"):
        (tmp_path / broken / "encoder.onnx").write_bytes(b"broken")
    assert repository.load_all(plans_of(tmp_path), stop=never).keys() == {("tiny", 2), ("other", 1)}
    assert version_of(repository, "tiny", "1") == 1
    for name, asked, says in (
        ("tiny", "2", "tiny version 2"),
        ("tiny", "", "tiny version 2"),
        ("other", "", "other version 1"),
        ("other", "1", "other version 1"),
    ):
        with pytest.raises(Unavailable, match=f"{says}.* could not be loaded here") as caught:
            version_of(repository, name, asked)
        assert caught.value.reason == "VERSION_NOT_LOADED"
    with pytest.raises(NotFound, match="tiny has no version 3; it has 1, 2"):
        version_of(repository, "tiny", "3")
    with pytest.raises(NotFound, match="other has no version 2; it has 1"):
        version_of(repository, "other", "2")
    with pytest.raises(NotFound, match="other has no label 'stable'; it has none"):
        version_of(repository, "other", "stable")
    with pytest.raises(InvalidArgument, match="must be a decimal number, a label or empty; got 'Bad!'"):
        version_of(repository, "other", "Bad!")
    # As when all processes refused it at the start: it is planned no more.
    repository.apply(Plan(name="tiny", versions=(1,)))
    repository.apply(Plan(name="other"))
    assert version_of(repository, "tiny") == 1
    for name, asked in (("tiny", "2"), ("other", "")):
        with pytest.raises(NotFound):
            version_of(repository, name, asked)


def test_what_was_refused_is_shown_until_it_is_forgotten(
    repository: Repository, registry: CollectorRegistry, tmp_path: Path
) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, version=version)
    (tmp_path / "tiny" / "2" / "encoder.onnx").write_bytes(b"broken")
    repository.load_all(plans_of(tmp_path), stop=never)

    def ready() -> list[float | None]:
        return [
            registry.get_sample_value("autoencoder_model_ready", {"model": "tiny", "version": version})
            for version in ("1", "2")
        ]

    assert ready() == [1, 0]
    for version in (1, 2, 3):
        repository.forget("tiny", version)
    assert ready() == [1, None], "what serves is shown"


def test_a_stop_ends_the_loading(repository: Repository, tmp_path: Path) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, version=version)
    repository.load_all(plans_of(tmp_path), stop=lambda: bool(repository.all()))
    assert [card.version for card in repository.all()] == [1]


def test_a_package_with_other_outputs_than_it_promises_never_answers(
    repository: Repository, registry: CollectorRegistry, tmp_path: Path
) -> None:
    files = tiny.files()
    wrong = tiny.graph(tiny.DECODER_WEIGHTS * 2, (tiny.LATENT,), tiny.ROW_SHAPE, "latents", "rows")
    packages.write(tmp_path, tiny.manifest("wrong"), files | {packages.DECODER: wrong.SerializeToString()})
    tiny.write(tmp_path)
    (refusal,) = repository.load_all(plans_of(tmp_path), stop=never).values()
    assert "decoder.onnx: golden rows differ" in str(refusal)
    assert version_of(repository, "tiny") == 1
    with pytest.raises(Unavailable):
        version_of(repository, "wrong")
    for name, ready in (("wrong", 0), ("tiny", 1)):
        assert registry.get_sample_value("autoencoder_model_ready", {"model": name, "version": "1"}) == ready


def test_a_graph_that_fails_in_a_run_is_refused(repository: Repository, tmp_path: Path) -> None:
    graph = tiny.encoder()
    (shape,) = [tensor for tensor in graph.graph.initializer if tensor.name == "out_shape"]
    shape.CopyFrom(numpy_helper.from_array(np.array([2, tiny.LATENT], np.int64), "out_shape"))
    packages.write(tmp_path, tiny.manifest(), tiny.files() | {packages.ENCODER: graph.SerializeToString()})
    (refusal,) = repository.load_all(plans_of(tmp_path), stop=never).values()
    assert "cannot be run" in refusal.rule


def test_golden_rows_that_fill_several_batches_are_all_checked(repository: Repository, tmp_path: Path) -> None:
    rows = tiny.rows(9)
    latents = tiny.encode(rows)
    reconstructions = tiny.decode(latents)
    reconstructions[8] += 1
    golden = tiny.npz(rows=rows, latents=latents, reconstructions=reconstructions)
    packages.write(tmp_path, tiny.manifest(), tiny.files() | {packages.GOLDEN: golden})
    (refusal,) = repository.load_all(plans_of(tmp_path), stop=never).values()
    assert "golden rows differ" in refusal.rule


def test_a_fault_of_ours_costs_one_model_and_shows_its_traceback(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write(tmp_path, "broken")
    tiny.write(tmp_path)
    read = packages.read

    def failing(directory: Path) -> packages.Package:
        if directory.parent.name == "broken":
            raise MemoryError("on purpose")
        return read(directory)

    monkeypatch.setattr(packages, "read", failing)
    with caplog.at_level(logging.ERROR):
        (refusal,) = repository.load_all(plans_of(tmp_path), stop=never).values()
    assert refusal.rule == "cannot be loaded: MemoryError: on purpose"
    assert version_of(repository, "tiny") == 1
    assert "on purpose" in caplog.text
    assert "Traceback" in caplog.text


def test_a_device_that_does_not_work_ends_the_start(tmp_path: Path) -> None:
    pretended = Device(provider="CUDAExecutionProvider", name="cpu", providers=((CPU, {}),))
    repository = Repository(
        store=Directory(tmp_path),
        device=pretended,
        threads=1,
        max_batch_rows=4,
        max_queue_rows=16,
        metrics=Metrics(CollectorRegistry()),
    )
    tiny.write(tmp_path)
    with pytest.raises(StartError):
        repository.load_all(plans_of(tmp_path), stop=never)


def test_what_is_prepared_is_seen_when_it_is_applied_and_not_when_it_is_discarded(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    changes: list[tuple[str, bool]] = []
    call: Any = SimpleNamespace(caller="test", deadline=float("inf"), observation=None)
    repository = Repository(
        store=Directory(tmp_path), device=Device(provider=CPU), threads=1, max_batch_rows=4, max_queue_rows=16,
        metrics=Metrics(registry), on_change=lambda name, served: changes.append((name, served)),
    )  # fmt: skip
    for version in (1, 2):
        tiny.write(tmp_path, version=version)
    repository.load_all([Plan(name="tiny", versions=(1,), labels={"stable": 1, "next": 2})], stop=never)
    first = repository.get(autoencoder_pb2.ModelSelector(name="tiny", version="stable"))
    repository.prepare("tiny", 2)
    repository.prepare("tiny", 1)
    assert version_of(repository, "tiny") == 1
    with pytest.raises(Unavailable, match="tiny: next is version 2, not loaded here"):
        version_of(repository, "tiny", "next")
    repository.discard("tiny")
    repository.apply(Plan(name="tiny", versions=(1, 2), labels={"stable": 2}))
    assert [card.version for card in repository.all()] == [1], "it was discarded"
    assert repository.get(autoencoder_pb2.ModelSelector(name="tiny", version="1")) is first

    repository.prepare("tiny", 2)
    repository.apply(Plan(name="tiny", versions=(2,), labels={"stable": 2}))
    assert version_of(repository, "tiny", "stable") == 2
    with pytest.raises(NotFound, match="tiny has no label 'next'; it has stable"):
        version_of(repository, "tiny", "next")
    with pytest.raises(Retired):
        first.encode(tiny.rows(1), call, lambda outcome: None)

    def shown(metric: str, version: str) -> float | None:
        return registry.get_sample_value(f"autoencoder_{metric}", {"model": "tiny", "version": version})

    assert [shown(metric, "2") for metric in ("model_ready", "queue_rows")] == [1, 0]
    assert [shown(metric, "1") for metric in ("model_ready", "queue_rows")] == [None, None]
    repository.apply(Plan(name="tiny"))
    assert changes == [("tiny", True)] * 3 + [("tiny", False)]
    assert repository.all() == []
    repository.close()


def test_closing_ends_the_models(repository: Repository, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    repository.load_all(plans_of(tmp_path), stop=never)
    repository.close()
    assert repository.all() == []
    with pytest.raises(NotFound):
        version_of(repository, "tiny")
