"""What a run of benchmarks/serving.py says: tables, a chart and JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import onnxruntime as ort

from benchmarks.load import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks.png"
BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"
THREADS = (4, 8, 16)
PEERS = ("Mosec", "PyTriton", "KServe", "MLServer", "BentoML", "LitServe", "Ray Serve")


def hardware() -> str:
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} cores"


@dataclass(frozen=True, kw_only=True)
class Report:
    """`medians` and `rounds` by the name of the figure; `missing`: why a peer is not in it."""

    command: str
    model: str
    medians: dict[str, float]
    rounds: dict[str, list[float]]
    missing: dict[str, str]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    hardware: str = field(default_factory=hardware)
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
            "onnxruntime": ort.__version__,
        }
    )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def tables(self) -> str:
        return "\n\n".join((self._wanted(), self._singles(), self._bulks(), self._growth(), *self._left_out()))

    def write(self) -> None:
        """Into the document, with the chart beside it."""
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        facts = f"`{self.command}`, {self.date}; {self.hardware}; {versions}; encoder of `{self.model}`."
        DOCUMENT.write_text(f"{before}{BEGIN}\n{facts}\n\n{self.tables()}\n{END}{rest.partition(END)[2]}")
        self._draw()

    def _threaded(self, in_flight: int) -> float:
        """The threaded transport at its best number of threads."""
        return max(
            self.medians[f"threaded transport, {threads} threads, one core, {in_flight} in flight"]
            for threads in THREADS
        )

    def _best_peer(self, suffix: str) -> tuple[str, float] | None:
        rates = [(name, self.medians[f"{name}, {suffix}"]) for name in PEERS if f"{name}, {suffix}" in self.medians]
        return max(rates, key=lambda item: item[1]) if rates else None

    def _wanted(self) -> str:
        """Each ratio that matters, beside what it should at least (or at most) be."""
        m = self.medians
        ours = {n: m[f"Hourglass, one core, {n} in flight"] for n in (1, 16, 64)}
        rows = [("single rows, 64 in flight, over the threaded transport", ours[64] / self._threaded(64), ">=", 2.3)]

        def peer(name: str, n: int, least: float) -> None:
            key = f"{name}, one core, {n} in flight"
            if key in m:
                rows.append((f"single rows, {n} in flight, one core, over {name}", ours[n] / m[key], ">=", least))

        for name in ("MLServer", "KServe"):
            peer(name, 64, 6.0)
        peer("Mosec", 64, 0.6)
        for n in (1, 16):
            if best := self._best_peer(f"one core, {n} in flight"):
                text = f"single rows, {n} in flight, one core, over the best peer ({best[0]})"
                rows += [(text, ours[n] / best[1], ">=", 1.0)]
        if best := self._best_peer("two workers on two cores, 64 in flight"):
            two = m["Hourglass, two workers on two cores, 64 in flight"]
            rows.append(
                (f"two workers on two cores, 64 in flight, over the best peer ({best[0]})", two / best[1], ">=", 1.0)
            )
        for name in ("Mosec", "PyTriton"):
            key = f"{name}, one core, 1 in flight"
            if key in m:
                rows.append((f"time of a lone call, over {name}'s", m[key] / ours[1], "<=", 0.35))
        limit = 1 / m["bare echo, completion-queue, one core, 1 in flight"] + 1 / m["onnxruntime in a loop, 1 rows"]
        rows.append(("time of a lone call, over bare echo and bare compute", 1 / ours[1] / limit, "<=", 1.3))
        stream = m["Hourglass, stream of single rows"]
        rows.append(("stream of single rows, one connection, over unary at 64 in flight", stream / ours[64], ">=", 1.4))
        bare = max(m[f"onnxruntime in a loop, {count} rows"] for count in (64, 256))
        for kind, least in (("uint8", 0.75), ("float32", 0.65)):
            rate = m[f"Hourglass, 256-row messages, {kind}"]
            rows.append((f"256-row messages, {kind}, over bare onnxruntime", rate / bare, ">=", least))
        client = m["Hourglass, Python client, rows"] / m["onnxruntime in a loop on two cores, 256 rows"]
        rows.append(("Client.encode, client and server on two cores, over bare onnxruntime on both", client, ">=", 0.5))
        for operation in ("encode", "decode"):
            slowest = 2 * m["full batch in s"] + m[f"lone {operation} alone, p99 in s"]
            loaded = m[f"lone {operation} under bulk load, p99 in s"]
            what = f"lone {operation.capitalize()} beside four clients of bulk Encode"
            rows.append((f"{what}, p99, over two full batches and its p99 alone", loaded / slowest, "<=", 1.0))
        memory = m["memory late, resident bytes"] / m["memory early, resident bytes"]
        rows.append(
            (
                f"resident memory after {m['memory, rows'] / 1e6:.1f} million rows, over a tenth of them",
                memory,
                "<=",
                1.05,
            )
        )
        lines = ["| ratio | reached | wanted | |", "|---|---|---|---|"]
        for text, value, sign, bound in rows:
            holds = value >= bound if sign == ">=" else value <= bound
            wanted = f"at {'least' if sign == '>=' else 'most'} {bound:g}"
            lines.append(f"| {text} | {value:.2f} | {wanted} | {'yes' if holds else 'no'} |")
        return "\n".join(lines)

    def _singles(self) -> str:
        m = self.medians
        names = ["Hourglass", *(f"threaded transport, {threads} threads" for threads in THREADS)]
        names += [f"bare echo, {kind}" for kind in ("completion-queue", "threaded")]
        names += [name for name in PEERS if f"{name}, one core, 64 in flight" in m]
        lines = [
            "| single rows, requests a second | 1 in flight | 16 | 64 | two workers, two cores, 64 |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            rates = [m.get(f"{name}, one core, {n} in flight") for n in (1, 16, 64)]
            cells = ["failed" if rate is None else f"{rate:,.0f}" for rate in rates]
            two = m.get(f"{name}, two workers on two cores, 64 in flight")
            lines.append(f"| {name} | {' | '.join(cells)} | {'' if two is None else f'{two:,.0f}'} |")
        bare = " | ".join(f"{m[f'onnxruntime in a loop, {n} rows']:,.0f}" for n in (1, 16, 64))
        lines.append(f"| onnxruntime in a loop, rows a second at that batch | {bare} | |")
        return "\n".join(lines)

    def _bulks(self) -> str:
        m = self.medians
        lines = ["| rows a second | |", "|---|---|"]
        named = {
            f"{name}, 256-row messages, {kind}": f"{name}, 256-row messages, {kind}, 4 in flight, one core"
            for name in ("Hourglass", *PEERS)
            for kind in ("float32", "uint8")
        }
        named |= {
            name: name
            for name in (
                "Hourglass, stream of single rows",
                "bare echo, completion-queue, stream of single rows",
                "bare echo, threaded, stream of single rows",
                "Hourglass, Python client, rows",
                "Hourglass, Python client, streams",
                "Hourglass, Python client, tasks",
                "onnxruntime in a loop, 256 rows",
                "onnxruntime in a loop on two cores, 256 rows",
            )
        }
        lines += [f"| {text} | {m[name]:,.0f} |" for name, text in named.items() if name in m]
        return "\n".join(lines)

    def _growth(self) -> str:
        m = self.medians
        lines = ["| as work grows, one core | rows a second | resident memory, MB |", "|---|---|---|"]
        for name in m:
            if name.startswith("growth, ") and f"{name}, resident bytes" in m:
                memory = m[f"{name}, resident bytes"] / 1e6
                lines.append(f"| {name.removeprefix('growth, ')} | {m[name]:,.0f} | {memory:,.0f} |")
        return "\n".join(lines)

    def _left_out(self) -> list[str]:
        if not self.missing:
            return []
        lines = [f"| {name} | {reason} |" for name, reason in sorted(self.missing.items())]
        return ["\n".join(["| not in it | why |", "|---|---|", *lines])]

    def _draw(self) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        names = ["Hourglass", *(name for name in PEERS if f"{name}, one core, 64 in flight" in self.medians)]
        figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
        for axis, n in zip(axes, (1, 16, 64), strict=True):
            rates = [self.medians.get(f"{name}, one core, {n} in flight", 0.0) for name in names]
            bars = axis.barh(names, rates, color=["tab:blue", *["lightgray"] * (len(names) - 1)])
            axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
            axis.set_title(f"{n} in flight")
            axis.margins(x=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        figure.supxlabel("single-row requests a second, one core for the server")
        figure.savefig(CHART, dpi=110)
        pyplot.close(figure)
