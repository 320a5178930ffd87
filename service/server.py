"""The whole service, started and stopped in order.

Start: ports are taken -> NOT_SERVING -> packages verified, loaded and warmed -> SERVING.
Stop:  NOT_SERVING -> lame-duck delay -> no new calls -> calls end -> connections close -> sessions -> metrics last.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from grpc_health.v1 import health, health_pb2
from prometheus_client import CollectorRegistry

from service import completion_queue, inference_messages, introspection, replicas
from service.completion_queue import CompletionQueueTransport
from service.cores import cpu_limit
from service.devices import choose_device
from service.errors import StartError
from service.guard import Guard
from service.inference_protocol import InferenceProtocol
from service.memory import keep_memory, settle
from service.metrics import Metrics
from service.observation import Observer, Tracer
from service.plans import Plan
from service.probes import Probes, tcp_listener, unix_listener
from service.repository import Refusals, Repository
from service.security import Security
from service.servicer import SERVICE, Servicer
from service.settings import Settings, address_of
from service.stores import open_store
from service.threaded import ThreadedTransport
from service.transport import Limits, Transport

log = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """Owns the ports, the threads and the models. `start` then `stop`, each once.

    `probes_socket`: where the probes listen instead of on the HTTP port, and then the gRPC port is shared with other
    processes. Raises StartError where a port is taken or a device that was asked for by name does not work.
    """

    def __init__(self, settings: Settings, *, probes_socket: Path | None = None) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self.device = choose_device(
            settings.device,
            gpu_memory_limit_bytes=settings.gpu_memory_limit_bytes,
            engine_cache=Path(settings.tensorrt_cache).expanduser() if settings.tensorrt_cache else None,
        )
        metrics = Metrics(CollectorRegistry())

        def count_call(well: bool, read_bytes: int) -> None:
            metrics.store_calls.labels("ok" if well else "failed").inc()
            metrics.store_read_bytes.inc(read_bytes)

        self.store = open_store(
            settings.models, cache=settings.model_cache, timeout_s=settings.store_timeout_s, on_call=count_call
        )
        self.security = Security(
            settings, on_expiry=lambda kind, expiry: metrics.certificate_expiry.labels(kind).set(expiry)
        )
        self.observer = Observer(access_log_share=settings.access_log_share, tracer=_tracer(settings))
        self._transport = _transport(
            settings,
            metrics,
            share_port=probes_socket is not None,
            guard=self.security.guard,
            observer=self.observer,
        )
        self.repository = Repository(
            store=self.store,
            device=self.device,
            threads=settings.threads or cpu_limit(),
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            metrics=metrics,
            work=self._transport.work,
            shadow_share=settings.shadow_share,
            on_change=self._tell_health,
            settle=settle,
        )
        servicer = Servicer(
            self.repository, max_interpolation_points=settings.max_interpolation_points, metrics=metrics
        )
        self._transport.add_service(SERVICE, servicer.methods())
        inference = InferenceProtocol(
            self.repository,
            max_interpolation_points=settings.max_interpolation_points,
            metrics=metrics,
            ready=self._ready.is_set,
        )
        self._transport.add_service(inference_messages.SERVICE, inference.methods())
        self._health = health.HealthServicer()
        introspection.add_health(self._transport, self._health)
        introspection.add_reflection(
            self._transport,
            (SERVICE, health.SERVICE_NAME, inference_messages.SERVICE),
            inference_messages.pool((SERVICE, health.SERVICE_NAME, introspection.REFLECTION)),
        )
        try:
            listener = (
                tcp_listener(settings.host, settings.http_port)
                if probes_socket is None
                else unix_listener(probes_socket)
            )
            orders = None if probes_socket is None else replicas.commands(self.repository)
            self._probes = Probes(listener, metrics.registry, self._ready.is_set, orders)
        except OSError as error:
            raise StartError(f"--http-port {settings.http_port} on {settings.host}: {error.strerror}") from error
        try:
            self.port = self._transport.bind(address_of(settings.host, settings.port), self.security.credentials())
        except OSError as error:
            self._probes.stop()
            reason = _refusal(settings.host, settings.port) or str(error)
            raise StartError(f"--port {settings.port} on {settings.host}: {reason}") from error
        self.http_port = self._probes.port

    def start(self, plans: Sequence[Plan], *, stop_loading: Callable[[], bool] = lambda: False) -> Refusals:
        """Listen, load what is planned, then serve. Returns why packages were refused. Raises StartError where none is
        left, unless `stop_loading()` said to stop, or it was planned so."""
        # A model that does not come to serve here, or is planned not to, is known all the same.
        for service in ("", SERVICE, inference_messages.SERVICE, *(plan.name for plan in plans)):
            self._health.set(service, _NOT_SERVING)
        self._probes.start()
        self.security.start()
        self._transport.start()
        refused = self.repository.load_all(plans, stop=stop_loading)
        if stop_loading():
            return refused
        cards = self.repository.all()
        if not cards and (refused or not plans):
            raise StartError(f"--models {self._settings.models}: no package there can be served")
        for service in ("", SERVICE, inference_messages.SERVICE, *{card.name for card in cards}):
            self._health.set(service, _SERVING)
        self._ready.set()
        return refused

    def _tell_health(self, name: str, served: bool) -> None:
        if self._ready.is_set():
            self._health.set(name, _SERVING if served else _NOT_SERVING)

    def stop(self, *, wait: Callable[[float], object]) -> None:
        """Drain and close. `wait(seconds)` passes the lame-duck delay and may return early."""
        served = self._ready.is_set()
        self._ready.clear()
        self._health.enter_graceful_shutdown()
        if served and self._settings.lame_duck_s:
            wait(self._settings.lame_duck_s)
        if served:
            log.info("draining", extra={"drain_s": self._settings.drain_s})
        self._transport.stop(self._settings.drain_s)
        self.security.stop()
        self.repository.close()
        self.observer.stop()
        self._probes.stop()


def _refusal(host: str, port: int) -> str | None:
    """Why the system lets nobody listen there, in its words, which gRPC's error leaves out; None where it does."""
    try:
        tcp_listener(host, port).close()
    except OSError as error:
        return error.strerror
    return None


