"""A batch job against the real service: through its death and return, and in memory that the input does not move."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tests import tiny
from tests.integration.serving import ServerProcess

WAIT_S = 60.0


def batch(server: ServerProcess, *argv: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hourglass", "batch", *argv, "--address", server.address, "--model", "tiny"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_a_job_goes_on_when_the_server_was_killed_and_comes_back(tiny_models: Path, tmp_path: Path) -> None:
    rows = tiny.rows(300_000)
    np.save(tmp_path / "rows.npy", rows)
    counter = 'autoencoder_rows_total{model="tiny",operation="encode",version="2"}'
    with ServerProcess(tiny_models) as first:
        job = batch(first, "encode", tmp_path / "rows.npy", tmp_path / "latents.npy", "--piece-rows", "5000")
        until = time.monotonic() + WAIT_S
        while first.metric(counter) == 0 and time.monotonic() < until:
            pass
        first.process.kill()
        port = first.address.rpartition(":")[2]
        first.wait()
    assert job.poll() is None, "the job was under way"
    with ServerProcess(tiny_models, "--port", port) as second:
        _, said = job.communicate(timeout=WAIT_S)
        assert job.returncode == 0, said
        assert 0 < second.metric(counter) <= len(rows)
    np.testing.assert_allclose(np.load(tmp_path / "latents.npy"), tiny.encode(rows), rtol=1e-4, atol=1e-5)


# The process's own account: what wait4 gives has its parent's in it.
PROGRAM = """
import re, sys
from pathlib import Path
from hourglass.__main__ import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def peak_bytes(server: ServerProcess, source: Path) -> int:
    argv = ["batch", "encode", str(source), str(source.with_suffix(".out.parquet")), "--piece-rows", "2000"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv, "--address", server.address, "--model", "tiny"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_memory_does_not_grow_with_the_input(server: ServerProcess, tmp_path: Path, kind: str) -> None:
    peaks = []
    for count in (8_000, 520_000):  # 33 MB of floats
        rows = np.tile(tiny.rows(8_000), (count // 8_000, 1, 1))
        source = tmp_path / f"{count}.{kind}"
        if kind == "npy":
            np.save(source, rows)
        else:
            column = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), tiny.ELEMENTS)
            parquet.write_table(arrow.table({"x": column}), source, use_dictionary=False)
        peaks.append(peak_bytes(server, source))
    assert peaks[1] - peaks[0] < 20 << 20, peaks
