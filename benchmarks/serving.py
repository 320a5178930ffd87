"""The service beside its limits and its peers: requests and rows a second, latency, memory.

Everything is measured in the same run, in rounds one after the other, and medians are reported: the machine may be
noisy, the ratios are not. Servers have one core, the load the other; with two workers both share both. While one server
is measured the others are stopped (SIGSTOP), so that idle ones cost nothing. The load comes from h2load, which is
native, so that no Python client is the limit; every answer is checked by its status, and values are compared with
onnxruntime's before anything is timed. Needs h2load (Debian: nghttp2-client); peers that were built
(python -m benchmarks.peers build) are measured, the others are named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.load import ROOT, Load, family
from benchmarks.options import add_rounds
from benchmarks.peers.catalog import PEERS, Peer, PeerError, Running
from benchmarks.subjects import (
    Ours,
    bare_session,
    copies,
    digits,
    echo,
    floats,
    latest,
    loop,
    service,
)  # fmt: skip

IN_FLIGHT = {1: Load(connections=1), 16: Load(connections=4, streams=4), 64: Load(connections=4, streams=16)}
BULK_ROWS, BULK = 256, Load(connections=4)
CLIENT_ROWS, TASKS, LONE_CALLS = 20_000, 2_000, 300
LONE_OPERATIONS = ("encode", "decode")
GROWTH_ROWS = (1, 4, 16, 64, 256)
GROWTH_CONNECTIONS = (1, 4, 16, 64, 256)
GROWTH_MODELS = (1, 10, 50)

_TRIES = 3

Figures = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="model packages (default: %(default)s)")
    parser.add_argument("--model", default="mnist-conv", help="the model whose encoder is used (default: %(default)s)")
    add_rounds(parser, 3)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement (default: %(default)s)")
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="default: all")
    parser.add_argument("--million", type=float, default=1.0, help="million rows of the memory test (default: 1)")
    parser.add_argument("--json", type=Path, help="write all figures, with hardware and versions, to this file")
    parser.add_argument("--write", action="store_true", help="put tables and chart into docs/")
    arguments = parser.parse_args()
    if shutil.which("h2load") is None:
        print("h2load is needed; Debian has it in the package nghttp2-client", file=sys.stderr)
        return 2
    if len(os.sched_getaffinity(0)) < 2:
        print("two cores are needed: one for the server, one for the load", file=sys.stderr)
        return 2
    bench = Bench(arguments)
    bench.run()
    made = report.Report(
        command=("python -m benchmarks.serving " + " ".join(sys.argv[1:])).strip(),
        model=arguments.model,
        medians={name: statistics.median(values) for name, values in bench.figures.items()},
        rounds=bench.figures,
        missing=bench.missing,
    )
    print(made.tables())
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(made.to_json(), indent=2) + "\n")
    if arguments.write:
        made.write()
    return 0


class Bench:
    """The run: `figures` are rows or messages a second (or seconds, or bytes, where the name says so), by round."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._model = arguments.model
        self._models = arguments.models
        self._rounds = arguments.rounds
        self._seconds = arguments.seconds
        self._peers = [PEERS[name] for name in arguments.peers]
        self._memory_rows = int(arguments.million * 1e6)
        self._encoder = latest(arguments.models / arguments.model) / "encoder.onnx"
        self._server_core, self._load_core = sorted(os.sched_getaffinity(0))[:2]
        self._session = bare_session(self._encoder)
        self._row = floats(digits(1))
        self._bulk = floats(digits(BULK_ROWS))
        self.figures: Figures = {}
        self.missing: dict[str, str] = {}

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._one_core(Path(folder))
            self._two_cores(Path(folder))
            self._fairness(Path(folder))
            self._growth(Path(folder))
            self._memory(Path(folder))

    def _note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)
        print(f"  {name}: {value:,.4g}", file=sys.stderr)

    def _one_core(self, folder: Path) -> None:
        """Every server on one core, the load on the other."""
        core = {self._server_core}
        one = ("--threads", "1")
        with ExitStack() as stack:
            ours = [
                stack.enter_context(service("Hourglass", self._models, core, folder, *one)),
                *(
                    stack.enter_context(
                        service(
                            f"threaded transport, {threads} threads",
                            self._models,
                            core,
                            folder,
                            *one,
                            "--transport",
                            "threaded",
                            "--handler-threads",
                            str(threads),
                        )
                    )
                    for threads in (4, 8, 16)
                ),
            ]
            latent_values = int(np.prod(self._session.run(None, {"rows": self._row})[0].shape))
            echoes = [
                stack.enter_context(echo(f"bare echo, {transport}", transport, core, folder, latent_values))
                for transport in ("completion-queue", "threaded")
            ]
            for one_of_ours in ours:
                one_of_ours.check(self._session, self._model)
            peers = [running for peer in self._peers if (running := self._start(stack, peer, core, 1)) is not None]
            everyone: list[Ours | Running] = [*ours, *echoes, *peers]
            stack.callback(_signal_all, everyone, signal.SIGCONT)  # what is stopped does not end
            _signal_all(everyone, signal.SIGSTOP)
            os.sched_setaffinity(0, {self._load_core})
            for number in range(self._rounds):
                print(f"one core, round {number + 1} of {self._rounds}", file=sys.stderr)
                self._bare(core)
                for subject in everyone:
                    with awake(subject.pid):
                        self._singles(subject, "one core")
                        if subject not in echoes and "threads" not in _name(subject):
                            self._bulks(subject)
                        if isinstance(subject, Ours) and (subject is ours[0] or subject in echoes):
                            rate = subject.stream(self._model, self._row, 1, 4)
                            self._note(f"{subject.name}, stream of single rows", rate)
        os.sched_setaffinity(0, {self._server_core, self._load_core})

    def _two_cores(self, folder: Path) -> None:
        """Two workers on both cores, which they share with the load; and the Python client beside them."""
        cores = {self._server_core, self._load_core}
        with ExitStack() as stack:
            ours = stack.enter_context(service("Hourglass", self._models, cores, folder, "--workers", "2"))
            peers = [
                running
                for peer in self._peers
                if peer.most_workers > 1 and (running := self._start(stack, peer, cores, 2)) is not None
            ]
            everyone: list[Ours | Running] = [ours, *peers]
            stack.callback(_signal_all, everyone, signal.SIGCONT)  # what is stopped does not end
            _signal_all(everyone, signal.SIGSTOP)
            both = bare_session(self._encoder, threads=2)
            for number in range(self._rounds):
                print(f"two cores, round {number + 1} of {self._rounds}", file=sys.stderr)
                self._note("onnxruntime in a loop on two cores, 256 rows", loop(both, self._bulk, self._seconds))
                for subject in everyone:
                    with awake(subject.pid):
                        self._single(subject, f"{_name(subject)}, two workers on two cores, 64 in flight", 64)
                with awake(ours.pid):
                    for what, count in (("rows", CLIENT_ROWS), ("streams", CLIENT_ROWS), ("tasks", TASKS)):
                        self._note(f"Hourglass, Python client, {what}", self._client(what, ours, count)[0])

    def _fairness(self, folder: Path) -> None:
        """Single rows, one after the other, alone and beside four clients that encode 256 rows without pause."""
        with service("Hourglass", self._models, {self._server_core}, folder, "--threads", "1") as ours:
            os.sched_setaffinity(0, {self._load_core})
            for number in range(self._rounds):
                print(f"fairness, round {number + 1} of {self._rounds}", file=sys.stderr)
                for operation in LONE_OPERATIONS:
                    self._note(f"lone {operation} alone, p99 in s", self._client(operation, ours, LONE_CALLS)[1])
                full = BULK_ROWS / loop(self._session, self._bulk, self._seconds)
                self._note("full batch in s", full)
                with bulk_load(ours, ours.body(self._model, self._bulk)):
                    for operation in LONE_OPERATIONS:
                        p99 = self._client(operation, ours, LONE_CALLS)[1]
                        self._note(f"lone {operation} under bulk load, p99 in s", p99)
            os.sched_setaffinity(0, {self._server_core, self._load_core})

    def _growth(self, folder: Path) -> None:
        """Rows a second, and memory, as messages, connections and models grow; one round."""
        print("growth", file=sys.stderr)
        core = {self._server_core}
        with service("Hourglass", self._models, core, folder, "--threads", "1") as ours:
            os.sched_setaffinity(0, {self._load_core})
            for count in GROWTH_ROWS:
                rate = ours.measure(self._model, floats(digits(count)), BULK, self._seconds).requests_per_s
                self._note(f"growth, {count} rows a message", rate * count)
                self._note(f"growth, {count} rows a message, resident bytes", ours.resident_bytes())
            for count in GROWTH_CONNECTIONS:
                rate = ours.measure(self._model, self._row, Load(connections=count), self._seconds).requests_per_s
                self._note(f"growth, {count} connections", rate)
                self._note(f"growth, {count} connections, resident bytes", ours.resident_bytes())
        for count in GROWTH_MODELS:
            models = copies(self._models / self._model, count, folder / f"models-{count}")
            with service("Hourglass", models, core, folder, "--threads", "1") as ours:
                load = IN_FLIGHT[64]
                rate = ours.measure(f"{self._model}-0", self._row, load, self._seconds).requests_per_s
                self._note(f"growth, {count} models", rate)
                self._note(f"growth, {count} models, resident bytes", ours.resident_bytes())
        os.sched_setaffinity(0, {self._server_core, self._load_core})

    def _memory(self, folder: Path) -> None:
        """Resident memory after the first tenth of many rows, and after all of them."""
        print("memory", file=sys.stderr)
        images = digits(BULK_ROWS)
        with service("Hourglass", self._models, {self._server_core}, folder, "--threads", "1") as ours:
            os.sched_setaffinity(0, {self._load_core})
            rows, tenth = 0, self._memory_rows // 10
            while rows < self._memory_rows:
                rows += ours.measure(self._model, images, BULK, 5.0).succeeded * BULK_ROWS
                if "memory early, resident bytes" not in self.figures and rows >= tenth:
                    self._note("memory early, resident bytes", ours.resident_bytes())
            self._note("memory late, resident bytes", ours.resident_bytes())
            self._note("memory, rows", rows)
        os.sched_setaffinity(0, {self._server_core, self._load_core})

    def _start(self, stack: ExitStack, peer: Peer, cores: set[int], workers: int) -> Running | None:
        try:
            running = stack.enter_context(peer.start(self._encoder, cores=cores, workers=workers))
            expected = self._session.run(None, {"rows": self._bulk[:7]})[0].reshape(7, -1)
            np.testing.assert_allclose(running.values(self._bulk[:7]), expected, atol=1e-4)
        except (PeerError, AssertionError) as error:
            self.missing[peer.name] = str(error).strip().splitlines()[0]
            print(f"  {peer.name} is left out: {self.missing[peer.name]}", file=sys.stderr)
            return None
        return running

    def _bare(self, core: set[int]) -> None:
        os.sched_setaffinity(0, core)
        for rows in (1, 16, 64, BULK_ROWS):
            rate = loop(self._session, floats(digits(rows)), self._seconds / 2)
            self._note(f"onnxruntime in a loop, {rows} rows", rate)
        os.sched_setaffinity(0, {self._load_core})

    def _singles(self, subject: Ours | Running, where: str) -> None:
        for in_flight in IN_FLIGHT:
            self._single(subject, f"{_name(subject)}, {where}, {in_flight} in flight", in_flight)

    def _single(self, subject: Ours | Running, name: str, in_flight: int) -> None:
        """Single rows. A peer that fails some requests, as some do when they were stopped before, has another try."""
        for _ in range(_TRIES):
            try:
                self._note(name, self._measure(subject, self._row, in_flight))
                return
            except PeerError as error:
                print(f"  {name}: {error}", file=sys.stderr)

    def _bulks(self, subject: Ours | Running) -> None:
        if isinstance(subject, Ours):
            for kind, rows in (("float32", self._bulk), ("uint8", digits(BULK_ROWS))):
                rate = subject.measure(self._model, rows, BULK, self._seconds).requests_per_s
                self._note(f"{subject.name}, {BULK_ROWS}-row messages, {kind}", rate * BULK_ROWS)
        else:
            with suppress(PeerError):  # some take no more than so many bytes in a message
                rate = subject.measure(self._bulk, BULK.in_flight, self._seconds).requests_per_s
                self._note(f"{subject.peer.name}, {BULK_ROWS}-row messages, float32", rate * BULK_ROWS)

    def _measure(self, subject: Ours | Running, rows: Any, in_flight: int) -> float:
        if isinstance(subject, Ours):
            return subject.measure(self._model, rows, IN_FLIGHT[in_flight], self._seconds).requests_per_s
        return subject.measure(rows, in_flight, self._seconds).requests_per_s

    def _client(self, what: str, ours: Ours, count: int) -> list[float]:
        command = [sys.executable, "-m", "benchmarks.client", what, ours.address, self._model, str(count)]
        return [
            float(word) for word in subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout.split()
        ]


def _name(subject: Ours | Running) -> str:
    return subject.name if isinstance(subject, Ours) else subject.peer.name


def _signal_all(subjects: list[Ours | Running], number: signal.Signals) -> None:
    for subject in subjects:
        _signal(subject.pid, number)


def _signal(leader: int, number: signal.Signals) -> None:
    for pid in family(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def awake(leader: int) -> Iterator[None]:
    """Let a stopped server and its family run while the block lasts."""
    _signal(leader, signal.SIGCONT)
    try:
        yield
    finally:
        _signal(leader, signal.SIGSTOP)


@contextmanager
def bulk_load(ours: Ours, body: Path) -> Iterator[None]:
    """Four connections that send one request after the other, until the block ends."""
    command = [
        "h2load", "--clients", str(BULK.connections), "--max-concurrent-streams", "1", "--threads", "1",
        "--duration", "600s", "--data", str(body), "--header", "content-type: application/grpc",
        "--header", "te: trailers", f"http://{ours.address}/autoencoder.v1.AutoencoderService/Encode",
    ]  # fmt: skip
    before = ours.ok("Encode")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            while ours.ok("Encode") < before + 8:
                pass
            yield
        finally:
            load.kill()


if __name__ == "__main__":
    sys.exit(main())
