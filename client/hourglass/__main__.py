"""The command line `hourglass`: arguments in, one line on stderr and an exit code where something is wrong."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hourglass import admin_commands, batch, commands
from hourglass.admin import AdminClient
from hourglass.batch_shards import Shard
from hourglass.batch_work import OPERATIONS
from hourglass.channel import TLS
from hourglass.client import Client
from hourglass.errors import HourglassError
from hourglass.files import said
from hourglass.in_process import InProcess

DEFAULT_ADDRESS = "127.0.0.1:50051"
_MOST_THREADS = 4096

_EPILOG = """\
examples:
  hourglass models
  hourglass encode digits.npy latents.npy --model mnist-conv
  hourglass decode latents.npy digits.npy --model mnist-conv
  hourglass reconstruct digits.npy again.npy --model mnist-conv --scores scores.csv
  hourglass denoise noisy.png clean.png --model mnist-denoising
  hourglass admin --help
  hourglass interpolate three.png eight.png strip.png --model mnist-conv --steps 9 --method spherical
  hourglass batch encode digits.parquet latents.parquet --model mnist-conv
  hourglass batch encode digits.parquet latents.parquet --package models/mnist-conv/1 --engine ray

A .npy file holds rows: its first dimension counts them, the others are the shape of the model's input (or latent).
uint8 means 0 to 255 for 0 to 1. Files are read and written piece by piece, so they may be larger than the memory.
Where --model is left out and one model fits, that one is used.

environment:
  HOURGLASS_ADDRESS        as --address
  HOURGLASS_ADMIN_ADDRESS  as --address of hourglass admin
  HOURGLASS_TOKEN          the token itself; a token on the command line would be seen by every user of the machine
"""


_BATCH = """\
Send every row of INPUT through a model and write what comes of it, in the same order, to OUTPUT.

  encode   latents            Parquet column `latent`, or a .npy array of rows
  denoise  clean rows         Parquet columns `clean` and `distance`, or a .npy array of rows
  score    how well and how   Parquet columns `reconstruction_error` and `novelty`, or the two side by side in a .npy
           novel each row is  array [rows, 2]

  join     the parts that --shard has made, to one file; INPUT is their folder, and all of them must be there

Parquet has a column `row` beside them, and `file` where the input is a folder. Lists are row-major. The memory that
is used does not depend on the size of INPUT. What is done is kept in OUTPUT.work: the same command again goes on after
a kill or an error, and does not ask again for a row that is there. While the service is away, it waits. --timeout is
for each piece.

Without a service, --package runs a model package with onnxruntime on the CPUs of this machine, to the same numbers.
On many machines, --engine ray has workers of a Ray cluster read INPUT, which all must see under the same path, and ask
the service or run the package; results come back and are written here. Or start the command once for each --shard.
"""


_ROWS = """
A .npy file holds rows: its first dimension counts them, the others are the shape that the model takes (hourglass
models). uint8 is taken as pixels of 0 to 255 and scaled to 0 to 1; numbers of any other type go as they are. Files are
read and written piece by piece, and OUT takes its place when it is whole.
"""

_DESCRIPTIONS = {
    "models": """\
List the models that are ready: the shapes of a row and a latent of each, what may be asked of it, figures of its
evaluation (--json has all that the service says), and whether it runs on a GPU or a CPU.
""",
    "encode": f"""\
Write the latents of rows: what the encoder makes of them, for search, clustering or a classifier.

  hourglass encode digits.npy latents.npy --model mnist-conv
{_ROWS}""",
    "decode": f"""\
Write the rows that belong to latents, as `hourglass encode` wrote them or changed.

  hourglass decode latents.npy digits.npy --model mnist-conv
{_ROWS}""",
    "reconstruct": f"""\
Write what comes of rows on the way through encoder and decoder. --scores keeps how far each row is from what came of
it (mean squared error), and where that lies among the errors of the rows that the model was validated with: a novelty
near 1 is unlike them.

  hourglass reconstruct digits.npy again.npy --model mnist-conv --scores scores.csv
{_ROWS}""",
    "denoise": f"""\
