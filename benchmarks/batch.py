"""`hourglass batch` beside onnxruntime alone: the same file in, the same array out, on the same cores, in the same run.

    python -m benchmarks.batch --rows 100000 --rounds 3 --write

Bare onnxruntime reads the file piece by piece, scales the rows, runs the graphs in batches of 256 on all cores and
writes the result. The service has its own defaults, and shares the cores with the client; with a package, onnxruntime
runs in the command itself, or, with Ray, in its workers. Rounds alternate; medians are printed, by the clock and by the
processors' time. On a machine that others use too the clock favours whoever has more threads; the processors' time does
not. Ray is measured from the first piece on, with all its processes: its start takes seconds, however many rows there
are. Ray's environment: make .venv-ray/ready.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.load import ROOT
from benchmarks.options import add_rounds
from benchmarks.report import DOCUMENT, Report
from benchmarks.subjects import bare_session, digits, latest
from hourglass.__main__ import main as hourglass
from tests.integration.serving import ServerProcess

BEGIN, END = "<!-- batch: begin -->", "<!-- batch: end -->"
BATCH_ROWS, PIECE_ROWS = 256, 8192
SERVICE, PACKAGE, RAY_SERVICE, RAY_PACKAGE = "service", "package", "Ray, service", "Ray, package"
WANTED = {SERVICE: 0.45, PACKAGE: 0.75, RAY_SERVICE: 0.45, RAY_PACKAGE: 0.75}
BARE = "onnxruntime"
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"
JOBS = {"encode": "mnist-conv", "score": "mnist-conv", "denoise": "mnist-denoising-conv"}
# The denoiser is that much slower.
SHARES = {"encode": 1, "score": 2, "denoise": 20}
CLOCK, PROCESSORS = "clock", "processors"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="uint8 rows of 28 x 28 (default: 100000)")
    add_rounds(parser, 3)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    rounds: dict[str, list[float]] = {}
    subjects = [SERVICE, PACKAGE, *([RAY_SERVICE, RAY_PACKAGE] if RAY_PYTHON.exists() else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        for model in set(JOBS.values()):
            (models / model).symlink_to(ROOT / "models" / model)
        with ServerProcess(models) as server:
            for _ in range(options.rounds):
                for operation, model in JOBS.items():
                    np.save(folder / "rows.npy", digits(options.rows // SHARES[operation]))
                    package = latest(ROOT / "models" / model)
                    found = {BARE: _bare(operation, package, folder)}
                    for subject in subjects:
                        found[subject] = _ours(subject, operation, model, package, server, folder)
                        _compare(folder)
                    for subject, rates in found.items():
                        for by, rate in rates.items():
                            rounds.setdefault(f"{operation}, {subject}, {by}", []).append(rate)
                    shown = ", ".join(f"{each} {found[each][CLOCK] / found[BARE][CLOCK]:.2f}" for each in subjects)
                    print(f"{operation}: of {found[BARE][CLOCK]:.0f} rows/s by the clock: {shown}", flush=True)
    report = Report(
        command=" ".join(["python -m benchmarks.batch", *sys.argv[1:]]),
        model=", ".join(sorted(set(JOBS.values()))),
        medians={name: statistics.median(rates) for name, rates in rounds.items()},
        rounds=rounds,
        missing={} if RAY_PYTHON.exists() else {"Ray": "make .venv-ray/ready builds its environment"},
    )
    print(_table(report))
    for name, why in report.missing.items():
        print(f"{name}: not measured; {why}")
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=2))
    if options.write:
        _write(report)
    return 0


def _bare(operation: str, package: Path, folder: Path) -> dict[str, float]:
    """Rows a second of onnxruntime in a loop, from file to file."""
    encoder, decoder = (
        bare_session(package / f"{name}.onnx", threads=os.cpu_count() or 1) for name in ("encoder", "decoder")
    )

    def encode(rows: np.ndarray) -> np.ndarray:
        result: np.ndarray = encoder.run(None, {"rows": rows})[0]
        return result

    def rebuild(rows: np.ndarray) -> np.ndarray:
        result: np.ndarray = decoder.run(None, {"latents": encode(rows)})[0]
        return result

    def errors(rows: np.ndarray) -> np.ndarray:
        return ((rebuild(rows) - rows) ** 2).mean(axis=(1, 2))  # type: ignore[no-any-return]

    run: Callable[[np.ndarray], np.ndarray] = {"encode": encode, "denoise": rebuild, "score": errors}[operation]
    run(np.zeros((BATCH_ROWS, 28, 28), np.float32))
    source = np.load(folder / "rows.npy", mmap_mode="r")
    target = None
    began, began_cpu = time.monotonic(), time.process_time()
    for start in range(0, len(source), PIECE_ROWS):
        piece = np.asarray(source[start : start + PIECE_ROWS])
        for offset in range(0, len(piece), BATCH_ROWS):
            result = run(piece[offset : offset + BATCH_ROWS] * np.float32(1 / 255))
            if target is None:
                shape = (len(source), *result.shape[1:])
                target = np.lib.format.open_memmap(folder / "bare.npy", mode="w+", dtype=np.float32, shape=shape)
            target[start + offset : start + offset + len(result)] = result
    assert target is not None
    target.flush()
    return {
        CLOCK: len(source) / (time.monotonic() - began),
        PROCESSORS: len(source) / (time.process_time() - began_cpu),
    }


def _ours(
    subject: str, operation: str, model: str, package: Path, server: ServerProcess, folder: Path
) -> dict[str, float]:
    """Rows a second of the command, and of the service where one is asked."""
    output = folder / "ours.npy"
    output.unlink(missing_ok=True)
    command = ["batch", operation, str(folder / "rows.npy"), str(output)]
    if subject in (SERVICE, RAY_SERVICE):
        command += ["--address", server.address, "--model", model]
    else:
        command += ["--package", str(package)]
    if subject in (RAY_SERVICE, RAY_PACKAGE):
        # What lies between the first piece and the last is measured: there must be several.
        piece_rows = min(PIECE_ROWS, len(np.load(folder / "rows.npy", mmap_mode="r")) // 20)
        return _on_ray([*command, "--engine", "ray", "--piece-rows", str(piece_rows)], server.process.pid)
    began, began_cpu = time.monotonic(), time.process_time() + _processor_s(server.process.pid)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = hourglass(command)
    if code != 0:
        raise RuntimeError(f"hourglass {' '.join(command)} ended with {code}")
    count = len(np.load(output, mmap_mode="r"))
    return {
        CLOCK: count / (time.monotonic() - began),
        PROCESSORS: count / (time.process_time() + _processor_s(server.process.pid) - began_cpu),
    }


# Says how far it was when, and what processor time Ray and the service had had, beside what the command does.
_TIMED = """
import json, sys, time
from hourglass import batch_ray
from hourglass.__main__ import main
work_on_ray, seen = batch_ray.work_on_ray, []
server = int(sys.argv.pop(1))
def processor_s():
    import psutil  # which Ray brings along
    own, total = psutil.Process(), 0.0
    for each in (own, *own.children(recursive=True), psutil.Process(server)):
        try:
            times = each.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            pass
    return total
