"""Serve a page on which the models of a running service can be tried.

Pick or draw a digit, add noise and see it denoised by all models side by side, walk between two digits, turn the
coordinates of a latent, look at the map of the latents. Every picture is a live gRPC call.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

# gRPC's own log would come between the lines that are meant for people; it looks when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from examples.local_service import ROOT, service
from examples.playground.calls import Calls, Digits
from examples.playground.web import Server
from hourglass import TLS, Client

DIGITS = ROOT / "examples" / "digits.npz"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.playground",
        description=__doc__,
        epilog="HOURGLASS_ADDRESS stands for --address, and HOURGLASS_TOKEN holds a token for the service.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("HOURGLASS_ADDRESS") or None,
        help="a running service, host:port (default: start one with --models on a free port)",
    )
    parser.add_argument("--tls", action="store_true", help="reach it over TLS and trust the roots that gRPC ships")
    parser.add_argument("--tls-ca", metavar="FILE", type=Path, help="reach it over TLS and trust these roots (PEM)")
    parser.add_argument(
        "--models", metavar="DIR", type=Path, default=ROOT / "models", help="packages to serve (default: %(default)s)"
    )
    parser.add_argument(
        "--digits",
        metavar="FILE.npz",
        type=Path,
        default=DIGITS,
        help="pictures to pick from: uint8 images [N, H, W] and labels [N] (default: %(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="where the page is served; anybody who can reach it can use it (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="its port, 0 for a free one (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except KeyboardInterrupt:
        print()
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"playground: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"playground: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    digits = Digits.read(arguments.digits)
    with ExitStack() as stack:
        address = arguments.address or stack.enter_context(service(arguments.models))
        tls: bool | TLS = TLS(ca=arguments.tls_ca) if arguments.tls_ca else arguments.tls
        token = os.environ.get("HOURGLASS_TOKEN") if arguments.address else None
        # A page shows at once that the service is away, and asks again by itself.
        client = stack.enter_context(Client(address, tls=tls, token=token or None, attempts=2))
        server = stack.enter_context(Server(arguments.host, arguments.port, Calls(client, address, digits)))
        print(f"the playground is at {server.url} (Ctrl-C ends it)", flush=True)
        if arguments.open:
            webbrowser.open(server.url)
        server.serve_forever()


if __name__ == "__main__":
    # So that the service that was started here ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main())