Write the clean picture that a model trained on noise sees in a corrupted one, or the clean rows.

  hourglass denoise noisy.png clean.png --model mnist-denoising-conv
{_ROWS}""",
    "interpolate": """\
Draw the path between two pictures through the latents of a model, as a strip of pictures.

  hourglass interpolate three.png eight.png strip.png --model mnist-conv --steps 9

linear: along a straight line. spherical: along the arc from one latent to the other, seen from the origin.
""",
}


def parser() -> argparse.ArgumentParser:
    secured = argparse.ArgumentParser(add_help=False)
    group = secured.add_argument_group("connection")
    group.add_argument("--tls", action="store_true", help="use TLS and trust the roots that gRPC ships")
    group.add_argument("--tls-ca", metavar="FILE", type=Path, help="use TLS and trust these roots (PEM)")
    group.add_argument("--tls-cert", metavar="FILE", type=Path, help="our certificate, for mutual TLS (PEM)")
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="the key of our certificate (PEM)")
    group.add_argument("--token-file", metavar="FILE", type=Path, help="send the token in this file as a bearer token")
    group.add_argument(
        "--token-in-clear",
        action="store_true",
        help="send the token without TLS to another machine, where nobody can listen, as behind a service mesh",
    )
    group.add_argument("--timeout", metavar="S", type=_seconds, help="give up after so many seconds (default: never)")
    connection = argparse.ArgumentParser(add_help=False, parents=[secured])
    connection.add_argument(
        "--address",
        default=os.environ.get("HOURGLASS_ADDRESS") or DEFAULT_ADDRESS,
        help=f"host:port or any gRPC name (default: HOURGLASS_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", metavar="NAME[/VERSION]", help="the model; may be left out where one fits (see hourglass models)"
    )
    arrays = argparse.ArgumentParser(add_help=False)
    arrays.add_argument("--float16", action="store_true", help="write float16 instead of float32")
    resize = argparse.ArgumentParser(add_help=False)
    resize.add_argument("--resize", action="store_true", help="scale pictures to the size that the model takes")

    main = argparse.ArgumentParser(
        prog="hourglass",
        description="Ask an Hourglass autoencoder service: numpy files and pictures in, numpy files and pictures out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No abbreviations: `--token x` must not be taken for `--token-file x`.
    add = partial(main.add_subparsers(dest="command", metavar="COMMAND", required=True).add_parser, allow_abbrev=False)

    def ask(name: str, **named: Any) -> argparse.ArgumentParser:
        return add(
            name,
            description=_DESCRIPTIONS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **named,
        )

    listing = ask("models", parents=[connection], help="list the models that are ready")
    listing.add_argument("--json", action="store_true", help="print the whole model cards as JSON")
    listing.set_defaults(run=commands.models)

    for name, run, text, source, target in (
        ("encode", commands.encode, "rows to latents", "rows", "latents"),
        ("decode", commands.decode, "latents to rows", "latents", "rows"),
        ("reconstruct", commands.reconstruct, "rows to latents and back", "rows", "reconstructions"),
    ):
        command = ask(name, parents=[connection, model, arrays], help=f"{text} (.npy)")
        command.add_argument("source", metavar="IN.npy", type=Path, help=f"the {source}")
        command.add_argument("target", metavar="OUT.npy", type=Path, help=f"where the {target} go")
        command.set_defaults(run=run)
        if name == "reconstruct":
            command.add_argument(
                "--scores", metavar="FILE.csv", type=Path, help="write the error and the novelty of each row"
            )

    denoise = ask("denoise", parents=[connection, model, arrays, resize], help="corrupted to clean (.png or .npy)")
    denoise.add_argument("source", metavar="IN.png", type=Path, help="a picture, or a .npy file of rows")
    denoise.add_argument("target", metavar="OUT.png", type=Path, help="where it goes; .npy where IN is")
    denoise.set_defaults(run=commands.denoise)

    strip = ask("interpolate", parents=[connection, model, resize], help="the path between two pictures, as a strip")
    strip.add_argument("start", metavar="A.png", type=Path, help="where the path begins")
    strip.add_argument("end", metavar="B.png", type=Path, help="where it ends")
    strip.add_argument("target", metavar="STRIP.png", type=Path, help="where the pictures go, side by side")
    strip.add_argument("--steps", type=int, default=9, help="how many pictures, both ends included (default: 9)")
    strip.add_argument(
        "--method", choices=("linear", "spherical"), default="linear", help="how to walk between the latents"
    )
    strip.set_defaults(run=commands.interpolate)

    bulk = add(
        "batch",
        parents=[connection, model, arrays, resize],
        help="files of any size, resumable (.npy, .parquet, folders of pictures)",
        description=_BATCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bulk.add_argument("operation", choices=(*OPERATIONS, batch.JOIN), help="what to make of each row")
    bulk.add_argument("source", metavar="INPUT", type=Path, help="a .npy file, a .parquet file, a folder of pictures")
    bulk.add_argument("target", metavar="OUTPUT", type=Path, help="a .npy or .parquet file; must not exist")
    bulk.add_argument(
        "--package", metavar="DIR", type=Path, help="run this model package here, models/NAME/VERSION; ask no service"
    )
    bulk.add_argument(
        "--threads",
        metavar="N",
        type=_thread_count,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        help="cores that --package uses, without Ray (default: all that this process may use, %(default)s)",
    )
    bulk.add_argument(
        "--shard",
        metavar="INDEX/COUNT",
        type=Shard.of,
        help="make only this share of the rows, 0/COUNT to COUNT-1/COUNT; OUTPUT is then a folder with a part for each",
    )
    bulk.add_argument("--engine", choices=("local", "ray"), default="local", help="who does the work (default: local)")
    bulk.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        default=os.environ.get("RAY_ADDRESS") or None,
        help="the Ray cluster that this machine belongs to, or auto (default: RAY_ADDRESS, else a Ray of the job's "
        "own, on all CPUs of this machine)",
    )
    bulk.add_argument("--column", metavar="NAME", help="the Parquet column of the rows; may be left out where one fits")
    bulk.add_argument(
        "--patience",
        metavar="S",
        type=_seconds,
        default=600.0,
        help="how long the service may be away, or full, before the job gives up (default: 600)",
    )
    bulk.add_argument(
        "--piece-rows",
        metavar="N",
        type=_count,
        help="rows that are kept at a time (default: what fits in 8 MiB; fewer where work is shared out)",
    )
    bulk.set_defaults(run=batch.run)
    admin_commands.add_parsers(add, secured)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    # gRPC's own log would come between the lines that are meant for people. For some of it this is too late:
    # `hourglass_command` says so before gRPC is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes to Linux
    try:
        with _ended_by_sigterm():
            _run(arguments)
    except BrokenPipeError:
        # Whoever reads stdout has seen enough; leave nothing that the exit of Python would try to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _Terminated:
        print("hourglass: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("hourglass: interrupted", file=sys.stderr)
        return 130
    except (HourglassError, commands.CommandError, OSError, ValueError) as error:
        print("hourglass:", said(error), file=sys.stderr)
        return 1
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is to leave as little behind as Ctrl-C."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def terminate(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> None:
    arguments.open = _opener(arguments)
    with arguments.open() as client:
        arguments.run(client, arguments)
        sys.stdout.flush()


def _opener(arguments: argparse.Namespace) -> Callable[[], Client | AdminClient | InProcess]:
    """What connects to the service, or loads the package: here, and in workers elsewhere."""
    if getattr(arguments, "package", None) is not None:
        return partial(InProcess, arguments.package, threads=arguments.threads)
    files = {name: getattr(arguments, f"tls_{name}") for name in ("ca", "cert", "key")}
    token = os.environ.get("HOURGLASS_TOKEN") or None
    if arguments.token_file is not None:
        token = _read_token(arguments.token_file)
    tls: bool | TLS = TLS(**files) if any(files.values()) else arguments.tls
    connect: type[Client | AdminClient] = getattr(arguments, "connect", Client)
    return partial(connect, arguments.address, tls=tls, token=token, token_in_clear=arguments.token_in_clear)


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except UnicodeDecodeError as error:
        raise commands.CommandError(f"{path}: is not a token but bytes that are no text") from error


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)


def _thread_count(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= _MOST_THREADS):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MOST_THREADS}; got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds; got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
