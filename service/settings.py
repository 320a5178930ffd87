"""How the service is told what to do: flags, then the environment, then defaults. Only here is the environment read."""

from __future__ import annotations

import argparse
import difflib
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from service.plans import Policy
from service.stores import check_url

PREFIX = "HOURGLASS_"
MAX_WORKERS = 256
# gRPC takes numbers, and times in milliseconds, of less than 31 bits; of the largest it ends the process.
_MOST = 2_000_000_000
_MOST_S = 1e6
# Of the client's and of training's.
_READ_BY_OTHERS = ("HOURGLASS_ADDRESS", "HOURGLASS_TOKEN", "HOURGLASS_DATA")
# What Kubernetes puts there for a Service of that name, unless enableServiceLinks is false.
_KUBERNETES = ("HOURGLASS_SERVICE_", "HOURGLASS_PORT_")
DEVICES = ("auto", "cpu", "cuda", "tensorrt")


def _setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
    variable: str | None = None,
) -> Any:
    """`variable`: one of the environment that others read too, which counts where ours is not set."""
    facts = {"choices": choices, "least": least, "most": most, "metavar": metavar, "variable": variable}
    return field(default=default, metadata={"help": help, **facts})


@dataclass(frozen=True, kw_only=True)
class Settings:
    models: str = _setting(
        "models",
        "directory of model packages, <name>/<version>/, or where they are in object storage: s3://bucket/prefix "
        "(needs the extra s3), gs://bucket/prefix (extra gcs), or another URL that fsspec knows; credentials come from "
        "the environment of its library",
        metavar="DIR|URL",
    )
    model_cache: str = _setting(
        "~/.cache",
        "where copies of the packages in object storage are kept, in hourglass/ and a folder for each URL; also "
        "XDG_CACHE_HOME",
        metavar="DIR",
        variable="XDG_CACHE_HOME",
    )
    store_timeout_s: float = _setting(
        30.0,
        "seconds that one call to object storage may take: a listing, or up to 8 MiB of a file",
        least=0.1,
        most=_MOST_S,
    )
    max_models: int = _setting(
        100,
        "most versions of models that are loaded, all names together; further ones are refused",
        least=1,
        most=_MOST,
    )
    versions: str = _setting("all", "versions of each model that are served: all, or latest:N for the N largest")
    watch_s: float = _setting(
        0.0,
        "seconds between looks at --models for new, changed and removed versions; 0 for never",
        least=0,
        most=_MOST_S,
    )
    host: str = _setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 for all interfaces (then use TLS and tokens, or keep it inside)"
    )
    port: int = _setting(50051, "gRPC port; 0 takes a free one", least=0, most=65535)
    http_port: int = _setting(9464, "port of /metrics, /healthz and /readyz; 0 takes a free one", least=0, most=65535)
    tls_cert: str = _setting("", "our certificate with its chain (PEM), for TLS; read again on change", metavar="FILE")
    tls_key: str = _setting("", "the key of our certificate (PEM, no password)", metavar="FILE")
    tls_client_ca: str = _setting(
        "", "whose certificates clients must have (PEM roots), for mutual TLS; empty asks for none", metavar="FILE"
    )
    tokens: str = _setting(
        "",
        "tokens that calls must bear, with what each allows (see service.tokens); empty asks for none",
        metavar="FILE",
    )
    admin_address: str = _setting(
        "",
        "where ModelAdminService listens, unix:/path or host:port; a host that is not this machine needs "
        "--tls-client-ca, or --tls-cert and --tokens; empty for nowhere",
    )
    device: str = _setting(
        "auto", "where graphs run; auto takes CUDA where it works, else the CPU, and says which", choices=DEVICES
    )
    gpu_memory_limit_bytes: int = _setting(0, "most GPU memory of each model; 0 sets no limit", least=0, most=1 << 48)
    tensorrt_cache: str = _setting(
        "",
        "where --device tensorrt keeps the engines that it compiled, which takes minutes; they are code, so that no "
        "other may write there; empty for nowhere",
        metavar="DIR",
    )
    workers: str = _setting(
        "1", "processes that share the port, each with its own sessions; auto is one a CPU, and one on a GPU"
    )
    threads: int = _setting(
        0, "CPU threads that run one graph; 0 takes what the cgroup allows, divided by the workers", least=0, most=4096
    )
    max_batch_rows: int = _setting(256, "most rows that are run together", least=1, most=1 << 20)
    max_queue_rows: int = _setting(
        8192,
        "most rows that wait for a model, and most rows of one request; more are refused at once",
        least=1,
        most=_MOST,
    )
    max_message_bytes: int = _setting(16 << 20, "largest request message", least=1024, most=_MOST)
    max_interpolation_points: int = _setting(1000, "most points of one path", least=2, most=_MOST)
    max_concurrent_requests: int = _setting(1024, "most RPCs at a time; more are refused at once", least=1, most=_MOST)
    transport: str = _setting(
        "auto",
        "completion-queue is several times faster and stands on private layers of grpcio; auto takes it where this "
        "grpcio passes its self-test, else threaded with a warning",
        choices=("auto", "completion-queue", "threaded"),
    )
    handler_threads: int = _setting(
        8, "RPCs that --transport=threaded handles at a time; further ones wait for a thread", least=1, most=4096
    )
    max_stream_requests: int = _setting(
        256, "most requests of one stream that are not answered; the client is held back beyond", least=1, most=_MOST
    )
    max_connections: int = _setting(
        4096, "most connections of one process; further ones are closed at once", least=1, most=_MOST
    )
    max_connection_streams: int = _setting(
        4096,
        "most RPCs at a time of one connection; further ones wait at the client or are UNAVAILABLE, so that this is "
        "better more than --max-concurrent-requests, which refuses by name",
        least=1,
        most=_MOST,
    )
    max_header_bytes: int = _setting(
        16384,
        "most bytes of the headers of one RPC; more are RESOURCE_EXHAUSTED (metadata size)",
        least=1024,
        most=_MOST,
    )
    keepalive_s: float = _setting(
        60.0,
        "seconds of silence after which a connection is asked whether its client is there; it has 20 s to answer",
        least=1,
        most=_MOST_S,
    )
    receive_timeout_s: float = _setting(
        60.0,
        "seconds in which the message of a unary RPC must have come; later is DEADLINE_EXCEEDED, so that a client that "
        "sends nothing holds no place of --max-concurrent-requests",
        least=0.1,
        most=_MOST_S,
    )
    max_connection_age_s: float = _setting(
        0.0,
        "seconds after which a client is asked to connect anew, so that load spreads over new workers and pods; "
        "its calls have --drain-s to end; 0 for never",
        least=0,
        most=_MOST_S,
    )
    lame_duck_s: float = _setting(
        0.0,
        "seconds between saying NOT_SERVING and taking no new requests, for load balancers to notice",
        least=0,
        most=_MOST_S,
    )
    drain_s: float = _setting(30.0, "seconds that requests in flight have to end at a stop", least=0, most=_MOST_S)
    shadow_share: float = _setting(
        0.0,
        "share of the rows of Encode, 0 to 1, that are reconstructed too when there is nothing else to do, to measure "
        "drift",
        least=0,
        most=1,
        metavar="SHARE",
    )
    access_log_share: float = _setting(
        0.0,
        "share of the requests, 0 to 1, that are told in the log, a line each; SIGUSR1 turns all on and off",
        least=0,
        most=1,
        metavar="SHARE",
    )
    otel_endpoint: str = _setting(
        "",
        "where traces are sent by OTLP over gRPC (needs the extra otel); also OTEL_EXPORTER_OTLP_ENDPOINT; empty for "
        "nowhere",
        metavar="URL",
        variable="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    log_format: str = _setting(
        "auto", "human or json lines on stderr; auto is human on a terminal", choices=("auto", "human", "json")
    )
    log_level: str = _setting("info", "least level that is logged", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, least, most = getattr(self, setting.name), setting.metadata["least"], setting.metadata["most"]
            # Not a number is in no range.
            if least is not None and not value >= least:
                raise ValueError(f"{_flag(setting.name)}: must be at least {least:.10g}; got {value}")
            if most is not None and not value <= most:
                raise ValueError(f"{_flag(setting.name)}: must be at most {most:.10g}; got {value}")
        for name in ("models", "host"):
            # Empty they would be where the process was started, and, in part, all interfaces.
            if not getattr(self, name):
                raise ValueError(f"{_flag(name)}: must not be empty")
        if self.workers != "auto" and not (self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_WORKERS):
            raise ValueError(f"--workers: must be auto or a number from 1 to {MAX_WORKERS}; got {self.workers}")
        try:
            check_url(self.models)
        except ValueError as error:
            raise ValueError(f"--models: {error}") from error
        try:
            self.policy()
        except ValueError as error:
            raise ValueError(f"--versions: {error}") from error
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("--tls-cert and --tls-key go together; give both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("--tls-client-ca: needs --tls-cert and --tls-key")
        self._check_admin_address()
        if self.otel_endpoint and not self.otel_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"--otel-endpoint: must be http://host:port or https://host:port; got {self.otel_endpoint}"
            )
        if self.tensorrt_cache and self.device != "tensorrt":
            raise ValueError(f"--tensorrt-cache: needs --device tensorrt; got --device {self.device}")
        if self.max_queue_rows < self.max_batch_rows:
            raise ValueError(
                f"--max-queue-rows: must be at least --max-batch-rows={self.max_batch_rows}; got {self.max_queue_rows}"
            )

    def _check_admin_address(self) -> None:
        address = self.admin_address
        if not address or address.startswith("unix:/"):
            return
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"--admin-address: must be unix:/path or host:port; got {address}")
        if not self.is_local(host.strip("[]")) and not (self.tls_client_ca or (self.tls_cert and self.tokens)):
            raise ValueError(
                f"--admin-address: on {host}, which is not this machine's loopback, needs --tls-client-ca, or "
                "--tls-cert and --tokens"
            )

    @staticmethod
    def is_local(host: str) -> bool:
        """Whether only this machine can reach what listens on `host`."""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def policy(self) -> Policy:
        """Raises ValueError."""
        return Policy.parse(self.versions)


