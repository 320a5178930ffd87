"""The worked example of docs/training.md: from a CSV of sensor readings to a served novelty score."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from examples import sensors
from hourglass import Client, InvalidArgument
from tests.integration.serving import ServerProcess
from training.__main__ import main

MODELS = Path(__file__).parents[2] / "models"


def test_windows_with_a_fault_score_higher_than_healthy_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sensors.make(Path("pump"))
    assert main(["inspect", "pump/history.csv", "--window", "64", "--stride", "8", "--write", "pump.toml"]) == 0
    # A quarter of the epochs of the recipe as it stands.
    assert main(["train", "pump.toml", "--epochs", "30", "--threads", "1"]) == 0
    assert main(["export", "pump.toml"]) == 0
    with ServerProcess(Path("models").resolve()) as server:
        capsys.readouterr()
        sensors.score(Path("pump/today.csv"), "history-pump", server.address)
        told = capsys.readouterr().out
        with Client(server.address) as client:
            card = client.model("history-pump")
            assert (card.input.kind, card.input.shape, card.input.columns) == ("series", (64, 6), sensors.COLUMNS)
            rows = np.stack([sensors.readings(64, seed) for seed in range(4)]).astype(np.float32)
            answer = client.reconstruct("history-pump", rows)
            # In units of the scale: the columns' own units differ by a factor of a hundred.
            scale = np.array(card.message.row_scale, np.float32).reshape(card.input.shape)
            by_hand = np.square((answer.rows - rows) / scale).mean((1, 2))
            np.testing.assert_allclose(answer.errors, by_hand, rtol=1e-3)
            # A missing value is missing when served too.
            rows[2, 5, 1] = np.nan
            with pytest.raises(InvalidArgument, match="row 2 holds NaN"):
                client.reconstruct("history-pump", rows)
    areas = {name: float(area) for name, area in re.findall(r"^(\w[\w ]*?) +\d.* ([01]\.\d{4})$", told, re.MULTILINE)}
    assert set(areas) == {name for name, _, _ in sensors.FAULTS}
    overall = re.search(r"AUROC of all faults, by the error: ([01]\.\d+)", told)
    assert overall
    assert float(overall[1]) > 0.93, told
    novelties = dict(re.findall(r"^(\w[\w ]*?) +\d+ +([01]\.\d+)", told, re.MULTILINE))
    assert 0.4 < float(novelties["healthy"]) < 0.65
    assert float(novelties["leak"]) > 0.95


def test_the_readings_are_the_same_wherever_they_are_made(tmp_path: Path) -> None:
    sensors.make(tmp_path / "a")
    sensors.make(tmp_path / "b")
    for name in ("history.csv", "today.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_area_under_the_roc_is_the_share_of_pairs_in_order() -> None:
    faulty, healthy = np.array([3, 1, 2], np.float32), np.array([0, 2], np.float32)
    assert sensors.auroc(faulty, healthy) == pytest.approx((2 + 1 + 1.5) / 6)


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert sensors.main(["make", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'file'}: File exists\n"
    with ServerProcess(MODELS) as server:
        assert sensors.main(["score", "today.csv", "--model", "pump", "--address", server.address]) == 1
        assert "the service answered: " in capsys.readouterr().err
        missing = ["score", str(tmp_path / "today.csv"), "--model", "mnist-pca", "--address", server.address]
        assert sensors.main(missing) == 1
        assert capsys.readouterr().err == f"{tmp_path / 'today.csv'}: No such file or directory\n"
