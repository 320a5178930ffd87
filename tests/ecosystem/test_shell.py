"""The client in a shell of `examples/shell`, against a real service; and buf's checks of the .proto files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hourglass import Client
from tests.ecosystem import languages
from tests.ecosystem.environments import ROOT
from tests.ecosystem.languages import CONV, DIGITS, Done, closed_port, guarded, run, run_the_page, serving, table

pytestmark = pytest.mark.ecosystem
CANCELLED, NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE, UNAUTHENTICATED = 1, 5, 7, 14, 16
SCRIPT = ROOT / "examples" / "shell" / "hourglass.sh"


@pytest.fixture(autouse=True)
def tools() -> None:
    for tool in ("bash", "node", "jq"):
        languages.need(tool)
    languages.need_built("examples/shell/node_modules/ready")


def client(folder: Path, *words: str, **environment: str) -> Done:
    return run([str(SCRIPT), *words], folder, **environment)


def told(done: Done) -> tuple[int, str, str]:
    """The status, which buf shifts by three bits, its name and the text of an error."""
    assert done.stdout == ""
    error = json.loads(done.stderr)
    return done.returncode >> 3, error["code"], error["message"]


def assert_is_latent(text: str, server: Client, row: npt.NDArray[np.generic]) -> None:
    answer = json.loads(text)
    wanted = server.encode(CONV, row[None])
    assert (answer["model"], answer["version"], answer["shape"]) == (CONV, 1, list(wanted.shape))
    np.testing.assert_array_equal(np.array(answer["latents"], np.float32), wanted.ravel())


def test_the_page_gives_what_our_own_client_gets(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert run_the_page("shell", server, tmp_path).splitlines() == table(server)
        with Client(server.address) as ours:
            assert_is_latent((tmp_path / "build" / "latent.json").read_text(), ours, DIGITS[7])
            floats = DIGITS[:3] / np.float32(255)
            np.save(tmp_path / "floats.npy", floats)
            last = client(tmp_path, "encode", "floats.npy", "2", HOURGLASS_ADDRESS=server.address)
            assert_is_latent(last.stdout, ours, floats[2])


def test_errors_have_their_status_and_details(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", DIGITS[:3])
    np.save(tmp_path / "doubles.npy", np.zeros((3, 28, 28)))
    with serving(tmp_path) as server:
        missing = client(tmp_path, "--model", "huge", "--address", server.address, "encode", "rows.npy")
    assert told(missing) == (NOT_FOUND, "not_found", "there is no model 'huge'")
    assert json.loads(missing.stderr)["details"][0]["type"] == "google.rpc.ErrorInfo"
    taken, address = closed_port()
    with taken:
        for words in (["models"], ["encode", "rows.npy"]):
            away = client(tmp_path, *words, HOURGLASS_ADDRESS=address)
            assert told(away)[:2] == (UNAVAILABLE, "unavailable")
    for words, text in (
        (["encode", "rows.npy", "3"], "row: must be one of the rows of [3, 28, 28]; got 3\n"),
        (["encode", "doubles.npy"], "doubles.npy: must be of uint8 or float32; got '<f8'\n"),
        (["encode", "none.npy"], "none.npy: cannot be read\n"),
    ):
        wrong = client(tmp_path, *words)
        assert (wrong.returncode, wrong.stderr) == (1, text)
    assert client(tmp_path, "nonsense").returncode == 2


def test_tls_and_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", DIGITS[:3])
    with guarded(tmp_path) as (server, files):
        names = {"--tls-ca": "ca.pem", "--tls-cert": "client.pem", "--tls-key": "client.key"}
        flags = ["--address", server.address, *(word for flag in names.items() for word in flag)]
        with Client(server.address, tls=files.tls, token="old-all") as ours:
            let_in = client(tmp_path, *flags, "encode", "rows.npy", "1", HOURGLASS_TOKEN="old-all")
            assert let_in.returncode == 0, let_in.stderr
            assert_is_latent(let_in.stdout, ours, DIGITS[1])
        (tmp_path / "token").write_text("old-plain\n")
        limited = client(tmp_path, *flags, "--token-file", "token", "encode", "rows.npy")
        assert told(limited)[:2] == (PERMISSION_DENIED, "permission_denied")
        wrong = client(tmp_path, *flags, "models", HOURGLASS_TOKEN="wrong")
        assert told(wrong) == (UNAUTHENTICATED, "unauthenticated", "the token is not known")
        stranger = client(tmp_path, *flags[:4], "models", HOURGLASS_TOKEN="old-all")
        # Of TLS 1.3 the client learns that it is not let in when its request is on its way, and buf calls it either.
        assert told(stranger)[:2] in ((UNAVAILABLE, "unavailable"), (CANCELLED, "canceled"))
    in_clear = client(tmp_path, "models", HOURGLASS_ADDRESS="192.0.2.1:50051", HOURGLASS_TOKEN="old-all")
    assert in_clear.stderr == "token: sent without TLS only to a loopback address, not to 192.0.2.1:50051\n"


def test_the_commands_of_the_documentation_run(tmp_path: Path) -> None:
    for path in ("examples/node/node_modules/ready", "build/go/client"):
        languages.need_built(path)
    with serving(tmp_path) as server:
        lines = languages.commands("docs/ecosystem.md", "| `examples/shell/hourglass.sh models` |")
        assert languages.run_commands(lines, server, tmp_path).endswith("[\n  1,\n  8,\n  4,\n  4\n]\n")
        with Client(server.address) as ours:
            latents = ours.encode(CONV, DIGITS)
    np.testing.assert_array_equal(np.load(tmp_path / "build" / "latents.npy"), latents)


def test_the_script_and_the_proto_files_are_clean() -> None:
    buf = ROOT / "examples" / "shell" / "node_modules" / ".bin" / "buf"
    linted = run([str(buf), "lint", "proto"], ROOT)
    assert (linted.returncode, linted.stdout) == (0, "")
    if shutil.which("shellcheck"):
        checked = run(["shellcheck", str(SCRIPT)], ROOT)
        assert (checked.returncode, checked.stdout) == (0, "")