def arguments(settings: Settings) -> list[str]:
    """The command line that gives these settings again, whatever the environment."""
    pairs = [(_flag(setting.name), str(getattr(settings, setting.name))) for setting in fields(settings)]
    return [word for pair in pairs for word in pair]


_EPILOG = f"""\
examples:
  python -m service --models models              # all that is there, on 127.0.0.1:50051; on a GPU where there is one
  python -m service --models models --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --tokens tokens.toml
  python -m service --models s3://bucket/models --versions latest:2 --watch-s 30 --workers auto
  python -m service --models models --admin-address unix:/run/hourglass/admin --lame-duck-s 5

Every flag can be given in the environment too: --max-batch-rows as {PREFIX}MAX_BATCH_ROWS. A flag wins over the
environment.
"""


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a command line and an environment. Exits with a usage error where one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve trained autoencoders over gRPC: Encode, Decode, Reconstruct, Denoise, Interpolate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for setting in fields(Settings):
        default: Any = setting.default
        kind: Callable[[str], Any] = type(default)
        choices = setting.metadata["choices"]
        variable = PREFIX + setting.name.upper()
        if variable not in environment:
            variable = setting.metadata["variable"] or variable
        if variable in environment:
            given = environment[variable]
            try:
                default = kind(given)
            except ValueError:
                parser.error(f"{variable}: must be {_KINDS[kind.__name__]}; got {given!r}")
            if choices and default not in choices:
                parser.error(f"{variable}: must be one of {', '.join(choices)}; got {given!r}")
        parser.add_argument(
            _flag(setting.name),
            type=kind,
            default=default,
            choices=choices or None,
            metavar=None if choices else setting.metadata["metavar"] or _METAVARS[kind.__name__],
            help=setting.metadata["help"] + ("" if setting.default == "" else " (default: %(default)s)"),
        )
    values = vars(parser.parse_args(arguments))
    try:
        return Settings(**values)
    except ValueError as error:
        parser.error(str(error))


def unread(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that look like ours and that nothing reads, each with the nearest that is read, if any is near.

    A slip there can leave a door open.
    """
    ours = [setting.name.upper() for setting in fields(Settings)]
    slips = {}
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        known = name in ours or variable in _READ_BY_OTHERS or variable.startswith(_KUBERNETES)
        if name != variable and not known:
            slips[variable] = "".join(PREFIX + near for near in difflib.get_close_matches(name, ours, n=1))
    return slips


def address_of(host: str, port: int) -> str:
    """As gRPC and URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_KINDS = {"int": "a whole number", "float": "a number"}
_METAVARS = {"int": "N", "float": "SECONDS", "str": "TEXT"}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
