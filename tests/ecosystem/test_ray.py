"""`hourglass batch --engine ray` with a real Ray on two CPUs: its output is that of the local engine, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from hourglass.__main__ import main
from tests.ecosystem.environments import ROOT, python
from tests.integration.serving import ServerProcess

pytestmark = [pytest.mark.ecosystem, pytest.mark.timeout(300)]

DENOISER = "mnist-denoising-conv"
PACKAGE = ROOT / "models" / DENOISER / "1"
ROWS, PIECE_ROWS = 3000, 50
# Ray on a busy machine: its start, the job, its end.
WAIT_S = 120.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rows of which each is different."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with np.load(ROOT / "examples" / "digits.npz") as file:
        rows = np.resize(file["images"], (ROWS, 28, 28))
    rows[:, 0, 0], rows[:, 0, 1] = np.arange(ROWS) % 251, np.arange(ROWS) // 251
    np.save("rows.npy", rows)
    return tmp_path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / DENOISER).symlink_to(ROOT / "models" / DENOISER)
    return folder


@contextmanager
def on_ray(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """The command, on a Ray of its own; ended with all its processes."""
    command = [str(python("ray")), "-m", "hourglass", "batch", *argv]
    command += ["--engine", "ray", "--piece-rows", str(PIECE_ROWS)]
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        try:
            yield job
        finally:
            job.kill()


@contextmanager
def cluster() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a Ray of two nodes, and what takes one of them away."""
    command = [str(python("ray")), str(Path(__file__).with_name("ray_cluster.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address, lines, write = process.stdout.readline().strip(), process.stdout, process.stdin

        def lose_a_node() -> None:
            write.write("lose one\n")
            write.flush()
            assert lines.readline() == "removed\n"

        try:
            yield address, lose_a_node
            write.close()
            process.wait(WAIT_S)
        finally:
            process.kill()


def ended_well(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=WAIT_S)
    assert job.returncode == 0, said
    return said


def here(operation: str, source: str, output: str) -> None:
    """The same by the local engine."""
    argv = ["batch", operation, source, output, "--piece-rows", str(PIECE_ROWS), "--package", str(PACKAGE)]
    assert main(argv) == 0


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = status.read_text().partition(" (")
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(rest.rpartition(") ")[2].split()[1]), []).append(int(number))
    found, waiting = [], [pid]
    while waiting:
        found += (of := children.get(waiting.pop(), []))
        waiting += of
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(holds: Callable[[], object], job: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until
        assert job is None or job.poll() is None, job.communicate()[0]
        time.sleep(0.02)  # between two looks, not instead of one


def pieces_there(output: str) -> int:
    work = Path(f"{output}.work")
    if output.endswith(".npy"):
        return (work / "done").read_bytes().count(1) if (work / "done").exists() else 0
    return len(list(work.glob("0*.parquet")))


def remote_addresses(pids: list[int]) -> tuple[int, set[str]]:
    """How many TCP sockets the processes have, and the addresses that they listen on or are connected to."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except OSError:
                continue
    count, addresses = 0, set()
    for name, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if rest[5] in inodes and state in ("01", "0A"):  # established, listening
                count += 1
                packed = bytes.fromhex((local if state == "0A" else remote).partition(":")[0])
                words = b"".join(packed[at : at + 4][::-1] for at in range(0, size, 4))
                addresses.add(socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, words))
    return count, addresses


def test_ray_writes_what_the_local_engine_writes_and_keeps_to_this_machine(folder: Path) -> None:
    here("denoise", "rows.npy", "here.parquet")
    with on_ray("denoise", "rows.npy", "ray.parquet", "--package", str(PACKAGE)) as job:
        wait_until(lambda: pieces_there("ray.parquet") > 5, job)
        count, addresses = remote_addresses([job.pid, *descendants(job.pid)])
        ended_well(job)
    assert parquet.read_table("ray.parquet").equals(parquet.read_table("here.parquet"))
    assert count > 10, "Ray's processes were found"
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.parametrize(("source", "output"), [("rows.parquet", "out.npy"), ("pictures", "out.parquet")])
def test_every_kind_of_input_goes_through_ray(folder: Path, source: str, output: str) -> None:
    rows = np.load("rows.npy")[:400]
    if source == "pictures":
        Path("pictures").mkdir()
        for number, pixels in enumerate(rows):
            Image.fromarray(pixels).save(f"pictures/{number:04}.png")
    else:
        import pyarrow as arrow

        table = arrow.table({"x": arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), 28 * 28)})
        parquet.write_table(table, source, row_group_size=130)
    here("score", source, f"here-{output}")
    with on_ray("score", source, output, "--package", str(PACKAGE)) as job:
        ended_well(job)
    if output.endswith(".npy"):
        assert Path(output).read_bytes() == Path(f"here-{output}").read_bytes()
    else:
        assert parquet.read_table(output).equals(parquet.read_table(f"here-{output}"))


def test_a_killed_driver_takes_its_workers_along_and_the_job_goes_on(folder: Path) -> None:
    argv = ("denoise", "rows.npy", "out.npy", "--package", str(PACKAGE))
    with on_ray(*argv) as job:
        wait_until(lambda: pieces_there("out.npy") > 5, job)
        processes = {pid: command_of(pid) for pid in descendants(job.pid)}
        workers = {pid for pid, command in processes.items() if "MapWorker" in command}
        assert workers
        job.send_signal(signal.SIGKILL)
        job.wait(WAIT_S)
        wait_until(lambda: not any("MapWorker" in command_of(pid) for pid in workers))
        # Ray's agents, which do nothing, would stay for a minute.
        for pid, command in processes.items():
            if command and command_of(pid) == command:
                os.kill(pid, signal.SIGKILL)
    there = pieces_there("out.npy") * PIECE_ROWS
    assert 0 < there < ROWS
    with on_ray(*argv) as job:
        said = ended_well(job)
    assert f" {ROWS - there} in " in said, "nothing was computed twice"
    assert f" and {there} before" in said
    here("denoise", "rows.npy", "here.npy")
    assert Path("out.npy").read_bytes() == Path("here.npy").read_bytes()


def test_a_killed_worker_and_a_killed_server_cost_no_row(folder: Path, models: Path) -> None:
    with ServerProcess(models) as first:
        port = first.address.rpartition(":")[2]
        with on_ray("denoise", "rows.npy", "out.npy", "--address", first.address) as job:
            wait_until(lambda: pieces_there("out.npy") > 3, job)
            worker = next(pid for pid in descendants(job.pid) if "MapWorker" in command_of(pid))
            os.kill(worker, signal.SIGKILL)
            there = pieces_there("out.npy")
            wait_until(lambda: pieces_there("out.npy") > there + 3, job)
            first.process.kill()
            first.wait()
            assert job.poll() is None, "the job was under way"
            with ServerProcess(models, "--port", port):
                said = ended_well(job)
    assert f"{ROWS} rows by {DENOISER}/1; {ROWS} in " in said
    here("denoise", "rows.npy", "here.npy")
    assert Path("out.npy").read_bytes() == Path("here.npy").read_bytes()


def test_a_cluster_of_two_nodes_that_loses_one_loses_no_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The cluster's processes are on the loopback interface, and so is what joins it.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    argv = ("denoise", "rows.npy", "out.npy", "--package", str(PACKAGE), "--ray-address")
    with cluster() as (address, lose_a_node), on_ray(*argv, address) as job:
        wait_until(lambda: pieces_there("out.npy") > 5, job)
        lose_a_node()
        assert job.poll() is None, "the job was under way"
        said = ended_well(job)
    assert f"{ROWS} rows by {DENOISER}/1; {ROWS} in " in said
    here("denoise", "rows.npy", "here.npy")
    assert Path("out.npy").read_bytes() == Path("here.npy").read_bytes()


def test_what_goes_wrong_in_a_worker_is_one_line(folder: Path) -> None:
    rows = np.load("rows.npy")[:200] / np.float32(255)
    rows[122] = np.nan
    np.save("nan.npy", rows)
    with on_ray("denoise", "nan.npy", "out.npy", "--package", str(PACKAGE)) as job:
        said, _ = job.communicate(timeout=WAIT_S)
    assert job.returncode == 1
    assert said.splitlines()[-1] == "hourglass: rows: row 22 holds NaN or infinity; counted from row 100 of nan.npy"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://127.0.0.1:10001", "--ray-address: must be HOST:PORT or auto; got ray://127.0.0.1:10001"),
        ("127.0.0.1:1", "--ray-address: nothing answers at 127.0.0.1:1"),
        ("nowhere", "--ray-address: must be HOST:PORT or auto; got nowhere"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused_at_once(folder: Path, address: str, says: str) -> None:
    with on_ray("denoise", "rows.npy", "out.npy", "--package", str(PACKAGE), "--ray-address", address) as job:
        said, _ = job.communicate(timeout=WAIT_S)
    assert job.returncode == 1
    assert says in said