def _tracer(settings: Settings) -> Tracer | None:
    """Raises StartError where traces are asked for and OpenTelemetry is not here."""
    if not settings.otel_endpoint:
        return None
    try:
        from service.tracing import OpenTelemetryTracer
    except ImportError as error:
        raise StartError(f"--otel-endpoint: needs the extra otel (pip install 'hourglass[otel]'): {error}") from error
    return OpenTelemetryTracer(settings.otel_endpoint)


def _transport(
    settings: Settings, metrics: Metrics, *, share_port: bool, guard: Guard | None, observer: Observer
) -> Transport:
    """Raises StartError where the completion queue was asked for by name and cannot be used."""
    limits = Limits(
        max_concurrent_requests=settings.max_concurrent_requests,
        max_message_bytes=settings.max_message_bytes,
        max_stream_requests=settings.max_stream_requests,
        max_connection_age_s=settings.max_connection_age_s or math.inf,
        connection_grace_s=settings.drain_s,
        max_connections=settings.max_connections,
        max_connection_streams=settings.max_connection_streams,
        max_header_bytes=settings.max_header_bytes,
        keepalive_s=settings.keepalive_s,
        receive_timeout_s=settings.receive_timeout_s,
    )
    reason = None if settings.transport == "threaded" else completion_queue.why_not()
    if reason and settings.transport == "completion-queue":
        raise StartError(f"--transport completion-queue: {reason}")
    if reason:
        log.warning("the slower threaded transport is used", extra={"reason": reason})
    if reason or settings.transport == "threaded":
        metrics.transport_info.labels("threaded").set(1)
        return ThreadedTransport(
            threads=settings.handler_threads,
            limits=limits,
            metrics=metrics,
            share_port=share_port,
            guard=guard,
            observer=observer,
        )
    metrics.transport_info.labels("completion-queue").set(1)
    # One thread makes and frees the messages here. Where threads hand them to each other, memory that is kept breaks up
    # and grows: some 40 MB in ten thousand messages of 800 KB.
    keep_memory()
    return CompletionQueueTransport(
        limits=limits, metrics=metrics, share_port=share_port, guard=guard, observer=observer
    )
