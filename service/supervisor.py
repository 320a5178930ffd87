"""Several processes on one port: started, watched, replaced when they die, their metrics added up, stopped as one.

The kernel spreads connections over the processes (SO_REUSEPORT). This process holds the port, so that no other program
takes it, but does not listen; it serves /metrics, /healthz and /readyz for all.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service import logs, replicas, threads
from service import settings as settings_module
from service.announcement import Announcement, Card
from service.control import Control
from service.cores import cpu_limit
from service.errors import PackageError, StartError, Unavailable
from service.exposition import Total
from service.probes import Probes, tcp_listener
from service.replicas import Replicas
from service.security import Security
from service.settings import Settings
from service.signals import TOGGLE, Signals
from service.stores import open_store

log = logging.getLogger("service")

# A worker that dies younger than this is replaced later and later, so that a fault at the start costs no whole CPU.
_YOUNG_S = 10.0
_LONGEST_PAUSE_S = 10.0
_AFTER_DRAIN_S = 30.0
_BUSY_S = 0.2


@dataclass(eq=False)
class _Worker:
    """One process in its place; the place has a number, the process comes and goes."""

    number: int
    probes_socket: Path
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_s: float = 0.0
    ready: bool = False
    metrics: str = ""


class Supervisor:
    def __init__(self, settings: Settings, workers: int, *, banner: bool) -> None:
        self._settings = settings
        self._banner = banner
        self._folder = tempfile.TemporaryDirectory(prefix="hourglass-")
        folder = Path(self._folder.name)
        self._workers = [_Worker(number, folder / f"{number}.socket") for number in range(workers)]
        self._lock = threading.Lock()  # over the workers' processes, for the threads of the probes
        self._total = Total()
        self._selector = selectors.DefaultSelector()
        self._announced = self._stopping = self._failed = False
        self._control: Control  # made by `run`, where an error of the store ends the start
        self._security: Security | None = None  # of the administrators' listener; the workers have their own
        self._refused: dict[tuple[str, int], PackageError] = {}
        registry = CollectorRegistry()
        self._count = Gauge("autoencoder_workers", "Processes that are ready to serve", registry=registry)
        self._count.set_function(lambda: sum(worker.ready for worker in self._workers))
        self._restarts = Counter(
            "autoencoder_worker_restarts", "Processes that died and were replaced", registry=registry
        )
        registry.register(_Collector(self))
        self._registry = registry

    def run(self, signals: Signals) -> int:
        """Serve until a signal comes; returns the exit code."""
        # Its workers end with it.
        threads.end_with_any()
        signals.on_toggle = self._toggle
        processes = Replicas(self._sockets, give_up=self._give_up, count=len(self._workers))
        try:
            store = open_store(
                self._settings.models,
                cache=self._settings.model_cache,
                timeout_s=self._settings.store_timeout_s,
            )
            self._control = Control(self._settings, store, processes)
            self._control.plan()
            if self._settings.admin_address:
                self._security = Security(self._settings, on_expiry=lambda kind, expiry: None)
            try:
                port = _hold(self._settings.host, self._settings.port)
            except OSError as error:
                raise StartError(f"--port {self._settings.port} on {self._settings.host}: {error.strerror}") from error
            with port:
                try:
                    listener = tcp_listener(self._settings.host, self._settings.http_port)
                except OSError as error:
                    where = f"--http-port {self._settings.http_port} on {self._settings.host}"
                    raise StartError(f"{where}: {error.strerror}") from error
                probes = Probes(listener, self._registry, self._is_ready)
                probes.start()
                if self._security is not None:
                    self._security.start()
                try:
                    self._watch(signals, int(port.getsockname()[1]), probes.port)
                finally:
                    self._end()
                    self._control.stop()
                    if self._security is not None:
                        self._security.stop()
                    probes.stop()
        except StartError as error:
            log.error("cannot start", extra={"reason": str(error)})
            return 1
        finally:
            processes.close()
            self._selector.close()
            self._folder.cleanup()
        return int(self._failed)

    def collect(self) -> list[Metric]:
        """The metrics of all workers; of one that does not answer, what it said last."""
        with self._lock:
            for worker in self._workers:
                if worker.ready:
                    with suppress(OSError, HTTPException):
                        worker.metrics = replicas.get(worker.probes_socket, "/metrics")
            return self._total.of([worker.metrics for worker in self._workers if worker.metrics])

    def _is_ready(self) -> bool:
        return self._announced and not self._stopping and any(worker.ready for worker in self._workers)

    def _watch(self, signals: Signals, port: int, http_port: int) -> None:
        self._selector.register(signals, selectors.EVENT_READ)
        flags = settings_module.arguments(
            replace(
                self._settings,
                port=port,
                workers="1",
                threads=self._settings.threads or max(1, cpu_limit() // len(self._workers)),
            )
        )
        kill_at = float("inf")
        while True:
            now = time.monotonic()
            if not self._stopping:
                for worker in self._workers:
                    if worker.process is None and worker.start_at <= now:
                        self._start_in_peace(worker, flags)
            elif all(worker.process is None for worker in self._workers):
                return
            elif now >= kill_at:
                log.error("workers that do not end are killed")
                return
            waiting = [worker.start_at - now for worker in self._workers if worker.process is None]
            timeout_s = min([*waiting, kill_at - now, 3600.0]) if not self._stopping else min(kill_at - now, 3600.0)
            for key, _ in self._selector.select(max(0.0, timeout_s)):
                if key.fileobj is signals:
                    if signals.wait(0.0) is None:
                        continue
                    self._stopping = True
                    kill_at = min(kill_at, now + self._settings.lame_duck_s + self._settings.drain_s + _AFTER_DRAIN_S)
                    for process in self._processes():
                        process.terminate()
                else:
                    self._hear(key.data, port, http_port)

    def _toggle(self) -> None:
        logs.toggle_debug(self._settings.log_level)
        # One that is starting might not catch the signal yet, and would end.
        for worker in self._workers:
            if worker.process is not None and worker.ready:
                worker.process.send_signal(TOGGLE)

    def _start_in_peace(self, worker: _Worker, flags: list[str]) -> None:
        """Start a process, but not while what is served is being changed."""
        if not self._control.catalogue.lock.acquire(blocking=False):
            worker.start_at = time.monotonic() + _BUSY_S
            return
        try:
            self._start(worker, flags)
        finally:
            self._control.catalogue.lock.release()

    def _sockets(self) -> list[Path]:
        with self._lock:
            if self._stopping:
                raise Unavailable("DRAINING", "the service is stopping")
            for worker in self._workers:
                if worker.process is not None and not worker.ready:
                    raise Unavailable("STARTING", f"worker {worker.number} is starting; try again")
            return [worker.probes_socket for worker in self._workers if worker.ready]

    def _give_up(self, socket_path: Path) -> None:
        """End a worker, which is replaced as one that died."""
        with self._lock:
            for worker in self._workers:
                if worker.probes_socket == socket_path and worker.process is not None:
                    worker.process.terminate()

    def _start(self, worker: _Worker, flags: list[str]) -> None:
        worker.probes_socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "service.worker", str(worker.number), str(worker.probes_socket), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C on the terminal is for this process, which passes it on once.
            start_new_session=True,
        )
        worker.process, worker.started_at = process, time.monotonic()
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # of one that died at once
            # One that comes later is to serve what the others do, and nothing in its place.
            plans = [replace(plan, spares=()) if self._announced else plan for plan in self._control.catalogue.plans]
            process.stdin.write(json.dumps([asdict(plan) for plan in plans]) + "\n")
            process.stdin.flush()
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker, port: int, http_port: int) -> None:
        """A worker serves, or has ended."""
        assert worker.process is not None
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        if line:
            worker.ready = True
            log.info("worker ready", extra={"worker": worker.number, "pid": worker.process.pid})
            facts = json.loads(line)
            for name, version, file, rule in facts["refused"]:
                self._refused[name, version] = PackageError(file, rule)
            if not self._announced and all(other.ready for other in self._workers):
                self._announced = True
                self._control.start(self._refused, self._security)
                self._announce(facts, port, http_port)
            return
        self._selector.unregister(worker.process.stdout)
        code = self._bury(worker)
        if self._stopping:
            return
        if not self._announced:
            # What keeps one from starting keeps them all: its own log says what.
            log.error("a worker did not start", extra={"worker": worker.number, "exit_code": code})
            self._failed = self._stopping = True
            for process in self._processes():
                process.terminate()
            return
        young = time.monotonic() - worker.started_at < _YOUNG_S
        worker.pause_s = min(_LONGEST_PAUSE_S, 2 * worker.pause_s or 0.5) if young else 0.0
        worker.start_at = time.monotonic() + worker.pause_s
        self._restarts.inc()
        log.error("worker died", extra={"worker": worker.number, "exit_code": code, "replaced_in_s": worker.pause_s})

    def _bury(self, worker: _Worker) -> int:
        """Take leave of a process that has ended, or is about to: its exit code."""
        with self._lock:
            process, worker.process, worker.ready = worker.process, None, False
            self._total.keep(worker.metrics)
            worker.metrics = ""
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        code = process.wait()
        process.stdin.close()
        process.stdout.close()
        return code

    def _announce(self, facts: dict[str, object], port: int, http_port: int) -> None:
        cards = [Card(**card) for card in facts["cards"]]  # type: ignore[attr-defined]
        announcement = Announcement(
            address=f"{self._settings.host}:{port}",
            http=f"{self._settings.host}:{http_port}",
            device=str(facts["device"]),
            models=len(cards),
            workers=len(self._workers),
        )
        announcement.log()
        if self._banner:
            announcement.print(cards)

    def _processes(self) -> Iterator[subprocess.Popen[str]]:
        return (worker.process for worker in self._workers if worker.process is not None)

    def _end(self) -> None:
        """Whatever still runs is killed: after a drain that took too long, or an error here."""
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                self._bury(worker)


class _Collector(Collector):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> list[Metric]:
        return self._supervisor.collect()


def _hold(host: str, port: int) -> socket.socket:
    """A socket that has the port, which those that set SO_REUSEPORT may share. Raises OSError where somebody has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Without SO_REUSEPORT: another service that shares its port would otherwise share it with this one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        port = int(probe.getsockname()[1])
    holder = socket.socket(family)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError:
        holder.close()
        raise
    return holder
