"""`hourglass batch` against a fake service: every input to every output, and what a kill or an error leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from autoencoder.v1 import model_pb2
from hourglass import batch
from hourglass.__main__ import main
from hourglass.batch_outputs import Workspace
from tests.unit.client.batch_files import FLOATS, ROWS, Run, denoiser, read_parquet, rows_asked
from tests.unit.client.fake_service import FakeService, card, encode, fail, serving

WAIT_S = 30.0

EXPECTED = {
    "encode": {"latent": encode(FLOATS, 3)},
    "denoise": {"clean": FLOATS, "distance": FLOATS[:, 0, 0]},
    "score": {"reconstruction_error": FLOATS[:, 0, 0], "novelty": FLOATS[:, 0, 0] / 2},
}


@pytest.fixture
def service() -> FakeService:
    return denoiser()


@pytest.mark.parametrize("operation", EXPECTED)
@pytest.mark.parametrize("source", ["rows.npy", "floats.npy", "rows.parquet", "pictures"])
def test_every_input_goes_to_every_output(run: Run, operation: str, source: str) -> None:
    expected = EXPECTED[operation]
    assert run(operation, source, "out.parquet", "--piece-rows", "5")[0] == 0
    assert run(operation, source, "out.npy", "--piece-rows", "5")[0] == 0
    table = read_parquet("out.parquet")
    assert set(table) == {"row", *expected} | ({"file"} if source == "pictures" else set())
    if source == "pictures":
        assert table["file"].tolist() == [f"{'deep/' * (number >= 20)}{number:02}.png" for number in range(23)]
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], values.reshape(23, -1) if values.ndim > 1 else values)
    columns = list(expected.values())
    np.testing.assert_array_equal(np.load("out.npy"), np.stack(columns, axis=1) if operation == "score" else columns[0])
    assert parquet.read_schema("out.parquet").metadata[b"model"] == b"denoiser"
    assert not list(Path().glob("*.work"))


def test_float16_is_asked_for_and_written(run: Run) -> None:
    assert run("encode", "rows.npy", "out.npy", "--float16")[0] == 0
    assert run("encode", "rows.npy", "out.parquet", "--float16")[0] == 0
    assert np.load("out.npy").dtype == np.float16
    assert read_parquet("out.parquet")["latent"].dtype == np.float16


def test_a_column_is_chosen_by_name(run: Run) -> None:
    assert run("encode", "two.parquet", "out.npy", "--column", "pixels")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), encode(FLOATS, 3))


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("source", ["rows.npy", "rows.parquet", "pictures"])
def test_the_same_command_goes_on_where_an_error_ended_it(
    run: Run, service: FakeService, source: str, output: str
) -> None:
    def refuse_the_fourth(method: str, request: Any, context: Any) -> None:
        if service.calls.count("Encode") == 4:
            fail(context, grpc.StatusCode.INTERNAL, "INTERNAL", "internal error 7")

    service.hook = refuse_the_fourth
    argv = ("encode", source, output, "--model", "denoiser", "--piece-rows", "3")
    code, _, err = run(*argv)
    assert (code, "internal error 7" in err) == (1, True)
    assert not Path(output).exists()
    service.hook, service.requests = None, []
    code, out, _ = run(*argv)
    assert code == 0
    before = int(out.partition(" rows/s) and ")[2].split()[0])
    assert before >= 6, "two pieces at least were there"
    assert rows_asked(service) == 23 - before
    found = np.load(output) if output == "out.npy" else read_parquet(output)["latent"]
    np.testing.assert_array_equal(found, encode(FLOATS, 3))


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_a_killed_job_goes_on_without_asking_twice_or_losing_a_row(
    run: Run, service: FakeService, address: str, output: str
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold_after_four(method: str, request: Any, context: Any) -> None:
        if service.calls.count("Encode") > 4:
            if service.calls.count("Encode") > 5:  # both of those that are under way at a time
                reached.set()
            go_on.wait(WAIT_S)

    service.hook = hold_after_four
    argv = ("encode", "rows.npy", output, "--piece-rows", "2", "--address", address)
    with subprocess.Popen([sys.executable, "-m", "hourglass", "batch", *argv], stderr=subprocess.PIPE) as job:
        assert reached.wait(WAIT_S)
        job.send_signal(signal.SIGKILL)
        assert job.wait(WAIT_S) == -signal.SIGKILL
    go_on.set()
    assert not Path(output).exists()
    service.hook, service.requests = None, []
    code, out, err = run(*argv)
    assert code == 0, err
    before = int(out.partition(" rows/s) and ")[2].split()[0])
    assert 2 <= before <= 8
    assert rows_asked(service) == 23 - before
    found = np.load(output) if output == "out.npy" else read_parquet(output)["latent"]
    np.testing.assert_array_equal(found, encode(FLOATS, 3))


def test_a_service_that_is_away_or_full_is_waited_for(run: Run, service: FakeService) -> None:
    def be_away(method: str, request: Any, context: Any) -> None:
        count = service.calls.count("Encode")
        if 1 <= count <= 6:  # more often than a single call is tried again
            fail(context, grpc.StatusCode.UNAVAILABLE, "LOADING", "models are being loaded")
        if count == 7:
            fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after_s=0.01)

    service.hook = be_away
    assert run("encode", "rows.npy", "out.npy", "--piece-rows", "23")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), encode(FLOATS, 3))


def test_an_interrupt_does_not_wait_for_a_service_that_is_away(
    folder: Path, service: FakeService, address: str
) -> None:
    away = threading.Event()

    def be_away(method: str, request: Any, context: Any) -> None:
        if service.calls.count("Encode") > 3:
            away.set()
            fail(context, grpc.StatusCode.UNAVAILABLE, "LOADING", "models are being loaded")

    service.hook = be_away
    argv = ("encode", "rows.npy", "out.npy", "--piece-rows", "2", "--address", address)
    with subprocess.Popen([sys.executable, "-m", "hourglass", "batch", *argv], stderr=subprocess.PIPE) as job:
        assert away.wait(WAIT_S)
        job.send_signal(signal.SIGINT)
        assert job.wait(WAIT_S) == 130
    assert Path("out.npy.work").exists()


def test_a_log_sees_the_rate_and_the_time_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_LINE_S", 0.0)
    _, _, err = run("encode", "rows.npy", "out.npy", "--piece-rows", "2")
    lines = err.splitlines()
    assert re.fullmatch(r"\d+ of 23 rows, \d+ rows/s, \d+ s left", lines[0])
    assert re.fullmatch(r"23 of 23 rows, \d+ rows/s", lines[-1])


@pytest.mark.parametrize("files", [("rows.parquet", "out.npy"), ("rows.npy", "out.parquet")])
def test_parquet_without_pyarrow_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, files: tuple[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, err = run("encode", *files)
    assert (code, "pip install 'hourglass-client[batch]'" in err) == (1, True)


def test_patience_ends(run: Run, service: FakeService) -> None:
    service.hook = lambda method, request, context: fail(
        context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after_s=0.01
    )
    code, _, err = run("encode", "rows.npy", "out.npy", "--patience", "0.2")
    assert (code, "full" in err) == (1, True)


def break_encode(method: str, request: Any, context: Any) -> None:
    if method == "Encode":
        fail(context, grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")


def test_a_resumed_job_keeps_to_its_version(run: Run, service: FakeService) -> None:
    service.hook = break_encode
    argv = ("encode", "rows.npy", "out.npy", "--piece-rows", "5")
    assert run(*argv)[0] == 1
    service.cards.insert(0, card("denoiser", version=2, row_shape=(4, 5), latent_units=3))
    service.hook = None
    assert run(*argv)[1].startswith("out.npy: 23 rows by denoiser/1")
    assert run("encode", "rows.npy", "new.npy")[1].startswith("new.npy: 23 rows by denoiser/2")


def begin(run: Run, service: FakeService) -> None:
    """Leave a workspace behind for out.npy."""
    service.hook = break_encode
    assert run("encode", "rows.npy", "out.npy")[0] == 1
    service.hook = None


def test_another_job_does_not_take_over_a_workspace(run: Run, service: FakeService) -> None:
    begin(run, service)
    code, _, err = run("denoise", "rows.npy", "out.npy")
    assert (code, "operation was encode, now denoise" in err) == (1, True)
    np.save("rows.npy", ROWS[:20])
    code, _, err = run("encode", "rows.npy", "out.npy")
    assert (code, "rows was 23, now 20" in err) == (1, True)
    assert not Path("out.npy").exists()


def test_two_processes_do_not_work_on_one_output(run: Run, service: FakeService) -> None:
    begin(run, service)
    descriptor = os.open("out.npy.work", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    code, _, err = run("encode", "rows.npy", "out.npy")
    os.close(descriptor)
    assert (code, "another process works there" in err) == (1, True)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("step", ["replace", "remove"])
def test_a_kill_at_one_of_the_last_two_steps_loses_nothing(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, output: str, step: str
) -> None:
    def kill(self: Any, *_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "publish" if step == "replace" else "remove", kill)
        with pytest.raises(Killed):
            run("encode", "rows.npy", output)
    assert Path(output).exists() == (step == "remove")
    service.requests = []
    assert run("encode", "rows.npy", output)[0] == 0
    found = np.load(output) if output == "out.npy" else read_parquet(output)["latent"]
    np.testing.assert_array_equal(found, encode(FLOATS, 3))
    assert rows_asked(service) == 0
    assert not Path(f"{output}.work").exists()


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_a_file_that_appeared_meanwhile_is_kept(run: Run, service: FakeService, output: str) -> None:
    def appears(method: str, request: Any, context: Any) -> None:
        if method == "Encode":
            Path(output).write_text("precious")

    service.hook = appears
    code, _, err = run("encode", "rows.npy", output)
    assert (code, f"{output}: somebody made this file meanwhile" in err) == (1, True)
    service.hook, service.requests = None, []
    code, _, err = run("encode", "rows.npy", output)
    assert (code, f"{output}: is there already" in err) == (1, True)
    assert Path(output).read_text() == "precious"
    Path(output).unlink()
    assert run("encode", "rows.npy", output)[0] == 0
    assert rows_asked(service) == 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "[" * 100_000, '{"model": "denoiser"}', '{"model": 5, "version": 1}', "\x00\xff"]
)
def test_a_workspace_that_is_damaged_is_named(run: Run, service: FakeService, content: str) -> None:
    begin(run, service)
    Path("out.npy.work/job.json").write_text(content)
    code, _, err = run("encode", "rows.npy", "out.npy")
    assert (code, err.count("\n")) == (1, 1)
    assert "out.npy.work/job.json: does not say what was begun there" in err
    assert "remove out.npy.work and begin again" in err


def test_a_service_that_is_away_is_told_once_and_that_it_is_back(run: Run, service: FakeService) -> None:
    def be_away(method: str, request: Any, context: Any) -> None:
        if service.calls.count("Encode") <= 12 and method == "Encode":
            fail(context, grpc.StatusCode.UNAVAILABLE, "LOADING", "models are being loaded")

    service.hook = be_away
    code, _, err = run("encode", "rows.npy", "out.npy", "--piece-rows", "12", "--patience", "500")
    told = [line for line in err.splitlines() if line.startswith("hourglass: ")]
    assert code == 0
    assert told == [
        "hourglass: models are being loaded; trying again for up to 500 s (--patience)",
        "hourglass: the service answers again",
    ]


def test_names_of_pictures_that_are_no_utf8(run: Run) -> None:
    os.rename("pictures/00.png", b"pictures/0\xe9.png")
    assert run("encode", "pictures", "out.parquet")[0] == 0
    names = read_parquet("out.parquet")["file"].tolist()
    assert "0\\xe9.png" in names
    assert len(set(names)) == 23


def test_a_page_that_is_damaged_is_told_with_its_file(run: Run) -> None:
    content = bytearray(Path("rows.parquet").read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
    Path("damaged.parquet").write_bytes(content)
    code, _, err = run("encode", "damaged.parquet", "out.npy")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("hourglass: damaged.parquet: cannot be read to its end; ")


@pytest.mark.parametrize("name", ["wide.npy", "wide.parquet"])
def test_pixels_to_255_that_are_not_uint8_are_told(run: Run, name: str) -> None:
    values = ROWS.astype(np.int16)
    np.save("wide.npy", values)
    lists = arrow.array(values.reshape(23, 20).tolist(), arrow.list_(arrow.int16()))
    parquet.write_table(arrow.table({"x": lists}), "wide.parquet")
    code, _, err = run("encode", name, "out.npy")
    assert code == 0
    assert f"hourglass: warning: {name}: holds 255 as int16, and denoiser expects 0 to 1" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("encode", "rows.npy", "out.csv"), "out.csv: the name must end in .npy or .parquet"),
        (("encode", "rows.npy", "rows.npy"), "rows.npy: is there already"),
        (("encode", "rows.npy", "nowhere/out.npy"), "there is no such directory"),
        (("encode", "notes.txt", "out.npy"), "must be a .npy file, a .parquet file or a folder"),
        (("encode", "missing.npy", "out.npy"), "missing.npy: No such file"),
        (("encode", "two.parquet", "out.npy"), "--column: which column of two.parquet holds the rows?"),
        (("encode", "two.parquet", "out.npy", "--column", "name"), "has no column 'name' of lists of numbers"),
        (("encode", "short.parquet", "out.npy"), "must have 20 numbers in every row; near row 1 it has not"),
        (("encode", "holes.parquet", "out.npy"), "must have 20 numbers in every row"),
        (("encode", "text.parquet", "out.npy"), "is not a Parquet file"),
        (("encode", "wide.npy", "out.npy"), "rows must have the shape (4, 5); got (5, 4)"),
        (("encode", "empty", "out.npy"), "empty: holds no pictures"),
        (("encode", "big", "out.npy"), "--resize would scale it"),
    ],
)
def test_what_cannot_be_done_is_said(run: Run, folder: Path, argv: tuple[str, ...], says: str) -> None:
    lists = arrow.list_(arrow.float32())
    parquet.write_table(arrow.table({"x": arrow.array([[0.5] * 20, [0.5] * 19], lists)}), "short.parquet")
    parquet.write_table(arrow.table({"x": arrow.array([[0.5] * 20, None], lists)}), "holes.parquet")
    Path("text.parquet").write_text("no")
    np.save("wide.npy", ROWS.reshape(23, 5, 4))
    for name in ("empty", "big"):
        Path(name).mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("big/a.png")
    code, _, err = run(*argv)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_a_folder_is_of_no_use_to_a_model_of_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = card("vectors", row_shape=(20,), kind=model_pb2.TENSOR_KIND_VECTOR)
    with serving(FakeService(vectors)) as address:
        assert main(["batch", "encode", "pictures", "out.npy", "--address", address]) == 1
        assert main(["batch", "encode", "rows.parquet", "out.npy", "--address", address]) == 0


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    yield ours, theirs
    os.close(ours)


def test_a_terminal_sees_a_bar_and_a_log_sees_lines(address: str, folder: Path, terminal: tuple[int, int]) -> None:
    argv = [sys.executable, "-m", "hourglass", "batch", "encode", "rows.npy", "out.npy", "--address", address]
    ours, theirs = terminal
    with subprocess.Popen(argv, stderr=theirs, stdout=subprocess.PIPE) as shown:
        os.close(theirs)
        assert shown.wait(WAIT_S) == 0
    bar = os.read(ours, 1 << 16).decode()
    assert "100%" in bar
    assert "rows/s" in bar
    Path("out.npy").unlink()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stderr.startswith("23 of 23 rows, ")
