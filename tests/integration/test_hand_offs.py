"""How often the service's threads are woken for a call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from service import completion_queue
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TIMEOUT_S, tensor

CALLS = 300


def wake_ups(pid: int) -> int:
    """How often the threads of a process have waited, in all."""
    statuses = (status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status"))
    lines = (line for status in statuses for line in status.splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts Linux's context switches")
@pytest.mark.skipif(completion_queue.why_not() is not None, reason="the fast transport does not work here")
def test_a_lone_call_wakes_one_thread_once(tiny_models: Path) -> None:
    request = pb.EncodeRequest(model=pb.ModelSelector(name="tiny"), rows=tensor(np.zeros((1, 4, 4), np.float32)))
    with ServerProcess(tiny_models, "--transport", "completion-queue") as server, server.channel() as channel:
        stub = AutoencoderServiceStub(channel)
        stub.Encode(request, timeout=TIMEOUT_S)
        before = wake_ups(server.process.pid)
        for _ in range(CALLS):
            stub.Encode(request, timeout=TIMEOUT_S)
        # With threads of grpc's own between the socket and the queue it is four or more.
        assert (wake_ups(server.process.pid) - before) / CALLS < 2
