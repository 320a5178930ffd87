"""The command line of the service."""

from __future__ import annotations

import logging
import os
import sys

from service import logs, settings
from service.errors import StartError
from service.server import Server
from service.signals import Signals

log = logging.getLogger("service")


def main() -> int:
    configuration = settings.read(sys.argv[1:], os.environ)
    human = logs.configure(format=configuration.log_format, level=configuration.log_level)
    try:
        with Signals() as signals:
            server = Server(configuration)
            try:
                server.start(stop_loading=signals.pending)
                if not signals.pending():
                    _announce(server, configuration, banner=human)
                signals.wait()
            finally:
                # The second signal cuts the lame-duck delay short.
                server.stop(wait=signals.wait)
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
