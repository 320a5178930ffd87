"""Logging: one line an event, for people on a terminal and as JSON elsewhere. Facts go into `extra`, not the text."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

log = logging.getLogger("service")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# What talks to object storage.
_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs", "urllib3")

# One event is one line, and no terminal is steered by what a client put into its request.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {ord("\n"): "\\n", ord("\t"): "\\t"}


def configure(*, format: str, level: str, stream: TextIO = sys.stderr, **facts: Any) -> bool:
    """Send the logs of the whole process to `stream`; `format` is human, json, or auto (human on a terminal).
    Every line tells `facts` too. Returns whether they are for people."""
    human = stream.isatty() if format == "auto" else format == "human"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    if facts:
        handler.addFilter(lambda record: vars(record).update(facts) or True)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # From the level info down, these tell requests with their credentials.
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    return human


def toggle_debug(level: str, on_change: Callable[[], None] = lambda: None) -> None:
    """Log from the level debug on; called again, from `level` on, which was configured. `on_change` comes before the
    line that says so."""
    root = logging.getLogger()
    level = level if root.level == logging.DEBUG else "debug"
    root.setLevel(level.upper())
    on_change()
    log.warning("log level changed", extra={"log_level": level})


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        facts = "".join(f"  {key}={value}" for key, value in _facts(record).items())
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}{facts}".translate(_CONTROLS)
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")
