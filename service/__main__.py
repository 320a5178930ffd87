"""The command line of the service."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from service import logs, settings
from service.errors import StartError
from service.server import Server

log = logging.getLogger("service")


def main() -> int:
    configuration = settings.read(sys.argv[1:], os.environ)
    human = logs.configure(format=configuration.log_format, level=configuration.log_level)
    stop = threading.Event()
    stop_now = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # The second signal cuts the lame-duck delay short.
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        server = Server(configuration)
        try:
            server.start(stop_loading=stop.is_set)
            if not stop.is_set():
                _announce(server, configuration, banner=human)
            stop.wait()
        finally:
            server.stop(wait=stop_now.wait)
    except StartError as error:
        log.error("cannot start", extra={"reason": str(error)})
        return 1
    log.info("stopped")
    return 0


def _announce(server: Server, configuration: settings.Settings, *, banner: bool) -> None:
    cards = server.repository.all()
    log.info(
        "serving",
        extra={
            "address": f"{configuration.host}:{server.port}",
            "http": f"{configuration.host}:{server.http_port}",
            "device": server.device.provider,
            "models": len(cards),
        },
    )
    if not banner:
        return
    width = max(len(card.name) for card in cards)
    print(f"\nHourglass serves {len(cards)} models with {server.device.provider}:\n")
    for card in cards:
        shape, latent = (list(spec.row_shape) for spec in (card.input, card.latent))
        print(f"  {card.name:{width}}  version {card.version}  {shape} -> {latent}  {card.description}")
    print(
        f"""
  gRPC        {configuration.host}:{server.port}
  metrics     http://{configuration.host}:{server.http_port}/metrics  (/healthz, /readyz)

Try, in another terminal:

  .venv/bin/hourglass --address {configuration.host}:{server.port} models
  .venv/bin/hourglass --help
  make demo

Ctrl-C stops it.
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
