"""One serving process, from its settings to its exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from service import logs, threads
from service.announcement import Announcement, Card
from service.control import Control
from service.errors import StartError
from service.plans import Plan
from service.repository import Refusals
from service.server import Server
from service.settings import Settings
from service.signals import Signals

log = logging.getLogger("service")

Begin = Callable[[Server], tuple[list[Plan], Callable[[Refusals], None]]]


def run(settings: Settings, signals: Signals, *, banner: bool) -> int:
    """Serve on the ports of the settings; `banner`: tell people what to type next."""
    with ExitStack() as exit:

        def begin(server: Server) -> tuple[list[Plan], Callable[[Refusals], None]]:
            control = Control(settings, server.store, server.repository)
            exit.callback(control.stop)

            def loaded(refused: Refusals) -> None:
                control.start(refused, server.security)
                _announce(settings, server, banner=banner)

            return control.plan(), loaded

        return serve(settings, signals, begin)


def serve(settings: Settings, signals: Signals, begin: Begin, *, probes_socket: Path | None = None) -> int:
    """Serve until a signal comes; the second cuts the lame-duck delay short. `begin` says what to load, and what to do
    with what could not be when the rest is loaded. `probes_socket`: as in `Server`. Returns the exit code."""
    threads.end_with_any()
    try:
        server = Server(settings, probes_socket=probes_socket)
        signals.on_toggle = partial(logs.toggle_debug, settings.log_level, server.observer.look)
        try:
            plans, loaded = begin(server)
            refused = server.start(plans, stop_loading=signals.pending)
            if not signals.pending():
                loaded(refused)
            signals.wait()
        finally:
            server.stop(wait=signals.wait)
    except StartError as error:
        log.error("cannot start", extra={"reason": str(error)})
        return 1
    return 0


def _announce(settings: Settings, server: Server, *, banner: bool) -> None:
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