def timed(*arguments, **named):
    done = 0
    for rows in work_on_ray(*arguments, **named):
        done += rows
        now = time.monotonic()
        if not seen or now - seen[-1][0] > 0.5:  # to look at all processes takes milliseconds
            seen.append((now, processor_s(), done))
        yield rows
batch_ray.work_on_ray = timed
code = main(sys.argv[1:])
print(json.dumps([seen[0], seen[-1]]))
sys.exit(code)
"""


def _on_ray(command: list[str], server_pid: int) -> dict[str, float]:
    """Rows a second from the first piece on."""
    done = subprocess.run(
        [str(RAY_PYTHON), "-c", _TIMED, str(server_pid), *command],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"hourglass {' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    first, last = json.loads(done.stdout.splitlines()[-1])
    if first == last:
        raise SystemExit("--rows: must be enough for half a second of each operation with Ray")
    rows = last[2] - first[2]
    return {CLOCK: rows / (last[0] - first[0]), PROCESSORS: rows / (last[1] - first[1])}


def _processor_s(pid: int) -> float:
    """The processor time that a process has had, in user and system mode (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _compare(folder: Path) -> None:
    bare, ours = np.load(folder / "bare.npy", mmap_mode="r"), np.load(folder / "ours.npy", mmap_mode="r")
    if bare.ndim == 1:
        ours = ours[:, 0]  # beside the novelty
    np.testing.assert_allclose(ours[:1000], bare[:1000], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours[-1000:], bare[-1000:], rtol=1e-3, atol=1e-4)


def _table(report: Report) -> str:
    lines = [
        "| file to file | | rows/s | over onnxruntime alone, by the clock | by processor time | wanted | |",
        "|---|---|---|---|---|---|---|",
    ]
    for operation, model in JOBS.items():

        def median(subject: str, by: str, operation: str = operation) -> float | None:
            return report.medians.get(f"{operation}, {subject}, {by}")

        lines.append(f"| {operation}, `{model}` | {BARE} alone | {median(BARE, CLOCK):,.0f} | | | | |")
        for subject, wanted in WANTED.items():
            ratios = {
                by: ours / bare
                for by in (CLOCK, PROCESSORS)
                if (ours := median(subject, by)) is not None and (bare := median(BARE, by)) is not None
            }
            if ratios:
                shown = [f"{ratios[by]:.2f}" if by in ratios else "" for by in (CLOCK, PROCESSORS)]
                lines.append(
                    f"| | {subject} | {median(subject, CLOCK):,.0f} | {shown[0]} | {shown[1]} "
                    f"| at least {wanted} | {'yes' if min(ratios.values()) >= wanted else 'no'} |"
                )
    return "\n".join(lines)


def _write(report: Report) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    facts = f"`{report.command}`, {report.date}; {report.hardware}; onnxruntime {ort.__version__}."
    DOCUMENT.write_text(f"{before}{BEGIN}\n{facts}\n\n{_table(report)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
