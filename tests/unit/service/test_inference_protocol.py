"""The Open Inference Protocol and the service's own API ask the same model, and its descriptors keep to themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1 import model_pb2
from service import inference_messages as messages
from service import packages
from service.errors import InvalidArgument, PermissionDenied, ServiceError
from service.inference_protocol import InferenceProtocol
from service.metrics import Metrics
from service.model import ServedModel
from service.servicer import Servicer
from service.tokens import Grant
from tests import tiny
from tests.integration.inference import arrays, request
from tests.unit.service.test_model import FakeSession

ROOT = Path(__file__).parents[3]


class Work:
    """A transport's thread with nothing to do until the test says so."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], bool]] = []

    def schedule(self, step: Callable[[], bool]) -> None:
        self.steps.append(step)

    def schedule_idle(self, step: Callable[[], object]) -> None:
        raise AssertionError("nothing here is for idle times")


class OneModel:
    """The repository of one model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def get(self, selector: pb.ModelSelector) -> ServedModel:
        return self._model

    def models(self) -> list[ServedModel]:
        return [self._model]

    def all(self) -> list[model_pb2.Model]:
        return [self._model.manifest]


class FakeCall:
    deadline = float("inf")
    observation = None

    def __init__(self, caller: str, grant: Grant | None = None) -> None:
        self.caller = caller
        self.grant = grant
        self.message: Any = None

    def on_cancel(self, callback: Callable[[], None]) -> None: ...

    def answer(self, build: Callable[[], Message]) -> None:
        self.message = build()

    def fail(self, error: ServiceError) -> None:
        raise error


def test_callers_of_both_apis_share_a_batch(tmp_path: Path) -> None:
    session, work, metrics = FakeSession(), Work(), Metrics(CollectorRegistry())
    session.may_go.set()
    package = packages.read(tiny.write(tmp_path))
    model = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=metrics, work=work)
    servicer = Servicer(OneModel(model), max_interpolation_points=9, metrics=metrics)  # type: ignore[arg-type]
    protocol = InferenceProtocol(
        OneModel(model),  # type: ignore[arg-type]
        max_interpolation_points=9,
        metrics=metrics,
        ready=lambda: True,
    )
    rows = tiny.rows(3)
    native, open_ = FakeCall("native"), FakeCall("open")
    tensor = pb.Tensor(dtype="DATA_TYPE_FLOAT32", shape=(1, 4, 4), data=rows[:1].tobytes())
    servicer.encode(pb.EncodeRequest(model=pb.ModelSelector(name="tiny"), rows=tensor), native)
    protocol.infer(request("tiny.encode", {"rows": rows[1:]}, model_version=""), open_)
    assert [native.message, open_.message] == [None, None]
    (step,) = work.steps
    assert not step()
    assert native.message.execution.batch_rows == 3
    assert [len(batch) for batch in session.encoded] == [3]
    assert arrays(open_.message)["latents"].tolist() == tiny.encode(rows)[1:].tolist()
    model.close()


def test_the_default_descriptor_pool_is_left_to_other_clients() -> None:
    program = (
        "import service.server\n"
        "from google.protobuf.descriptor_pool import Default\n"
        "try: Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError: print('free')"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "free"


def test_a_token_for_some_models_sees_and_asks_for_those_only(tmp_path: Path) -> None:
    session, metrics = FakeSession(), Metrics(CollectorRegistry())
    session.may_go.set()
    package = packages.read(tiny.write(tmp_path))
    model = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=metrics)
    protocol = InferenceProtocol(
        OneModel(model),  # type: ignore[arg-type]
        max_interpolation_points=9,
        metrics=metrics,
        ready=lambda: True,
    )
    asked = request("tiny.encode", {"rows": tiny.rows(1)})
    named = messages.ModelMetadataRequest(name="tiny.encode")
    others = Grant(name="others", groups=frozenset({"infer", "read"}), models=("mnist-*",))
    for handle, message in (
        (protocol.infer, asked),
        (protocol.model_ready, named),
        (protocol.model_metadata, named),
        (protocol.model_config, named),
        (protocol.model_statistics, named),
    ):
        with pytest.raises(PermissionDenied, match="the token others allows models like"):
            handle(message, FakeCall("others", others))
    for handle, message, field in (
        (protocol.repository_index, messages.IndexRequest(), "models"),
        (protocol.model_statistics, messages.StatisticsRequest(), "model_stats"),
    ):
        for grant, count in ((others, 0), (replace(others, models=("t*",)), 5), (None, 5)):
            call = FakeCall("somebody", grant)
            handle(message, call)
            assert len(getattr(call.message, field)) == count
    model.close()


def test_a_shape_of_many_dimensions_is_refused_before_it_is_computed_with(tmp_path: Path) -> None:
    session, metrics = FakeSession(), Metrics(CollectorRegistry())
    session.may_go.set()
    package = packages.read(tiny.write(tmp_path))
    model = ServedModel(package, session, max_batch_rows=8, max_queue_rows=32, metrics=metrics)
    protocol = InferenceProtocol(
        OneModel(model),  # type: ignore[arg-type]
        max_interpolation_points=9,
        metrics=metrics,
        ready=lambda: True,
    )
    sent = request("tiny.encode", {"rows": tiny.rows(1)}, typed=True)
    # The product of so many takes minutes, and none of its digits may be printed.
    sent.inputs[0].shape.extend([2**62] * 300_000)
    with pytest.raises(InvalidArgument, match=r"inputs\[rows\]\.shape: must be \[rows, 4, 4\]"):
        protocol.infer(sent, FakeCall("test"))
    model.close()
