"""The Job of deploy/batch as Kubernetes would run it: a process for each index, some at once, one killed and run again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import yaml

from hourglass.__main__ import main
from tests.integration.serving import ROOT, ServerProcess

WAIT_S = 60.0
ROWS = 4000


def command(name: str, data: Path, address: str, index: int, *more: str) -> list[str]:
    """The command line of a pod, with another volume and address."""
    manifest: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "batch" / name).read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    given = [
        f"--address={address}" if each.startswith("--address=") else each.replace("$(JOB_COMPLETION_INDEX)", str(index))
        for each in container["args"]
    ]
    return ["batch", *(each.replace("/data/", f"{data}/") for each in given), *more]


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hourglass", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended_well(pod: subprocess.Popen[str]) -> str:
    said, _ = pod.communicate(timeout=WAIT_S)
    assert pod.returncode == 0, said
    return said


def test_the_job_makes_what_one_process_makes(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).integers(0, 256, (ROWS, 28 * 28), np.uint8)
    table = arrow.table({"pixels": arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), 28 * 28)})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    count = yaml.safe_load((ROOT / "deploy" / "batch" / "job.yaml").read_text())["spec"]["completions"]
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "mnist-conv" / "1", models / "mnist-conv" / "1")
    more = ("--piece-rows", "4")  # many, so that the kill comes before the last
    with ServerProcess(models) as server:
        argv = [command("job.yaml", tmp_path, server.address, index, *more) for index in range(count)]
        killed = start(argv[3])
        parts = tmp_path / "latents.parquet"
        until = time.monotonic() + WAIT_S
        while not list(parts.glob("part-00003*.work/0*.parquet")) and time.monotonic() < until:
            pass
        killed.kill()
        killed.communicate(timeout=WAIT_S)
        assert killed.returncode == -signal.SIGKILL, "it was under way"
        for one, other in ((0, 1), (3, 2)):
            pods = [start(argv[one]), start(argv[other])]
            said = [ended_well(pod) for pod in pods]
        assert " before" in said[0], "the killed one went on"
        assert main(command("join.yaml", tmp_path, server.address, 0)) == 1, "half of them are missing"
        for index in range(4, count):
            assert main(argv[index]) == 0
        assert main(command("join.yaml", tmp_path, server.address, 0)) == 0
        whole = tmp_path / "whole.parquet"
        source = str(tmp_path / "rows.parquet")
        assert main(["batch", "encode", source, str(whole), "--address", server.address, "--model", "mnist-conv"]) == 0
    expected = parquet.read_table(whole)
    assert parquet.read_table(tmp_path / "all-latents.parquet").equals(expected)
    assert parquet.read_table(parts).equals(expected)
