"""Faults on purpose: what the service does while it is reloaded, stopped, killed, flooded, starved and lied to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from unittest import SkipTest

from tests.chaos.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios, with their length here and in the tests:\n"
        + "\n".join(f"  {name:24} {s.long:>9,} / {s.short:,} {s.unit}" for name, s in SCENARIOS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help="which; all if none is given")
    parser.add_argument("--short", action="store_true", help="as long as in the tests")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="times the length (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(SCENARIOS))
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")

    print("| scenario | length | s | held | figures |\n|---|---|---|---|---|", flush=True)
    results = []
    for name in arguments.names or SCENARIOS:
        scenario = SCENARIOS[name]
        length = max(1, round((scenario.short if arguments.short else scenario.long) * arguments.scale))
        figures: dict[str, float] = {}
        fault = ""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hourglass-chaos-") as folder:
            skipped = ""
            try:
                figures = scenario.run(Path(folder), length)
            except SkipTest as reason:
                skipped = str(reason)
            except Exception as error:  # the others are to run too
                fault = f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - began
        text = ", ".join(
            f"{key} {value:,.4g}" if value < 1000 else f"{key} {value:,.0f}" for key, value in figures.items()
        )
        held = f"skipped: {skipped}" if skipped else "no" if fault else "yes"
        print(f"| {name} | {length:,} {scenario.unit} | {took_s:.1f} | {held} | {text} |", flush=True)
        if fault:
            print(f"{name}: {fault}", file=sys.stderr, flush=True)
        results.append(
            {
                "scenario": name,
                "length": length,
                "unit": scenario.unit,
                "seconds": took_s,
                "figures": figures,
                "fault": fault,
                "skipped": skipped,
            }
        )
    if arguments.json is not None:
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
            "versions": {name: version(name) for name in ("grpcio", "onnxruntime", "protobuf")}
            | {"python": platform.python_version()},
        }
        arguments.json.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    return int(any(result["fault"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
