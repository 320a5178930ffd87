"""`hourglass batch --shard`: the shares are disjoint, are all, and make one output; whoever is late finds it out."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass.batch_shards import Shard
from tests.unit.client.batch_files import FLOATS, ROWS, Run, denoiser, read_parquet, rows_asked
from tests.unit.client.fake_service import FakeService, card, encode, fail


@pytest.fixture
def service() -> FakeService:
    return denoiser()


def make(run: Run, source: str, output: str, shard: str, *more: str) -> tuple[int, str, str]:
    return run("encode", source, output, "--piece-rows", "3", "--shard", shard, *more)


@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 20))
def test_shares_are_disjoint_consecutive_and_all(row_count: int, piece_rows: int, shards: int) -> None:
    shares = [Shard(index=index, count=shards).rows(row_count, piece_rows) for index in range(shards)]
    assert [row for share in shares for row in share] == list(range(row_count))
    pieces = [len(Shard(index=index, count=shards).pieces(-(-row_count // piece_rows))) for index in range(shards)]
    assert max(pieces) - min(pieces) <= 1


@pytest.mark.parametrize("shards", [1, 3, 11])  # of 8 pieces: 11 leave shares of nothing
@pytest.mark.parametrize("source", ["rows.npy", "rows.parquet", "pictures"])
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_the_parts_are_one_output(run: Run, service: FakeService, source: str, kind: str, shards: int) -> None:
    for index in reversed(range(shards)):
        code, _, err = make(run, source, f"parts.{kind}", f"{index}/{shards}")
        assert code == 0, err
    assert rows_asked(service) == len(ROWS)
    assert run("join", f"parts.{kind}", f"joined.{kind}")[0] == 0
    assert run("encode", source, f"whole.{kind}", "--piece-rows", "3")[0] == 0
    if kind == "npy":
        assert Path("joined.npy").read_bytes() == Path("whole.npy").read_bytes()
        return
    whole = parquet.read_table("whole.parquet")
    assert parquet.read_table("joined.parquet").equals(whole)
    assert parquet.read_table("parts.parquet").equals(whole)
    assert parquet.read_schema("joined.parquet").metadata == parquet.read_schema("whole.parquet").metadata


def refuse_the_second(service: FakeService) -> None:
    encodes = count()

    def hook(method: str, request: Any, context: Any) -> None:
        if method == "Encode" and next(encodes) == 1:
            fail(context, grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")

    service.hook = hook


@pytest.mark.parametrize("output", ["parts.npy", "parts.parquet"])
def test_a_share_goes_on_where_it_ended(run: Run, service: FakeService, output: str) -> None:
    refuse_the_second(service)
    assert make(run, "rows.npy", output, "1/2")[0] == 1  # of the 11 rows from row 12
    service.hook, service.requests = None, []
    code, out, _ = make(run, "rows.npy", output, "1/2")
    before = int(out.partition(" rows/s) and ")[2].split()[0])
    assert (code, before >= 3, rows_asked(service)) == (0, True, 11 - before)
    part = f"{output}/part-00001-of-00002.{output[6:]}"
    latents = np.load(part) if output == "parts.npy" else np.stack(parquet.read_table(part)["latent"].to_numpy())
    np.testing.assert_array_equal(latents, encode(FLOATS, 3)[12:])


def test_a_share_that_is_there_is_not_made_again(run: Run, service: FakeService) -> None:
    assert make(run, "rows.npy", "parts.npy", "0/2")[0] == 0
    service.requests = []
    code, out, _ = make(run, "rows.npy", "parts.npy", "0/2")
    assert (code, out, rows_asked(service)) == (0, "parts.npy/part-00000-of-00002.npy: is there already\n", 0)


def test_all_shares_keep_to_the_version_and_the_pieces_of_the_first(run: Run, service: FakeService) -> None:
    assert make(run, "rows.npy", "parts.npy", "0/2")[0] == 0
    service.cards.insert(0, card("denoiser", version=2, row_shape=(4, 5), latent_units=3))
    code, out, _ = run("encode", "rows.npy", "parts.npy", "--shard", "1/2")
    assert (code, "11 rows by denoiser/1" in out) == (0, True)
    assert run("encode", "rows.npy", "new.npy", "--shard", "0/1")[1].count("by denoiser/2") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("encode", "rows.npy", "parts.npy", "--shard", "1/3"), "shards was 2, now 3"),
        (("denoise", "rows.npy", "parts.npy", "--shard", "1/2"), "operation was encode, now denoise"),
        (("encode", "floats.npy", "parts.npy", "--shard", "1/2"), "input was"),
        (("encode", "rows.npy", "parts.npy"), "parts.npy: is there already"),
        (("encode", "rows.npy", "floats.npy", "--shard", "1/2"), "floats.npy: is a file; with --shard it is a folder"),
        (("encode", "rows.npy", "nowhere/parts.npy", "--shard", "1/2"), "there is no such directory"),
        (("join", "parts.npy", "out.npy"), "1 of 2 parts are missing; --shard makes them: 1/2"),
        (("join", "parts.npy", "out.parquet"), "the parts are .npy files"),
        (("join", "rows.npy", "out.npy"), "rows.npy: is no folder that hourglass batch --shard has written"),
        (("join", "parts.npy", "rows.npy"), "rows.npy: is there already"),
        (("join", "parts.npy", "out.npy", "--shard", "0/2"), "--shard: join takes all parts"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, argv: tuple[str, ...], says: str) -> None:
    assert make(run, "rows.npy", "parts.npy", "0/2")[0] == 0
    code, _, err = run(*argv)
    assert (code, says in err, err.count("\n")) == (1, True, 1), err
    assert not Path("out.npy").exists()


@pytest.mark.parametrize("shard", ["2/2", "1", "a/2", "0/0", "1/2/3"])
def test_a_shard_is_an_index_and_a_count(run: Run, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make(run, "rows.npy", "parts.npy", shard)
    assert f"must be INDEX/COUNT with INDEX from 0 to COUNT - 1; got {shard}" in capsys.readouterr().err


def test_parts_that_were_tampered_with_are_not_joined(run: Run) -> None:
    for output in ("parts.npy", "parts.parquet"):
        for index in range(2):
            assert make(run, "rows.npy", output, f"{index}/2")[0] == 0
    part = Path("parts.npy/part-00001-of-00002.npy")
    np.save(part, np.load(part)[1:])
    assert "must have the 11 rows from 12 on; it has 10" in run("join", "parts.npy", "out.npy")[2]
    part = Path("parts.parquet/part-00001-of-00002.parquet")
    table = parquet.read_table(part)
    parquet.write_table(table.take(arrow.array([1, 0, *range(2, 11)])), part)
    assert "column `row` is not 12 to 22 in order" in run("join", "parts.parquet", "out.parquet")[2]
    assert not list(Path().glob("out*"))


def test_a_folder_of_pictures_keeps_its_names(run: Run) -> None:
    for index in range(2):
        assert make(run, "pictures", "parts.parquet", f"{index}/2")[0] == 0
    assert run("join", "parts.parquet", "joined.parquet")[0] == 0
    assert read_parquet("joined.parquet")["file"][[0, 12, 22]].tolist() == ["00.png", "12.png", "deep/22.png"]
    assert json.loads(Path("parts.parquet/_job.json").read_text())["shards"] == 2


@pytest.mark.parametrize("content", ["", "[]", '{"model": "denoiser", "version": 1, "rows": 23, "piece_rows": 3}'])
def test_a_job_that_is_damaged_is_named(run: Run, content: str) -> None:
    assert make(run, "rows.npy", "parts.npy", "0/2")[0] == 0
    Path("parts.npy/_job.json").write_text(content)
    for code, _, err in (make(run, "rows.npy", "parts.npy", "1/2"), run("join", "parts.npy", "joined.npy")):
        assert (code, err.count("\n")) == (1, 1)
        assert "parts.npy/_job.json: does not say what was begun there" in err
