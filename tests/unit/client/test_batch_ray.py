"""The parts of `--engine ray` that need no Ray: how pieces are shared out, what a worker refuses. The rest: tests/ecosystem."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass import batch_ray
from hourglass.__main__ import main
from hourglass.batch_inputs import open_source
from hourglass.batch_work import Work
from hourglass.files import CommandError
from hourglass.in_process import InProcess
from tests import tiny


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Rows in pieces of 5, and a package."""
    package = tiny.write(tmp_path / "models")
    np.save(tmp_path / "rows.npy", tiny.rows(23))
    open_model = partial(InProcess, package, threads=1)
    model = open_model()
    spec = model.models()[0].input
    return Work(
        open=open_model,
        service=None,
        digest=model.digest,
        operation="encode",
        model="tiny",
        version=1,
        dtype="float32",
        timeout_s=None,
        patience_s=1.0,
        path=tmp_path / "rows.npy",
        spec=spec,
        column=None,
        resize=False,
        fingerprint=open_source(tmp_path / "rows.npy", spec, column=None, resize=False).fingerprint,
        piece_rows=5,
        shard=None,
    )


def run(work: Work, first: int, stop: int) -> list[dict[str, Any]]:
    """What a worker hands on. It gets its work by pickle, as with Ray."""
    return list(batch_ray._Pieces(pickle.loads(pickle.dumps(work)))({"first": [first], "stop": [stop]}))


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_runs_are_the_pieces_that_are_wanted_in_order(wanted: list[bool], most_pieces: int) -> None:
    runs = batch_ray._runs(wanted, most_pieces=most_pieces)
    numbers = [number for run in runs for number in range(run["first"], run["stop"])]
    assert numbers == [number for number, want in enumerate(wanted) if want]
    assert all(0 < run["stop"] - run["first"] <= most_pieces for run in runs)


def test_a_worker_makes_the_pieces_of_its_run(work: Work) -> None:
    pieces = run(work, 3, 5)
    assert [piece["piece"].tolist() for piece in pieces] == [[3], [4]]
    results = np.concatenate([piece["result_0"][0] for piece in pieces])
    np.testing.assert_allclose(results, tiny.encode(tiny.rows(23))[15:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["other rows", "no rows", "other package", "no package"])
def test_a_worker_that_sees_other_files_refuses(work: Work, tmp_path: Path, what: str) -> None:
    if what == "other rows":
        np.save(work.path, tiny.rows(24))
    elif what == "no rows":
        work.path.unlink()
    elif what == "other package":
        work = replace(work, digest="0" * 64)
    else:
        shutil.rmtree(tmp_path / "models")
    (handed_on,) = run(work, 0, 5)
    assert str(handed_on["error"][0]).endswith(f"on {os.uname().nodename}; every node must see the same")


def test_a_service_on_loopback_is_of_no_use_to_a_cluster(work: Work) -> None:
    ray = SimpleNamespace(init=lambda **_: None, nodes=lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    with pytest.raises(CommandError, match=r"127.0.0.1:50051 is each node's own; the cluster has 2 of them"):
        batch_ray._start(ray, "auto", replace(work, service="127.0.0.1:50051"))


def test_without_ray_it_says_what_to_install(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")
    package = str(tmp_path / "models" / "tiny" / "1")
    argv = ["batch", "encode", str(work.path), str(tmp_path / "out.npy"), "--package", package, "--engine", "ray"]
    assert main(argv) == 1
    assert "pip install 'hourglass-client[ray]'" in capsys.readouterr().err
