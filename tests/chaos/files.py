"""Files that are broken while the service reads them: what served goes on serving."""

from __future__ import annotations

import itertools
import os
import resource
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from hourglass import TLS, AdminClient, Client, Unavailable, Unsupported
from service import packages
from tests import tiny
from tests.chaos.load import CALL_S, Load, assert_clean_end, assert_serves, wait_until
from tests.integration.serving import ServerProcess


def truncated_during_load(folder: Path, count: int) -> dict[str, float]:
    """A file of the package is cut short and mended again and again, while it is reloaded so many times."""
    target = tiny.write(folder) / packages.ENCODER
    whole = target.read_bytes()
    enough = threading.Event()

    def cut_and_mend() -> None:
        for step in itertools.count():
            if enough.wait(0.001):
                return
            os.truncate(target, step * 37 % len(whole))
            enough.wait(0.001 * (step % 5))
            target.write_bytes(whole)

    taken = refused = 0
    with ServerProcess(folder, "--admin-address", "127.0.0.1:0") as server:
        with Load(server.address) as load, AdminClient(_admin_address(server)) as admin:
            cutter = threading.Thread(target=cut_and_mend)
            cutter.start()
            try:
                for _ in range(count):
                    try:
                        admin.reload("tiny", timeout_s=CALL_S)
                        taken += 1
                    except Unsupported as error:
                        assert packages.ENCODER in str(error), error
                        refused += 1
            finally:
                enough.set()
                cutter.join()
            target.write_bytes(whole)
            admin.reload("tiny", timeout_s=CALL_S)
        assert refused, "no load met a file that was cut short"
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"loads refused": refused, "loads that found it whole": taken}


def corrupted_package(folder: Path, count: int) -> dict[str, float]:
    """The package that serves is replaced by a broken one and reloaded; so many times, in every file in turn."""
    package = tiny.write(folder)
    whole = {path.name: path.read_bytes() for path in package.iterdir()}
    names = sorted(set(whole) - {"README.md"})

    def flip(content: bytes, position: int) -> bytes:
        return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]

    with ServerProcess(folder, "--admin-address", "127.0.0.1:0") as server:
        with Load(server.address) as load, AdminClient(_admin_address(server)) as admin:
            for number in range(count):
                name = names[number % len(names)]
                _swap(package / name, flip(whole[name], number * 7919 % len(whole[name])))
                try:
                    admin.reload("tiny", timeout_s=CALL_S)
                except Unsupported:
                    pass
                else:
                    raise AssertionError(f"a package with a wrong byte in {name} was taken")
                (state,) = admin.versions("tiny")
                assert state.state == "ready", state
                assert state.reason, state
                load.wait_for_more(5)
                _swap(package / name, whole[name])
            admin.reload("tiny", timeout_s=CALL_S)
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"loads refused": count}


def expired_certificate(folder: Path, count: int) -> dict[str, float]:
    """An expired certificate is refused, and one that expires while it serves ends no connection; so many times, each
    time replaced by a good one."""
    tiny.write(folder / "models")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    cert, key = folder / "server.pem", folder / "server.key"

    def issue(valid_s: float) -> datetime:
        until = datetime.now(UTC) + timedelta(seconds=valid_s)
        leaf = authority.issue_cert("127.0.0.1", not_after=until)
        _swap(key, leaf.private_key_pem.bytes())
        _swap(cert, leaf.cert_chain_pems[0].bytes())
        return until

    issue(3600)
    tls = TLS(ca=folder / "ca.pem")

    def is_let_in() -> bool:
        with Client(server.address, tls=tls, attempts=1) as client:
            try:
                client.models(timeout_s=CALL_S)
            except Unavailable:
                return False
            return True

    with ServerProcess(folder / "models", "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        read = len(_events(server, "certificates read"))
        with Load(server.address, tls=tls) as load:
            for number in range(count):
                issue(-60)
                server.wait_for("the certificates stay as they were", count=number + 1)
                assert is_let_in(), "a refused certificate is used"
                issue(4)
                server.wait_for("certificates read", count=read + 2 * number + 1)
                wait_until(lambda: not is_let_in(), "an expired certificate is good for its client")
                server.wait_for("a certificate has expired", count=number + 1)
                expiry = server.metric('autoencoder_certificate_expiry_timestamp_seconds{certificate="server"}')
                assert 0 < expiry < time.time(), "the metric has another certificate"
                load.wait_for_more(20)
                issue(3600)
                server.wait_for("certificates read", count=read + 2 * number + 2)
                assert is_let_in()
        assert_serves(server.address, tls=tls)
    assert_clean_end(server)
    return load.figures


def full_disk(folder: Path, count: int) -> dict[str, float]:
    """The service cannot write any more, so many times: a label that was to be moved, and the version that was to be
    loaded for it, stay as they were, nothing is left behind, and loading itself goes on. (A limit of the size of files
    stands for the disk: it needs no rights, and for who writes it is the same.)"""
    labels = tiny.write(folder).parent / "labels.json"
    for version in (2, 3):
        tiny.write(folder, version=version)
    flags = ("--admin-address", "127.0.0.1:0", "--versions", "latest:1")
    with ServerProcess(folder, *flags) as server:
        pid = server.process.pid
        with Load(server.address) as load, AdminClient(_admin_address(server)) as admin:
            admin.label("tiny", "stable", "3", timeout_s=CALL_S)
            before, beside = labels.read_bytes(), sorted(path.name for path in labels.parent.iterdir())
            states = {state.version: state.state for state in admin.versions("tiny")}
            for _ in range(count):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                try:
                    admin.label("tiny", "stable", "1", timeout_s=CALL_S)
                except Unsupported as error:
                    assert "cannot be written" in str(error), error
                else:
                    raise AssertionError("a label was moved that could not be written down")
                admin.reload("tiny", timeout_s=CALL_S)
                load.wait_for_more(10)
                assert labels.read_bytes() == before
                assert sorted(path.name for path in labels.parent.iterdir()) == beside, "a file is left behind"
                assert {state.version: state.state for state in admin.versions("tiny")} == states
                with Client(server.address) as client:
                    assert client.model("tiny", version="stable", timeout_s=CALL_S).version == 3
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            admin.label("tiny", "stable", "1", timeout_s=CALL_S)
            with Client(server.address) as client:
                assert client.model("tiny", version="stable", timeout_s=CALL_S).version == 1
        assert_serves(server.address)
    assert_clean_end(server)
    return load.figures | {"labels that could not be moved": count}


def _swap(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.rename(path)


def _events(server: ServerProcess, name: str) -> list[dict[str, object]]:
    return [event for event in server.events if event["event"] == name]


def _admin_address(server: ServerProcess) -> str:
    return str(server.wait_for("administrators are listened to")["address"])
