"""Rules that hold for the whole service: who may import what, and that nothing was forgotten."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry

from autoencoder.v1 import autoencoder_pb2
from service import errors, logs, settings, statuses
from service.metrics import Metrics
from service.servicer import SERVICE

ROOT = Path(__file__).parents[3]
SERVICE_MODULES = sorted((ROOT / "service").glob("*.py"))

# module: those of the service that may import it; all others may not.
ALLOWED = {
    "grpc": {
        "transport",
        "threaded",
        "threaded_calls",
        "completion_queue",
        "rpcs",
        "stream_rpcs",
        "statuses",
        "server",
        "introspection",
        "listener",
        "certificates",
        "security",
        "healthcheck",
        "tracing",
    },
    "grpc_health": {"server", "introspection", "healthcheck"},
    "grpc_reflection": {"introspection"},
    "onnxruntime": {"session", "devices"},
    "opentelemetry": {"tracing"},
    "torch": set(),
    "training": set(),
    "hourglass": set(),
    "fsspec": {"objects"},
    "pickle": set(),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SERVICE_MODULES, ids=lambda path: path.stem)
def test_dependencies_point_inward(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    for module, allowed in ALLOWED.items():
        assert module not in roots or path.stem in allowed, f"{path.name} must not import {module}"


def test_the_core_knows_neither_grpc_nor_onnx_nor_the_layers_above() -> None:
    above = {"transport", "servicer", "server", "repository", "model", "session", "dispatcher"}
    core = imports(ROOT / "service" / "batcher.py")
    assert {name.split(".")[0] for name in core} <= {"__future__", "collections", "dataclasses", "typing", "service"}
    for leaf in ("settings", "errors", "tensors", "metrics", "paths", "batcher"):
        names = imports(ROOT / "service" / f"{leaf}.py")
        assert not {f"service.{module}" for module in above} & names


@pytest.mark.parametrize("path", SERVICE_MODULES, ids=lambda path: path.stem)
def test_only_the_command_lines_read_the_environment(path: Path) -> None:
    if path.stem not in ("__main__", "healthcheck"):
        assert not {"os.environ", "os.getenv"} & set(re.findall(r"os\.\w+", path.read_text()))


def test_training_never_imports_grpc() -> None:
    for path in (ROOT / "training").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"grpc", "hourglass"}, path


def test_the_service_imports_neither_torch_nor_training() -> None:
    program = "import service.__main__, sys; print(sorted({'torch', 'training', 'hourglass'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "[]"


def every_error() -> list[type[errors.ServiceError]]:
    return errors.ServiceError.__subclasses__()


def test_every_error_has_a_status_and_stands_in_the_tree() -> None:
    assert set(statuses.CODES) == set(every_error())
    for error in every_error():
        assert error.__name__ in (errors.__doc__ or "")


def test_every_error_has_the_status_of_the_contract() -> None:
    assert {error.__name__: code.name for error, code in statuses.CODES.items()} == {
        "InvalidArgument": "INVALID_ARGUMENT",
        "NotFound": "NOT_FOUND",
        "Unsupported": "FAILED_PRECONDITION",
        "Conflict": "FAILED_PRECONDITION",
        "Unauthenticated": "UNAUTHENTICATED",
        "PermissionDenied": "PERMISSION_DENIED",
        "NotServed": "UNIMPLEMENTED",
        "TooLarge": "RESOURCE_EXHAUSTED",
        "Overloaded": "RESOURCE_EXHAUSTED",
        "Unavailable": "UNAVAILABLE",
        "DeadlineExceeded": "DEADLINE_EXCEEDED",
        "Cancelled": "CANCELLED",
        "Internal": "INTERNAL",
    }


def test_a_status_carries_the_reason_and_when_to_retry() -> None:
    status = statuses.of(errors.Overloaded("QUEUE_FULL", "full", retry_after_s=0.25, limit="7"))
    assert (status.code, status.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    rich = status_pb2.Status.FromString(dict(status.trailing_metadata)["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "full")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert rich.details[0].Unpack(info)
    assert rich.details[1].Unpack(retry)
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUEUE_FULL", "hourglass", {"limit": "7"})
    assert retry.retry_delay.ToMilliseconds() == 250


# Values of settings that are not free; the others take numbers, or have choices.
VALUES = {
    "workers": ("11", "12"),
    "versions": ("latest:1", "latest:2"),
    "admin_address": ("unix:/a", "[::1]:0"),
    "shadow_share": ("0.25", "0.5"),
    "access_log_share": ("0.25", "0.5"),
    "otel_endpoint": ("http://a:1", "https://b:2"),
}
# What some settings are nothing without.
WITH = {
    "tls_cert": {"tls_key": "1"},
    "tls_key": {"tls_cert": "1"},
    "tls_client_ca": {"tls_cert": "1", "tls_key": "1"},
    "tensorrt_cache": {"device": "tensorrt"},
}


def test_every_setting_is_read_from_a_flag_and_from_the_environment() -> None:
    for setting in fields(settings.Settings):
        choices = setting.metadata["choices"] or VALUES.get(setting.name, ("1100", "1200"))
        flag, variable = "--" + setting.name.replace("_", "-"), "HOURGLASS_" + setting.name.upper()
        others = {f"HOURGLASS_{name.upper()}": value for name, value in WITH.get(setting.name, {}).items()}
        from_flag = settings.read([flag, choices[-1]], others | {variable: choices[0]})
        from_environment = settings.read([], others | {variable: choices[-1]})
        assert str(getattr(from_flag, setting.name)).removesuffix(".0") == choices[-1]
        assert from_flag == from_environment
        assert setting.metadata["help"]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--port", "70000"], {}, "--port: must be at most 65535; got 70000"),
        (["--max-batch-rows", "0"], {}, "--max-batch-rows: must be at least 1; got 0"),
        (["--max-queue-rows", "10"], {}, "--max-queue-rows: must be at least --max-batch-rows=256; got 10"),
        (["--workers", "none"], {}, "--workers: must be auto or a number from 1 to 256; got none"),
        (["--device", "gpu"], {}, "invalid choice: 'gpu'"),
        (
            ["--tensorrt-cache", "d", "--device", "cuda"],
            {},
            "--tensorrt-cache: needs --device tensorrt; got --device cuda",
        ),
        ([], {"HOURGLASS_PORT": "many"}, "HOURGLASS_PORT: must be a whole number; got 'many'"),
        ([], {"HOURGLASS_DRAIN_S": "long"}, "HOURGLASS_DRAIN_S: must be a number; got 'long'"),
        ([], {"HOURGLASS_DEVICE": "gpu"}, "HOURGLASS_DEVICE: must be one of auto, cpu, cuda, tensorrt; got 'gpu'"),
        (["--versions", "newest"], {}, "--versions: must be all or latest:N with N at least 1; got newest"),
        (["--tls-cert", "c"], {}, "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", "c"], {}, "--tls-client-ca: needs --tls-cert and --tls-key"),
        (["--admin-address", "50052"], {}, "--admin-address: must be unix:/path or host:port; got 50052"),
        (
            ["--admin-address", "0.0.0.0:1"],
            {},
            "on 0.0.0.0, which is not this machine's loopback, needs --tls-client-ca",
        ),
        (["--admin-address", "a.example:1", "--tokens", "t"], {}, "needs --tls-client-ca, or --tls-cert and --tokens"),
        (["--admin-address", "[::]:1", "--tls-cert", "c", "--tls-key", "k"], {}, "needs --tls-client-ca"),
        (["--shadow-share", "1.5"], {}, "--shadow-share: must be at most 1; got 1.5"),
        (["--access-log-share", "nan"], {}, "--access-log-share: must be at least 0; got nan"),
        (
            [],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "a:4317"},
            "--otel-endpoint: must be http://host:port or https://host:port",
        ),
        (["--models", "s3://key:secret@bucket/models"], {}, "--models: must be a URL without user, password or query"),
        ([], {"HOURGLASS_HOST": ""}, "--host: must not be empty"),
        (["--models", ""], {}, "--models: must not be empty"),
        (["--max-models", "0"], {}, "--max-models: must be at least 1; got 0"),
        (["--drain-s", "-1"], {}, "--drain-s: must be at least 0; got -1.0"),
        (["--drain-s", "nan"], {}, "--drain-s: must be at least 0; got nan"),
        (["--drain-s", "inf"], {}, "--drain-s: must be at most 1000000; got inf"),
        (["--max-message-bytes", "3000000000"], {}, "--max-message-bytes: must be at most 2000000000; got 3000000000"),
        (["--threads", "100000"], {}, "--threads: must be at most 4096; got 100000"),
        (["--handler-threads", "5000"], {}, "--handler-threads: must be at most 4096; got 5000"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(
    arguments: list[str], environment: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        settings.read(arguments, environment)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_every_number_has_bounds() -> None:
    for setting in fields(settings.Settings):
        bounded = setting.metadata["least"] is not None and setting.metadata["most"] is not None
        assert bounded == isinstance(setting.default, int | float), setting.name


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.read(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    for setting in fields(settings.Settings):
        assert "--" + setting.name.replace("_", "-") in shown
    assert shown.count("(default: ") == sum(setting.default != "" for setting in fields(settings.Settings))
    assert "(default: )" not in shown


def test_a_variable_that_nothing_reads_is_told_with_the_nearest_that_is_read() -> None:
    read = {"HOURGLASS_" + setting.name.upper(): "" for setting in fields(settings.Settings)}
    others = {"HOURGLASS_TOKEN": "", "HOURGLASS_ADDRESS": "", "HOURGLASS_DATA": "", "PATH": "", "XDG_CACHE_HOME": ""}
    kubernetes = {"HOURGLASS_SERVICE_HOST": "", "HOURGLASS_PORT_50051_TCP": ""}
    assert settings.unread(read | others | kubernetes) == {}
    assert settings.unread(others | {"HOURGLASS_TOKENS_FILE": "t", "HOURGLASS_XYZ": "1"}) == {
        "HOURGLASS_TOKENS_FILE": "HOURGLASS_TOKENS",
        "HOURGLASS_XYZ": "",
    }


def test_the_servicer_has_every_rpc_of_the_contract() -> None:
    from service.servicer import Servicer

    described = autoencoder_pb2.DESCRIPTOR.services_by_name["AutoencoderService"]
    assert described.full_name == SERVICE
    servicer = Servicer(None, max_interpolation_points=2, metrics=Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    methods = servicer.methods()
    assert set(methods) == {method.name for method in described.methods}
    for method in described.methods:
        assert type(methods[method.name].parse(b"")).DESCRIPTOR is method.input_type


def test_metric_names_are_the_contract() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    names = {family.name for family in registry.collect()}
    assert names == {
        f"autoencoder_{name}"
        for name in (
            "rpc_requests", "rpc_duration_seconds", "rows", "phase_duration_seconds", "batch_rows",
            "batch_padding_rows", "queue_rows", "requests_in_flight", "rejected_requests", "model_info",
            "model_load_duration_seconds", "model_ready", "transport_info", "stream_messages", "reconstruction_error", "novel_rows",
            "certificate_expiry_timestamp_seconds", "shadow_dropped_rows", "store_calls", "store_read_bytes",
        )
    }  # fmt: skip


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.makeLogRecord(
        {"msg": "model\nready", "levelname": "INFO", "name": "service", "model": "a\nb", "colour": "\x1b[2J\rü"}
    )


def test_json_logs_are_one_object_a_line(record: logging.LogRecord) -> None:
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert {"event": "model\nready", "model": "a\nb", "level": "info"}.items() <= json.loads(line).items()


def test_human_logs_are_one_line_an_event(record: logging.LogRecord) -> None:
    line = logs.HumanFormatter().format(record)
    assert "\n" not in line
    assert line.endswith("info    model\\nready  model=a\\nb  colour=\\x1b[2J\\x0dü")
