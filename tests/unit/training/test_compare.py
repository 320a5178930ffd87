"""Runs beside each other, and the log as TensorBoard events."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.short import short_recipe
from training import compare, pictures, train
from training.data import Dataset
from training.errors import RunError
from training.runs import Run


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).split()


def test_a_table_says_what_differs_and_what_came_of_it(
    digits: Dataset, digit_runs: dict[str, Run], tmp_path: Path
) -> None:
    other = train.train(short_recipe("deep", ("network.latent", 7), ("procedure.clip_norm", 2.0)), digits, tmp_path)
    one = digit_runs["deep"]
    text = compare.table([one, other])
    assert cells(text, "network.latent") == ["32", "7"]
    assert cells(text, "procedure.clip_norm") == ["null", "2.0"]
    assert "network.hidden" not in text  # which is the same
    assert cells(text, "finished") == ["yes", "yes"]
    assert cells(text, "joint: best epoch") == ["2", "of", "2", "2", "of", "2"]
    figures = [run.evaluation()["metrics"]["psnr_db"] for run in (one, other)]  # type: ignore[index]
    assert cells(text, "test: psnr_db") == [f"{figure:.5g}" for figure in figures]
    seconds = [sum(entry["seconds"] for entry in run.metrics()) for run in (one, other)]
    assert cells(text, "training, seconds") == [f"{value:.1f}" for value in seconds]


def test_a_log_with_a_torn_last_line_is_read_up_to_it(digit_runs: dict[str, Run], tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(digit_runs["deep"].folder, tmp_path / "deep" / "run")))
    entries, log = run.metrics(), run.folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{"phase": "jo')
    assert run.metrics() == entries
    assert cells(compare.table([run]), "joint: best epoch") == ["2", "of", "2"]
    log.write_bytes(b"{\n" + log.read_bytes())
    with pytest.raises(RunError, match=r"metrics.jsonl: line 1 is not JSON"):
        run.metrics()


def test_runs_of_different_procedures_can_be_compared(digit_runs: dict[str, Run]) -> None:
    runs = [digit_runs[name] for name in ("pca", "stacked", "conv")]
    text = compare.table(runs)
    assert cells(text, "network.kind") == ['"linear"', '"dense"', '"convolutional"']
    assert cells(text, "fine-tuning: validation accuracy") == [
        f"{max(entry.get('validation_accuracy', 0) for entry in runs[1].metrics()):.5g}"
    ]
    figure = compare.curves(runs)
    drawn = {axis.get_title(): [line.get_label() for line in axis.lines] for axis in figure.axes}
    assert set(drawn) == {"layer 1", "layer 2", "fine-tuning", "refitting", "joint"}
    names = ["/".join(run.folder.parts[-2:]) for run in runs]
    assert drawn["joint"] == [f"{names[2]}, train", f"{names[2]}, validation"]
    assert drawn["layer 1"] == [f"{names[1]}, train", f"{names[1]}, validation"]


def test_losses_that_fall_far_are_drawn_on_a_logarithm_with_ticks_written_out() -> None:
    def log(first: float) -> list[dict[str, Any]]:
        return [{"phase": "joint", "epoch": 1, "train_loss": first, "train_penalty": 0.0},
                {"phase": "joint", "epoch": 2, "train_loss": 30.0, "train_penalty": 0.0}]  # fmt: skip

    for first, scale in ((40.0, "linear"), (280.0, "log"), (28000.0, "log")):
        figure = pictures.losses(log(first))
        assert figure is not None
        figure.draw_without_rendering()
        (axis,) = figure.axes
        assert axis.get_yscale() == scale
        low, high = axis.get_ylim()
        shown = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
        assert len(shown) >= 2
        assert all(float(text) for text in shown)


def test_the_log_as_tensorboard_events_and_again_after_a_rewind(digits: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from training import events

    run = train.train(short_recipe("deep"), digits, tmp_path, watch=events.watch)

    def scalars() -> dict[str, list[tuple[int, float]]]:
        reader = EventAccumulator(str(run.folder / "tensorboard"))
        reader.Reload()
        return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}

    written = scalars()
    log = run.metrics()
    losses = dict(written["joint/train_loss"])
    assert losses == pytest.approx({entry["epoch"]: entry["train_loss"] for entry in log})
    assert {re.sub("joint/", "", tag) for tag in written} == {*log[0]} - {"phase", "epoch"}
    run.rewind(1)
    events.watch(run)
    assert [step for step, _ in scalars()["joint/train_loss"]] == [1]
