"""The HTTP port where the process has trouble."""

from __future__ import annotations

import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from service.probes import Probes, tcp_listener

WAIT_S = 10.0


def test_probes_are_answered_where_a_thread_never_says_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory ends between the start of a thread and its first step."""
    probes = Probes(tcp_listener("127.0.0.1", 0), CollectorRegistry(), lambda: True)
    probes.start()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "_bootstrap", lambda self: None)
        with urllib.request.urlopen(f"http://127.0.0.1:{probes.port}/readyz", timeout=WAIT_S) as answer:
            assert answer.read() == b"ready\n"
    stopping = threading.Thread(target=probes.stop, daemon=True)
    stopping.start()
    stopping.join(WAIT_S)
    assert not stopping.is_alive()
