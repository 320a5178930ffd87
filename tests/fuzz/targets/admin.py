"""changes that come one after the other -> each made or refused whole, and told as it is, of ModelAdminService

Each is a byte with the RPC's number, a byte with the length of its request, and so many bytes. What would load the
packages is a fake that refuses version 3.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoencoder.v1 import admin_pb2 as pb
from autoencoder.v1 import autoencoder_pb2
from service import labels
from service.admin import Admin
from service.calls import perform
from tests.fuzz.serving import Asked
from tests.unit.service.test_catalogue import Harness

RPCS = (
    "LoadModel", "UnloadModel", "ReloadModel", "SetLabel", "DeleteLabel", "RollbackLabel", "ListModelVersions",
)  # fmt: skip
LIST = RPCS[-1]
MAX_CHANGES = 16
VERSIONS, REFUSED, MAX_MODELS = (1, 2, 3, 4), 3, 2

State = tuple[list[int], dict[str, int], dict[str, list[int]]]


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    def one(data: bytes) -> None:
        # From the beginning each time: an input breaks a property by itself.
        shutil.rmtree(folder / "tiny", ignore_errors=True)
        subject = Harness(folder, versions=VERSIONS, policy="latest:1", max_models=MAX_MODELS)
        subject.replica.refused.add(REFUSED)
        methods = Admin(subject.catalogue).methods()

        def ask(rpc: str, message: bytes) -> Asked:
            call = Asked()
            perform(methods[rpc], message, call)
            assert call.over, "not answered"
            return call

        def state() -> State:
            return subject.served, subject.labels, labels.read(folder, "tiny")

        unloaded: set[int] = set()
        for rpc, message in split(data):
            before = state()
            call = ask(rpc, message)
            served, pointed, kept = state()
            if call.failed is not None or rpc == LIST:
                assert (served, pointed, kept) == before, "refused, and made in part"
            # Nothing that was refused, no more than may be, and on disk what is in use.
            assert REFUSED not in served
            assert len(served) <= MAX_MODELS
            assert pointed == labels.current(kept)
            # A label holds its version in service until the whole model is unloaded.
            if call.answered is not None and rpc == "UnloadModel" and not served:
                unloaded = {*VERSIONS}
            unloaded -= {*served}
            assert {*pointed.values()} <= {*served} | unloaded
            told = pb.ListModelVersionsResponse.FromString(ask(LIST, b"").answered or b"").versions
            assert [each.version for each in told] == [*reversed(VERSIONS)]
            assert [each.version for each in told if each.state == pb.MODEL_STATE_READY] == [*reversed(served)]
            assert {label: each.version for each in told for label in each.labels} == pointed
            if call.answered is not None and rpc != LIST:
                assert [*pb.LoadModelResponse.FromString(call.answered).versions] == [*told]

    yield one


def split(data: bytes) -> Iterator[tuple[str, bytes]]:
    for _ in range(MAX_CHANGES):
        if len(data) < 2:
            return
        stop = 2 + data[1]
        yield RPCS[data[0] % len(RPCS)], data[2:stop]
        data = data[stop:]


def join(*changes: tuple[str, str, str]) -> bytes:
    """RPCs, each with a version and a label."""
    joined = b""
    for rpc, version, label in changes:
        model = autoencoder_pb2.ModelSelector(name="tiny", version=version)
        fields = {"label": label} if label else {}
        message = getattr(pb, f"{rpc}Request")(model=model, **fields).SerializeToString()
        joined += bytes([RPCS.index(rpc), len(message)]) + message
    return joined


def seeds() -> dict[str, bytes]:
    load, unload, reload = ("LoadModel", "2", ""), ("UnloadModel", "4", ""), ("ReloadModel", "", "")
    first, second = ("SetLabel", "1", "stable"), ("SetLabel", "2", "stable")
    rollback, delete = ("RollbackLabel", "", "stable"), ("DeleteLabel", "", "stable")
    listed = pb.ListModelVersionsRequest(name="tiny").SerializeToString()
    return {
        "loaded": join(load, reload, unload, ("LoadModel", "", "")),
        "unloaded": join(("UnloadModel", "", ""), load, ("UnloadModel", "", "")),
        "unloaded_with_label": join(first, ("UnloadModel", "", ""), load, ("LoadModel", "", "")),
        "labelled": join(first, second, rollback, ("UnloadModel", "1", ""), delete),
        "by_label": join(first, ("SetLabel", "stable", "canary"), ("ReloadModel", "canary", "")),
        "refused": join(("LoadModel", "3", ""), ("SetLabel", "3", "stable"), reload),
        "too_many": join(first, load, ("LoadModel", "4", ""), ("SetLabel", "2", "canary"), ("LoadModel", "3", "")),
        "listed": bytes([RPCS.index(LIST), len(listed)]) + listed,
        "wrong": join(("LoadModel", "v" * 90, ""), ("SetLabel", "1", "A" * 90), ("DeleteLabel", "1", "stable")),
    }
