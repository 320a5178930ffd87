"""What a single-row Encode costs the server, by the library that the time is spent in, beside a bare echo.

Linux's perf samples the server, on a core of its own, while h2load keeps 64 calls in flight, or with --lone one after
the other; shares by library, times the processor time of a call. What is left of one over the rate is not the server's:
the client's work, and waking each other. Needs perf and h2load (Debian: linux-perf, nghttp2-client), and leave to use
perf.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.load import ROOT, Load
from benchmarks.options import add_rounds
from benchmarks.report import DOCUMENT, hardware
from benchmarks.subjects import Ours, digits, echo, latest, service
from service import packages

LOADS = {"call cost": Load(connections=4, streams=16), "lone call cost": Load(connections=1)}
ELSEWHERE = "the client, and waking each other"
CORE = {0}
FREQUENCY_HZ = 1999
# By the first that is found in the name of the file that the code is in.
LIBRARIES = {
    "grpc's core and its Cython layer": ("cygrpc",),
    "onnxruntime": ("onnxruntime",),
    "numpy and protobuf": ("_message.", "numpy", "multiarray", "_umath", "_upb", "google"),
    "the kernel": ("[kernel", "[unknown]", "[vdso", "vmlinux", "[guest"),
    "the C library": ("libc.", "libc-", "libm.", "libstdc++", "ld-linux", "libpthread"),
    "Python's interpreter": ("python", "_struct", "lib-dynload", "math.", "_json"),
}


def by_library(report: str) -> dict[str, float]:
    """Shares, 0 to 1, by the groups of `LIBRARIES`, of the output of `perf report --stdio --sort dso`; what is in none
    of them under its own name. Raises ValueError where there is no line with a share."""
    shares: dict[str, float] = {}
    for percent, name in re.findall(r"^\s*([\d.]+)%\s+(\S.*?)\s*$", report, re.MULTILINE):
        group = next((group for group, parts in LIBRARIES.items() if any(part in name for part in parts)), name)
        shares[group] = shares.get(group, 0.0) + float(percent) / 100
    if not shares:
        raise ValueError(f"perf gave no shares: {report}")
    return shares


def measure(server: Ours, model: str, load: Load, seconds: float) -> dict[str, float]:
    """Microseconds a call, by library."""
    rows = digits(1)
    server.measure(model, rows, load, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        command = ["perf", "record", "--quiet", "-F", str(FREQUENCY_HZ), "-p", str(server.pid), "-o", str(data)]
        sampling = threading.Thread(
            target=subprocess.run, args=([*command, "--", "sleep", str(seconds)],), kwargs={"check": True}
        )
        sampling.start()
        began, began_cpu = time.monotonic(), processor_s(server.pid)
        rate = server.measure(model, rows, load, seconds + 1.0).requests_per_s
        busy = min(1.0, (processor_s(server.pid) - began_cpu) / (time.monotonic() - began))
        sampling.join()
        report = subprocess.run(
            ["perf", "report", "--stdio", "--sort", "dso", "-i", str(data)], capture_output=True, text=True, check=True
        ).stdout
    costs = {name: share * busy / rate * 1e6 for name, share in by_library(report).items()}
    return {**costs, ELSEWHERE: (1 - busy) / rate * 1e6}


def processor_s(pid: int) -> float:
    """Of a process, so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def subjects(model: str, folder: Path) -> Iterator[dict[str, Ours]]:
    models = ROOT / "models"
    latent_values = packages.read(latest(models / model)).latent_shape
    with (
        service("service", models, CORE, folder, "--threads", "1") as ours,
        echo("bare echo", "completion-queue", CORE, folder, latent_values[0]) as bare,
    ):
        yield {"service": ours, "bare echo": bare}


def table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Costs by subject and library, those of a hundredth of the whole and more."""
    ours = costs["service"]
    names = sorted(ours, key=lambda name: -ours[name])
    shown = [name for name in names if ours[name] >= 0.01 * sum(ours.values())]
    rows = {name: [cost.get(name, 0.0) for cost in costs.values()] for name in shown}
    rows["all"] = [sum(cost.values()) for cost in costs.values()]
    lines = [f"| microseconds a call | {' | '.join(costs)} |", "|---|" + "---:|" * len(costs)]
    lines += [f"| {name} | {' | '.join(f'{value:.0f}' for value in values)} |" for name, values in rows.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.call_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="mnist-conv", help="default: mnist-conv")
    parser.add_argument("--seconds", type=float, default=5.0, help="of sampling each, in each round (default: 5)")
    add_rounds(parser, 3)
    parser.add_argument("--lone", action="store_true", help="one call after the other")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    what = "lone call cost" if options.lone else "call cost"
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, subjects(options.model, Path(folder)) as servers:
        for number in range(options.rounds):
            for name, server in servers.items():
                rounds.setdefault(name, []).append(measure(server, options.model, LOADS[what], options.seconds))
                print(f"round {number + 1}, {name}: {sum(rounds[name][-1].values()):.0f} us a call", flush=True)
    costs = {
        name: {
            library: statistics.median(one.get(library, 0.0) for one in measured)
            for library in {library for one in measured for library in one}
        }
        for name, measured in rounds.items()
    }
    command = f"python -m benchmarks.call_cost --seconds {options.seconds:g} --rounds {options.rounds}"
    if options.lone:
        command += " --lone"
    if options.model != "mnist-conv":
        command += f" {options.model}"
    text = f"`{command}`, {datetime.now(UTC).date()}; {hardware()}.\n\n{table(costs)}"
    print(f"\n{text}")
    if options.write:
        begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
        before, _, rest = DOCUMENT.read_text().partition(begin)
        DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
