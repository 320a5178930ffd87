"""One serving process, from its settings to its exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from service.announcement import Announcement, Card
from service.errors import StartError
from service.memory import keep_memory
from service.server import Server
from service.settings import Settings
from service.signals import Signals

log = logging.getLogger("service")


def run(settings: Settings, signals: Signals, *, banner: bool) -> int:
    """Serve on the ports of the settings; `banner`: tell people what to type next."""

    def announce(server: Server) -> None:
        cards = [Card.of(model) for model in server.repository.all()]
        announcement = Announcement(
            address=f"{settings.host}:{server.port}",
            http=f"{settings.host}:{server.http_port}",
            device=server.device.provider,
            models=len(cards),
            workers=1,
        )
        announcement.log()
        if banner:
            announcement.print(cards)

    return serve(settings, signals, on_ready=announce)


def serve(
    settings: Settings, signals: Signals, *, on_ready: Callable[[Server], None], probes_socket: Path | None = None
) -> int:
    """Serve until a signal comes; the second cuts the lame-duck delay short. `on_ready` is called when all models are
    loaded. `probes_socket`: as in `Server`. Returns the exit code."""
    keep_memory()
    try:
        server = Server(settings, probes_socket=probes_socket)
        try:
            server.start(stop_loading=signals.pending)
            if not signals.pending():
                on_ready(server)
            signals.wait()
        finally:
            server.stop(wait=signals.wait)
    except StartError as error:
        log.error("cannot start", extra={"reason": str(error)})
        return 1
    return 0
