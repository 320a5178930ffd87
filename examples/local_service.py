"""The service in a process of its own, for as long as a block runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def service(models: Path) -> Iterator[str]:
    """Run the service on free ports; gives its gRPC address. Ends the program where it does not start."""
    command = [sys.executable, "-m", "service", "--models", str(models.resolve()), "--port", "0", "--http-port", "0"]
    process = subprocess.Popen([*command, "--log-format", "json"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    reader = None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                print(f"serving {event['models']} models on {event['device']} at {event['address']}\n", flush=True)
                # A log that nobody reads would fill its pipe, and stop the service.
                reader = threading.Thread(target=deque, args=(process.stderr, 0))
                reader.start()
                yield event["address"]
                return
        sys.exit("the service did not start:\n" + "".join(lines))
    finally:
        process.terminate()
        process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()
