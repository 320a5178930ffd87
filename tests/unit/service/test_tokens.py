"""Tokens and what they allow: the file, the command that makes them, and calls on both transports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from service import tokens
from service.errors import PermissionDenied, ServiceError, Unauthenticated
from service.guard import Guard
from service.tokens import Grant, Tokens
from tests.unit.service.test_transport import SERVICE, WAIT_S, Harness, answer_now, kind, square_of, squares_of

__all__ = ["kind"]

INFER, ADMIN = "/autoencoder.v1.AutoencoderService/Encode", "/autoencoder.v1.ModelAdminService/LoadModel"
LIST = "/autoencoder.v1.AutoencoderService/ListModels"


def write(path: Path, *, prefix: str = "", **facts: str) -> Path:
    """Tokens whose secret is their name with a prefix; `facts` are their other lines."""
    blocks = [
        f'[tokens.{name}]\nsha256 = "{hashlib.sha256((prefix + name).encode()).hexdigest()}"\n{lines}\n'
        for name, lines in facts.items()
    ]
    path.write_text("\n".join(blocks))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tokens.toml",
        all='allow = ["infer", "read", "admin"]',
        reader='allow = ["read"]',
        digits='allow = ["infer", "read"]\nmodels = ["mnist-*", "digits"]',
    )


def metadata(token: str | None) -> list[tuple[str, str]]:
    return [("user-agent", "test")] + ([] if token is None else [("authorization", f"Bearer {token}")])


@pytest.mark.parametrize(
    ("method", "token", "error", "says"),
    [
        (INFER, "all", None, ""),
        (ADMIN, "all", None, ""),
        (INFER, "digits", None, ""),
        (LIST, "reader", None, ""),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "digits", None, ""),
        (INFER, None, Unauthenticated, "a token is asked for"),
        (INFER, "All", Unauthenticated, "the token is not known"),
        (INFER, "", Unauthenticated, "the token is not known"),
        (INFER, "reader", PermissionDenied, "the token reader allows read; this is infer"),
        (ADMIN, "digits", PermissionDenied, "the token digits allows infer, read; this is admin"),
        ("/inference.GRPCInferenceService/ModelInfer", "all", None, ""),
        ("/inference.GRPCInferenceService/ModelInfer", "digits", None, ""),
        ("/inference.GRPCInferenceService/ModelInfer", "reader", PermissionDenied, "allows read; this is infer"),
        ("/inference.GRPCInferenceService/ModelMetadata", "reader", None, ""),
        ("/unknown.Service/Method", "digits", PermissionDenied, "use autoencoder.v1.Autoenc"),
        ("/unknown.Service/Method", None, Unauthenticated, ""),
    ],
)
def test_each_method_asks_for_its_permission(
    file: Path, method: str, token: str | None, error: type[ServiceError] | None, says: str
) -> None:
    guard = Guard(Tokens(file))
    if error is None:
        grant = guard.admit(method, metadata(token))
        assert grant is not None
        assert grant.name == token
        return
    with pytest.raises(error) as caught:
        guard.admit(method, metadata(token))
    assert says in caught.value.text


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive"])
def test_whether_the_service_is_there_may_be_asked_by_all(file: Path, method: str) -> None:
    assert Guard(Tokens(file)).admit(method, []) is None


@pytest.mark.parametrize("header", ["all", "Basic all", "bearer", b"Bearer all"])
def test_a_header_that_is_no_bearer_token_is_refused(file: Path, header: str | bytes) -> None:
    with pytest.raises(Unauthenticated):
        Guard(Tokens(file)).admit(INFER, [("authorization", header)])


def test_a_model_is_allowed_by_pattern_whether_it_exists_or_not() -> None:
    grant = Grant(name="digits", groups=frozenset({"infer"}), models=("mnist-*", "digits"))
    for model in ("mnist-conv", "digits"):
        grant.require_model(model)
    for model in ("digits-conv", "", "MNIST-conv", "x/mnist-conv"):
        with pytest.raises(PermissionDenied, match="allows models like mnist-\\*, digits; this is"):
            grant.require_model(model)


DIGEST = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "must have tables [tokens.NAME]"),
        ("[tokens]", "must have tables [tokens.NAME]"),
        ("tokens = 1", "must have tables [tokens.NAME]"),
        (f'x = 1\n[tokens.a]\nsha256 = "{DIGEST}"\nallow = ["infer"]', "and nothing else"),
        ("[tokens.a", ""),
        ('[tokens.a]\nsha256 = "abc"\nallow = ["infer"]', "tokens.a: sha256: 64 lower-case hexadecimal digits"),
        (f'[tokens.a]\nsha256 = "{DIGEST}"', "tokens.a: allow: a list of infer, read, admin; got None"),
        (f'[tokens.a]\nsha256 = "{DIGEST}"\nallow = []', "tokens.a: allow"),
        (f'[tokens.a]\nsha256 = "{DIGEST}"\nallow = ["all"]', "tokens.a: allow"),
        (f'[tokens.a]\nsha256 = "{DIGEST}"\nallow = ["infer"]\nmodels = "*"', "tokens.a: models"),
        (f'[tokens.a]\nsha256 = "{DIGEST}"\nallow = ["infer"]\nmodel = ["*"]', "tokens.a: knows sha256, allow and"),
        (f'[tokens.A]\nsha256 = "{DIGEST}"\nallow = ["infer"]', "tokens.A: a name has lower-case letters"),
        ("".join(f'[tokens.{n}]\nsha256 = "{DIGEST}"\nallow = ["read"]\n' for n in "ab"), "have the same sha256"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_it(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Tokens(path)
    assert says in str(caught.value)


def test_a_file_that_changes_is_taken_and_a_bad_one_is_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = Tokens(file)

    def known(token: str) -> bool:
        try:
            return subject.authenticate(f"Bearer {token}").name == token
        except Unauthenticated:
            return False

    def look() -> None:
        subject.look()
        subject.look()

    file.write_text("[tokens.broken")
    look()
    assert known("reader")
    assert "the tokens stay as they were" in caplog.text
    file.unlink()
    look()
    assert known("reader")
    write(file, other='allow = ["infer"]')
    look()
    assert known("other")
    assert not known("reader")


def test_the_command_makes_a_token_that_works_and_keeps_only_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.toml"
    assert tokens.main(["new", "one.batch", "--file", str(path)]) == 0
    one = capsys.readouterr().out.strip()
    assert tokens.main(["new", "two", "--allow", "admin", "--models", "mnist-*", "--file", str(path)]) == 0
    two = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(one) > 40
    assert one not in path.read_text()
    subject = Tokens(path)
    assert subject.authenticate(f"Bearer {one}") == Grant(name="one.batch", groups=frozenset({"infer", "read"}))
    assert subject.authenticate(f"Bearer {two}") == Grant(name="two", groups=frozenset({"admin"}), models=("mnist-*",))
    before = path.read_text()
    assert tokens.main(["new", "two", "--file", str(path)]) == 1
    assert "has a token two already" in capsys.readouterr().err
    assert tokens.main(["new", "Two"]) == 1
    capsys.readouterr()
    nowhere = tmp_path / "nowhere" / "tokens.toml"
    assert tokens.main(["new", "three", "--file", str(nowhere)]) == 1
    assert capsys.readouterr().err == f"service.tokens: {nowhere}: No such file or directory\n"
    assert path.read_text() == before
    assert tokens.main(["new", "three"]) == 0
    shown = capsys.readouterr()
    assert hashlib.sha256(shown.out.strip().encode()).hexdigest() in shown.err


@pytest.fixture
def harness(kind: str, file: Path) -> Iterator[Harness]:
    def beside(server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        reflection.enable_server_reflection((SERVICE,), server)

    subject = Harness(kind, guard=Guard(Tokens(file)), before_start=beside)
    subject.on_call = answer_now
    yield subject
    subject.calls.clear()
    subject.close()


Call = Callable[[Any], Any]


def unary(channel: grpc.Channel, **options: Any) -> Any:
    return square_of(channel)(Int64Value(value=3), timeout=WAIT_S, **options).value


def stream(channel: grpc.Channel, **options: Any) -> Any:
    (answer,) = squares_of(channel)(iter([Int64Value(value=3)]), timeout=WAIT_S, **options)
    return answer.value


def describe(channel: grpc.Channel, **options: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=WAIT_S, **options)
    return len(answer.list_services_response.service)


@pytest.mark.parametrize("call", [unary, stream, describe])
def test_calls_of_every_kind_are_let_in_with_a_token_only(harness: Harness, call: Callable[..., Any]) -> None:
    assert call(harness.channel, metadata=metadata("all")) in (9, 1)
    wrong = "digits" if call is not describe else "unknown"
    for token, code in (
        (None, "UNAUTHENTICATED"),
        (wrong, "PERMISSION_DENIED" if call is not describe else "UNAUTHENTICATED"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(harness.channel, metadata=metadata(token))
        error: Any = caught.value
        assert error.code().name == code
        rich = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert rich.details[0].Unpack(info)
        assert info.domain == "hourglass"
        assert info.reason in ("NO_TOKEN", "UNKNOWN_TOKEN", "MODEL_NOT_ALLOWED")
    assert len(harness.calls) == (1 if call is not describe else 0), "the others never came to a handler"


def test_health_is_open(harness: Harness) -> None:
    stub: Any = health_pb2_grpc.HealthStub(harness.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert next(watch).status
    watch.cancel()


def test_a_call_that_is_not_let_in_costs_no_place_and_is_counted(harness: Harness) -> None:
    for _ in range(2 * 100):
        with pytest.raises(grpc.RpcError):
            unary(harness.channel)
    assert unary(harness.channel, metadata=metadata("all")) == 9
    assert harness.requests("UNAUTHENTICATED") == 200
    rejected = harness.registry.get_sample_value("autoencoder_rejected_requests_total", {"reason": "NO_TOKEN"})
    assert rejected == 200


@pytest.mark.parametrize("content", ["a = " + "[" * 3000, "tokens.a = " + "{a = " * 3000])
def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens.toml").write_text(content)
    with pytest.raises(ValueError, match="is nested too deeply"):
        tokens.read(tmp_path / "tokens.toml")
