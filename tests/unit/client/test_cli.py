"""The command line, in this process and as one of its own."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from hourglass.__main__ import main, parser
from tests.unit.client.fake_service import ALL, FakeService, card, decode, encode, fail, serving

DIGITS = np.random.default_rng(5).integers(0, 256, (30, 28, 28), np.uint8)
CARDS = [
    card("denoiser", version=3, row_shape=(28, 28), latent_units=4, operations=(*ALL, "DENOISE")),
    card("plain", version=2, row_shape=(28, 28), latent_units=4, operations=ALL),
    card("plain", version=1, row_shape=(28, 28), latent_units=4, operations=ALL),
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service() -> FakeService:
    return FakeService(*CARDS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rows and pictures in it."""
    monkeypatch.chdir(tmp_path)
    np.save("digits.npy", DIGITS)
    for name, pixels in (("a.png", DIGITS[0]), ("b.png", DIGITS[1])):
        Image.fromarray(pixels).save(name)
    return tmp_path


@pytest.fixture
def run(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """The command in this process: its exit code, stdout and stderr."""
    monkeypatch.setenv("HOURGLASS_ADDRESS", address)
    monkeypatch.delenv("HOURGLASS_TOKEN", raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return (code, *capsys.readouterr())

    before = set(folder.iterdir())
    yield call
    assert not [path for path in set(folder.iterdir()) - before if path.name.endswith(".part")]


def spawn(*argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hourglass", *argv],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


def test_models_is_a_table(run: Run) -> None:
    code, out, err = run("models")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0] == ["name", "version", "variant", "input", "latent", "operations", "metrics", "provider"]
    assert lines[1][:6] == ["denoiser", "3", "linear", "28x28", "4", "encode,decode,reconstruct,interpolate,denoise"]
    assert lines[1][6:] == ["psnr_db=21.5", "squared_error=0.01", "CPU"]
    assert [line[0] for line in lines[2:]] == ["plain", "plain"]


def test_models_as_json_are_whole_cards(run: Run) -> None:
    code, out, _ = run("models", "--json")
    assert code == 0
    assert json.loads(out)[0]["input"]["rowShape"] == ["28", "28"]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_encode_writes_the_latents(run: Run, folder: Path, dtype: Any) -> None:
    np.save("digits.npy", (DIGITS / 255).astype(dtype))
    code, out, err = run("encode", "digits.npy", "latents.npy", "--model", "plain")
    assert (code, err) == (0, "")
    assert out.startswith("latents.npy: 30x4 float32 by plain/2 in ")
    rows = np.load("digits.npy")
    rows = rows / np.float32(255) if dtype == np.uint8 else rows.astype(np.float32)
    np.testing.assert_array_equal(np.load("latents.npy"), encode(rows, 4))


def test_encode_and_decode_take_a_version_and_float16(run: Run, service: FakeService) -> None:
    assert run("encode", "digits.npy", "latents.npy", "--model", "plain/1", "--float16")[0] == 0
    assert np.load("latents.npy").dtype == np.float16
    assert run("decode", "latents.npy", "rows.npy", "--model", "plain/1")[0] == 0
    np.testing.assert_array_equal(np.load("rows.npy"), decode(np.load("latents.npy").astype(np.float32), (28, 28)))
    assert {request.model.version for request in service.requests} == {"1"}


def test_reconstruct_writes_rows_and_scores(run: Run) -> None:
    assert run("reconstruct", "digits.npy", "rows.npy", "--model", "plain", "--scores", "scores.csv")[0] == 0
    np.testing.assert_array_equal(np.load("rows.npy"), DIGITS / np.float32(255))
    with open("scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["row"]) for row in table] == list(range(30))
    assert float(table[3]["reconstruction_error"]) == pytest.approx(DIGITS[3, 0, 0] / 255)
    assert float(table[3]["novelty"]) == pytest.approx(DIGITS[3, 0, 0] / 510)


def test_denoise_takes_the_only_model_that_can(run: Run) -> None:
    code, out, err = run("denoise", "a.png", "clean.png")
    assert (code, err) == (0, "")
    assert out.startswith("clean.png: by denoiser/3, moved by ")
    with Image.open("clean.png") as clean:
        assert (clean.mode, clean.format) == ("L", "PNG")
        np.testing.assert_array_equal(np.asarray(clean), DIGITS[0])
    assert run("denoise", "digits.npy", "clean.npy")[0] == 0
    np.testing.assert_array_equal(np.load("clean.npy"), DIGITS / np.float32(255))


def test_interpolate_writes_a_strip(run: Run) -> None:
    code, out, _ = run("interpolate", "a.png", "b.png", "strip.png", "--model", "plain", "--steps", "5")
    assert (code, out) == (0, "strip.png: 5 steps, linear, by plain/2\n")
    with Image.open("strip.png") as strip:
        assert strip.size == (5 * 28, 28)
        pixels = np.asarray(strip)
    for place, row in ((0, DIGITS[0]), (4, DIGITS[1])):
        ends = decode(encode(row[None] / np.float32(255), 4), (28, 28))[0]
        np.testing.assert_array_equal(pixels[:, place * 28 : place * 28 + 28], np.rint(ends * 255))


def test_a_colour_model_takes_and_gives_colours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save("colour.png")
    with serving(FakeService(card("colour", row_shape=(9, 7, 3)))) as address:
        assert main(["denoise", "colour.png", "clean.png", "--address", address]) == 0
    with Image.open("clean.png") as clean:
        np.testing.assert_array_equal(np.asarray(clean), pixels)


def test_a_colour_picture_is_grey_for_a_grey_model_and_resized_when_asked(run: Run, service: FakeService) -> None:
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save("large.png")
    code, out, err = run("denoise", "large.png", "clean.png")
    assert (code, out) == (1, "")
    assert err == (
        "hourglass: large.png: the model takes pictures of 28x28; this one is 50x40; --resize would scale it\n"
    )
    assert run("denoise", "large.png", "clean.png", "--resize")[0] == 0
    assert set(service.requests[-1].rows.data) == {200}
    assert list(service.requests[-1].rows.shape) == [1, 28, 28]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A piece of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["encode", "digits.npy", "o.npy"], "--model: must be given, as several models can encode: denoiser, plain"),
        (["denoise", "a.png", "o.png", "--model", "plain"], "plain: this model cannot denoise pictures"),
        (["encode", "digits.npy", "o.npy", "--model", "none"], "no model none"),
        (["encode", "none.npy", "o.npy", "--model", "plain"], "none.npy: No such file or directory"),
        (["encode", "a.png", "o.npy", "--model", "plain"], "a.png: must be a .npy file of numbers"),
        (["encode", "objects.npy", "o.npy", "--model", "plain"], "objects.npy: must be a .npy file of numbers"),
        (["encode", "text.npy", "o.npy", "--model", "plain"], "rows: must hold real numbers"),
        (["encode", "zero.npy", "o.npy", "--model", "plain"], "zero.npy: "),
        (["encode", "flat.npy", "o.npy", "--model", "plain"], "flat.npy: the first dimension counts rows"),
        (["encode", "cut.npy", "o.npy", "--model", "plain"], "cut.npy: must be a .npy file"),
        (["encode", "garbled.npy", "o.npy", "--model", "plain"], "garbled.npy: must be a .npy file"),
        (["encode", "digits.npy", "none/o.npy", "--model", "plain"], "none/o.npy: there is no such directory"),
        (["encode", "digits.npy", "folder.npy", "--model", "plain"], "folder.npy: is a directory"),
        (["encode", "digits.npy", "o.txt", "--model", "plain"], "o.txt: the name must end in .npy"),
        (["encode", "digits.npy", "digits.npy", "--model", "plain"], "digits.npy: is what is read; write elsewhere"),
        (["encode", "digits.npy", "link.npy", "--model", "plain"], "link.npy: is what is read; write elsewhere"),
        (["denoise", "a.png", "a.png"], "a.png: is what is read; write elsewhere"),
        (["interpolate", "a.png", "b.png", "b.png", "--model", "plain"], "b.png: is what is read; write elsewhere"),
        (
            ["reconstruct", "digits.npy", "o.npy", "--scores", "none/o.csv", "--model", "plain"],
            "none/o.csv: there is no",
        ),
        (
            ["reconstruct", "digits.npy", "o.npy", "--scores", "digits.npy", "--model", "plain"],
            "digits.npy: is what is read; write elsewhere",
        ),
        (
            ["reconstruct", "digits.npy", "o.npy", "--scores", "./o.npy", "--model", "plain"],
            "--scores: o.npy is where the rows go; write elsewhere",
        ),
        (["denoise", "digits.txt", "o.png"], "digits.txt: is not a picture"),
        (["denoise", "cut.png", "o.png"], "cut.png: "),
        (["denoise", "deep.png", "o.png"], "deep.png: must have 8 bits a channel"),
        (["denoise", "none.png", "o.png"], "none.png: No such file or directory"),
        (["denoise", "bomb.png", "o.png"], "bomb.png: is too large a picture"),
        (["denoise", "a.png", "o.jpg"], "o.jpg: the name must end in .png"),
        (["denoise", "a.png", "o.npy"], "o.npy: the name must end in .png"),
        (["denoise", "digits.npy", "o.png"], "o.png: the name must end in .npy"),
        (["interpolate", "a.png", "b.png", "o.gif", "--model", "plain"], "o.gif: the name must end in .png"),
        (
            ["encode", "digits.npy", "pipe.npy", "--model", "plain"],
            "pipe.npy: is a device or a pipe; only a file can be",
        ),
        (["models", "--tls-ca", "none.pem"], "none.pem: No such file or directory"),
        (["models", "--tls-cert", "a.png"], "TLS: cert and key go together"),
        (["models", "--token-file", "none"], "none: No such file or directory"),
        (["models", "--token-file", "a.png"], "a.png: is not a token"),
        (["models", "--token-file", "token", "--address", "10.0.0.1:1"], "token: sent without TLS only to a loopback"),
    ],
)
def test_an_error_is_one_line_and_code_1(run: Run, argv: Sequence[str], text: str) -> None:
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    np.save("text.npy", np.array([["a", "b"]]))
    np.save("zero.npy", np.empty((0, 28, 28), np.float32))
    np.save("flat.npy", np.ones(3))
    Path("garbled.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': '''".ljust(128))
    Path("cut.npy").write_bytes(Path("digits.npy").read_bytes()[:500])
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:300])
    Path("digits.txt").write_text("digits")
    Path("token").write_text("secret\n")
    Image.fromarray(np.zeros((28, 28), np.uint16)).save("deep.png")
    Path("bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )
    os.mkfifo("pipe.npy")
    Path("folder.npy").mkdir()
    os.link("digits.npy", "link.npy")
    before = {path: path.read_bytes() for path in Path().glob("*.[np][pn][yg]") if path.is_file()}
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("hourglass: ")
    assert text in err
    assert not list(Path().glob("o.*"))
    assert before == {path: path.read_bytes() for path in before}
    assert Path("pipe.npy").is_fifo()


def test_a_link_in_the_way_of_the_new_file_is_not_followed(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (folder / "precious").write_text("precious")
    link = folder / ".o.npy.guessed.part"
    link.symlink_to(folder / "precious")
    code, _, err = run("encode", "digits.npy", "o.npy", "--model", "plain")
    assert (code, "File exists" in err) == (1, True)
    assert (folder / "precious").read_text() == "precious"
    link.unlink()


def test_pixels_to_255_that_are_not_uint8_are_told_and_sent_as_they_are(run: Run, service: FakeService) -> None:
    np.save("floats.npy", DIGITS.astype(np.float32))
    code, _, err = run("encode", "floats.npy", "latents.npy", "--model", "plain")
    assert (code, err) == (
        0,
        "hourglass: warning: floats.npy: holds 255 as float32, and plain expects 0 to 1; only uint8 is scaled, so divide "
        "by 255\n",
    )
    assert np.array_equal(np.load("latents.npy"), encode(DIGITS.astype(np.float32), 4))
    np.save("noisy.npy", DIGITS / np.float32(255) * 3)
    for name in ("digits.npy", "noisy.npy"):
        assert run("encode", name, "latents.npy", "--model", "plain")[::2] == (0, "")


def test_no_model_that_fits_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeService(card("vectors", kind="TENSOR_KIND_VECTOR"))) as address:  # type: ignore[arg-type]
        assert main(["denoise", "a.png", "o.png", "--address", address]) == 1
    assert capsys.readouterr().err == "hourglass: --model: the service has no model that can denoise pictures\n"


def test_a_failure_in_the_middle_leaves_the_old_file(run: Run, service: FakeService) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        if service.calls.count("Encode") == 3:
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "NOT_FINITE", "row 1 holds\nNaN")

    np.save("many.npy", np.zeros((2000, 28, 28), np.float32))
    Path("latents.npy").write_text("old")
    service.hook = hook
    code, _, err = run("encode", "many.npy", "latents.npy", "--model", "plain")
    assert code == 1
    assert err.startswith("hourglass: row 1 holds NaN (in the message of the rows ")
    assert Path("latents.npy").read_text() == "old"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["encode", "x"],
        ["models", "--timeout", "0"],
        ["batch", "encode", "digits.npy", "o.npy", "--package", "p", "--threads", "5000"],
        ["models", "--timeout", "x"],
        ["models", "--token", "x"],
    ],
)
def test_wrong_usage_is_code_2(argv: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_the_token_comes_from_a_file_or_the_environment(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOURGLASS_TOKEN", "from-environment")
    Path("token").write_text("from-file\n")
    assert run("models")[0] == run("models", "--token-file", "token")[0] == 0
    assert [m["authorization"] for m in service.metadata] == ["Bearer from-environment", "Bearer from-file"]


def test_the_timeout_is_the_deadline(run: Run, service: FakeService) -> None:
    def hook(method: str, request: Any, context: Any) -> None:
        gone = threading.Event()
        assert not context.add_callback(gone.set) or gone.wait(30)

    service.hook = hook
    code, _, err = run("models", "--timeout", "0.2")
    assert code == 1
    assert "DEADLINE_EXCEEDED" in err


@pytest.mark.parametrize(("module", "argv"), [("PIL", ["denoise", "a.png", "o.png"]), ("tqdm", ["encode"])])
def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, module: str, argv: list[str]) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, _, err = run(*(argv if len(argv) > 1 else ["encode", "digits.npy", "o.npy", "--model", "plain"]))
    assert code == 1
    assert "pip install 'hourglass-client[cli]'" in err


def test_models_need_no_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("models")[0] == 0


def test_as_a_process_with_a_bar_on_a_terminal_only(address: str, folder: Path) -> None:
    argv = ["encode", "digits.npy", "o.npy", "--model", "plain", "--address", address]
    with spawn(*argv) as quiet:
        _, err = quiet.communicate(timeout=60)
    assert (quiet.returncode, err) == (0, "")
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with spawn(*argv, stderr=terminal) as shown:
        os.close(terminal)
        shown.communicate(timeout=60)
    assert shown.returncode == 0
    bar = os.read(controller, 65536).decode()
    os.close(controller)
    assert "30.0/30.0" in bar
    assert "rows/s" in bar


def test_as_a_process_an_error_is_one_line(folder: Path) -> None:
    with serving(FakeService()) as address:
        pass
    with spawn("models", "--address", address, "--timeout", "20", "--tls-ca", "a.png") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"hourglass: {address}: ")


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ended_by_a_signal_it_cancels_and_leaves_nothing(
    service: FakeService, address: str, folder: Path, number: signal.Signals, code: int, says: str
) -> None:
    came, gone = threading.Event(), threading.Event()

    def hook(method: str, request: Any, context: Any) -> None:
        if method == "Encode":
            context.add_callback(gone.set)
            came.set()
            assert gone.wait(30)

    service.hook = hook
    with spawn("encode", "digits.npy", "o.npy", "--model", "plain", "--address", address) as process:
        assert came.wait(30)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"hourglass: {says}\n")
    assert gone.wait(30)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "digits.npy"]


def test_a_reader_that_leaves_early_is_no_error(address: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("models", "--address", address, stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


def test_the_command_says_one_line_where_grpc_would_say_more() -> None:
    """A handshake that fails is something that gRPC itself logs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as plain:
        answering = threading.Thread(target=plain.serve_forever)
        answering.start()
        try:
            done = subprocess.run(
                [
                    sys.executable, "-c", "import sys, hourglass_command; sys.exit(hourglass_command.main())",
                    "models", "--tls", "--timeout", "2", "--address", f"127.0.0.1:{plain.server_port}",
                ],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        finally:
            plain.shutdown()
            answering.join()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hourglass: ")
    assert done.stderr.count("\n") == 1


def test_every_command_and_flag_has_help() -> None:
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert set(commands or ()) == {
        "models",
        "encode",
        "decode",
        "reconstruct",
        "denoise",
        "interpolate",
        "admin",
        "batch",
    }
    actions = next(action for action in dict(commands or {})["admin"]._actions if action.dest == "action").choices
    assert set(actions or ()) == {"list", "load", "unload", "reload", "label", "rollback"}
    for command in (*dict(commands or {}).values(), *dict(actions or {}).values()):
        assert all(action.help for action in command._actions)
