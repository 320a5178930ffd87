"""Looks for inputs that break what reads bytes that anybody may send. Needs atheris (Linux on x86-64)."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from tests.fuzz import driver, keeping, targets


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="targets:\n"
        + "\n".join(f"  {name:12} {(targets.load(name).__doc__ or '').splitlines()[0]}" for name in targets.NAMES)
        + "\n\nAn input that breaks a property is written to --artifacts; mend the fault, and put the input into "
        "tests/fuzz/corpus/TARGET/.",
    )
    parser.add_argument("names", nargs="*", metavar="TARGET", help="which; all if none is given")
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="how long for each target (default 600)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the mutations; by chance if 0 (default 0)")
    parser.add_argument("--artifacts", type=Path, default=driver.ROOT / "build" / "fuzz", metavar="FOLDER")
    parser.add_argument(
        "--keep", action="store_true", help="keep seeds, and inputs that reach new lines, in tests/fuzz/corpus"
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - {*targets.NAMES, "planted"})
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(targets.NAMES)}")
    if not driver.has_atheris():
        print("needs atheris: pip install 'hourglass[fuzz]' (Linux on x86-64, Python 3.11 to 3.13)", file=sys.stderr)
        return 2
    if arguments.keep:
        logging.disable()  # what inputs make the service say
        keeping.seed()
    failed = False
    print("| target | s | inputs | inputs a second | found |\n|---|---|---|---|---|", flush=True)
    for name in arguments.names or targets.NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder)
            run = driver.fuzz(
                name, seconds=arguments.seconds, seed=arguments.seed, artifacts=arguments.artifacts, found=found
            )
            kept = keeping.keep(name, found) if arguments.keep else 0
        rate = run.executions / run.seconds if run.seconds else 0.0
        what = f"breaks it: {run.crash}" if run.crash else "nothing" if run.exit_code == 0 else "the process failed"
        what += f"; kept {kept}" if kept else ""
        print(f"| {name} | {run.seconds:.0f} | {run.executions:,} | {rate:,.0f} | {what} |", flush=True)
        if run.exit_code:
            failed = True
            print(run.said[-4000:], file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
