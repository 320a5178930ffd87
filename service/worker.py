"""A process that a supervisor started: python -m service.worker NUMBER SOCKET FLAGS...

Its probes listen on SOCKET, and take its supervisor's orders. The first line of its standard input is what to load. It
writes one line of JSON to its standard output when it serves, and stops as on SIGTERM when its standard input ends, as
it does when the supervisor is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from service import logs, settings, single
from service.announcement import Card
from service.plans import Plan
from service.repository import Refusals
from service.server import Server
from service.signals import Signals


def main() -> int:
    # What a library prints goes where the log goes: the supervisor takes what it reads for ours.
    supervisor = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    number, probes_socket, *flags = sys.argv[1:]
    configuration = settings.read(flags, {})
    logs.configure(format=configuration.log_format, level=configuration.log_level, worker=int(number))

    plans = [Plan.of(facts) for facts in json.loads(sys.stdin.readline() or "[]")]

    def begin(server: Server) -> tuple[list[Plan], Callable[[Refusals], None]]:
        def tell(refused: Refusals) -> None:
            facts = {
                "device": server.device.provider,
                "cards": [asdict(Card.of(model)) for model in server.repository.all()],
                "refused": [[*key, why.file, why.rule] for key, why in refused.items()],
            }
            print(json.dumps(facts), file=supervisor, flush=True)

        return plans, tell

    with supervisor, Signals() as signals:
        threading.Thread(target=_follow, name="supervisor", daemon=True).start()
        return single.serve(configuration, signals, begin, probes_socket=Path(probes_socket))


def _follow() -> None:
    # Not sys.stdin, whose lock would be held while the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
