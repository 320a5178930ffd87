"""What the collector of cycles goes through, and what is said where there is no memory. In processes of their own: both
are for all of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.serving import ROOT

_SETTLING = """
import gc, weakref
from service.memory import settle

class Model:
    def __init__(self):
        self.itself = self

gc.disable()
first = Model()
freed = weakref.ref(first)
settle()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
del first
gc.collect()
assert freed() is not None, "full collections go through what has settled"
settle()
assert freed() is None, "what is not needed any more stays for ever"
"""


def test_what_has_settled_is_left_out_of_collections_until_the_next_change() -> None:
    subprocess.run([sys.executable, "-c", _SETTLING], check=True, timeout=60)


_LOOSE = """
import gc
from service.memory import settle

collected = []
settle()
gc.callbacks.append(lambda phase, facts: collected.append(phase))
kept = [[] for _ in range(5000)]  # as many as the requests of a batch are made of
assert not collected, "collections come with every batch"
kept += [[] for _ in range(50000)]
assert collected, "and they do come"
"""


def test_collections_do_not_come_with_every_batch() -> None:
    subprocess.run([sys.executable, "-c", _LOOSE], check=True, timeout=60)


_STARVING = """
import resource, sys
from pathlib import Path
import numpy as np
from autoencoder.v1 import autoencoder_pb2 as pb
from service import packages
from service.calls import Method, perform
from service.devices import CPU, Device
from service.session import OnnxSession
from tests import tiny
from tests.chaos.memory import data_bytes

class Call:
    def fail(self, error):
        print(error.reason, flush=True)

def handle(request, call):
    call.fail(ValueError("nothing was to be handled"))

large = bytes(40 << 20)
request = pb.EncodeRequest()
request.rows.data = large
message = request.SerializeToString()
session = OnnxSession(packages.read(tiny.write(Path(sys.argv[1]))), Device(provider=CPU), threads=1, max_batch_rows=64)
rows = np.zeros((2_000_000, 4, 4), np.float32)
session.encode(rows[:1])

resource.setrlimit(resource.RLIMIT_DATA, (data_bytes("self") + (8 << 20), resource.RLIM_INFINITY))
perform(Method(parse=pb.EncodeRequest.FromString, handle=handle), message, Call())
perform(Method(parse=pb.EncodeRequest.FromString, handle=handle), bytes([255, 255]), Call())
perform(Method(parse=bytes, handle=lambda request, call: session.encode(rows)), b"", Call())
perform(Method(parse=bytes, handle=lambda request, call: np.zeros(40 << 20)), b"", Call())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_request_without_memory_is_told_so_wherever_it_ran_out(tmp_path: Path) -> None:
    """In protobuf, in onnxruntime, in numpy; and a message that is broken is still called so."""
    done = subprocess.run(
        [sys.executable, "-c", _STARVING, str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["NO_MEMORY", "BAD_MESSAGE", "NO_MEMORY", "NO_MEMORY"], done.stderr


_FAILING = """
import _testcapi, logging, math
import numpy as np
from prometheus_client import CollectorRegistry
from service.dispatcher import Dispatcher, Job, Result
from service.metrics import Metrics

class Doubling:
    row_shape = (2,)

    def run(self, rows, row_count):
        return (rows[:row_count] * 2,)

class Steps:
    def __init__(self):
        self.steps = []

    def schedule(self, step):
        self.steps.append(step)

logging.disable(logging.CRITICAL)
metrics = Metrics(CollectorRegistry())
ended = answered = failed = 0
for allocation in range(300):
    work = Steps()
    dispatcher = Dispatcher(
        model="fake", programs={"double": Doubling()}, padded_rows=lambda count: count,
        max_batch_rows=8, max_queue_rows=32, metrics=metrics, work=work,
    )
    outcomes = [[], [], []]
    for number, row_count in enumerate((3, 2, 9)):
        dispatcher.submit(Job(
            operation="double", row_count=row_count, caller=str(number % 2), deadline=math.inf,
            rows=np.full((row_count, 2), number, np.float32), done=outcomes[number].append,
        ))
    (step,) = work.steps
    try:
        _testcapi.set_nomemory(allocation, allocation + 1)
        try:
            going_on = step()
        finally:
            _testcapi.remove_mem_hooks()
    except MemoryError:
        ended += 1
        continue
    while going_on:
        going_on = step()
    assert [len(each) for each in outcomes] == [1, 1, 1], (allocation, outcomes)
    for number, (outcome,) in enumerate(outcomes):
        if isinstance(outcome, Result):
            answered += 1
            assert (outcome.outputs[0] == 2 * number).all()
        else:
            failed += 1
    assert dispatcher.close()
print(ended, answered, failed)
"""


def test_wherever_memory_ends_each_job_is_answered_once_or_the_thread_ends() -> None:
    """One allocation of a batch is refused: the first, then the second, and so on."""
    pytest.importorskip("_testcapi", reason="this Python has no means to refuse memory")
    done = subprocess.run(
        [sys.executable, "-c", _FAILING], cwd=ROOT, check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    ended, answered, failed = map(int, done.stdout.split())
    assert answered > failed > 50
    assert 0 < ended < 80, "for the moments only in which no answer can be given any more"
