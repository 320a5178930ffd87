"""What an optimisation phase does beside learning: rates, patience, clipping, precision, the log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from tests.unit.training.short import short_recipe
from training import devices, recipes
from training.errors import DeviceError, RecipeError
from training.optimise import Phase, run_phase
from training.runs import Run
from training.schedules import learning_rate
from training.session import Session

ROWS, EPOCH_STEPS = 40, 4


def settings(**values: Any) -> recipes.Optimisation:
    return recipes.Optimisation(**{"epochs": 10, "batch_rows": ROWS // EPOCH_STEPS, "learning_rate": 0.1, **values})


def rates(**values: Any) -> list[float]:
    table = settings(**values)
    return [learning_rate(table, step, EPOCH_STEPS) for step in range(table.epochs * EPOCH_STEPS)]


def test_a_schedule_is_what_its_name_says() -> None:
    assert set(rates()) == {0.1}
    cosine = rates(schedule="cosine")
    assert cosine[0] == 0.1
    assert cosine[20] == pytest.approx(0.05)
    assert cosine[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 39 / 40)) / 2)
    steps = rates(schedule="step", step_epochs=4, step_factor=0.5)
    assert steps[:16] == [0.1] * 16
    assert steps[16:32] == pytest.approx([0.05] * 16)
    assert steps[32:] == pytest.approx([0.025] * 8)


def test_a_warm_up_rises_in_a_line_and_the_schedule_follows() -> None:
    warm = rates(schedule="cosine", warmup_epochs=2.5)
    assert warm[:10] == pytest.approx([0.1 * step / 10 for step in range(1, 11)])
    assert warm[10] == pytest.approx(0.1)
    assert warm[25] == pytest.approx(0.05)  # half way from the tenth step to the fortieth
    assert warm == sorted(warm[:10]) + sorted(warm[10:], reverse=True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("warmup_epochs", 2, "procedure.warmup_epochs: must be less than the 2 epochs; got 2"),
        ("schedule", "step", "procedure.step_epochs: must be given exactly where schedule is 'step'; got None"),
        ("step_factor", 0.5, "procedure.step_factor: must be given exactly .* got 0.5, 'constant'"),
        ("patience", 0, "procedure.patience: .*; got 0"),
        ("clip_norm", 0.0, "procedure.clip_norm: .*; got 0.0"),
        ("schedule", "linear", "procedure.schedule: .*; got 'linear'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(key: str, value: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        short_recipe("deep", ("procedure.schedule", "constant"), (f"procedure.{key}", value))


class Line(nn.Module):
    """One weight, whose loss is its distance from 1 times a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def phase(line: Line, objectives: Iterator[float] | None = None, *, slope: float = 1.0, **named: Any) -> Phase:
    def batch_loss(indices: Tensor) -> tuple[Tensor, Tensor]:
        loss = slope * (1 - line.weight).abs().sum()
        return loss, loss.new_zeros(())

    def validate() -> dict[str, float]:
        loss = next(objectives) if objectives else float((1 - line.weight).abs())
        return {"validation_loss": loss, "validation_penalty": 0.0}

    return Phase(name="line", parameters=line.parameters(), batch_loss=batch_loss, validate=validate, **named)


def session(folder: Path, line: Line) -> Session:
    return Session(Run.create(folder, short_recipe("deep")), line, Generator().manual_seed(0))


def test_patience_stops_after_so_many_epochs_without_a_better_one_and_goes_back_to_the_best(tmp_path: Path) -> None:
    line = Line()
    here = session(tmp_path, line)
    table = settings(optimiser="sgd", learning_rate=1e-3, patience=2)
    seen = []

    def watching() -> Iterator[float]:
        for value in (5.0, 4.0, 4.5, 3.0, 3.0, 7.0, 1.0):
            seen.append(line.weight.item())
            yield value

    run_phase(phase(line, watching()), table, row_count=ROWS, session=here)
    log = here.run.metrics()
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert [entry["best"] for entry in log] == [True, True, False, True, False, False]
    assert line.weight.item() == seen[3]
    assert not here.run.has("best")  # which is for phases that make the network


def test_without_patience_all_epochs_are_trained_and_the_last_weights_stay(tmp_path: Path) -> None:
    line = Line()
    here = session(tmp_path, line)
    run_phase(
        phase(line, iter([1.0] + [2.0] * 9), keeps_best=True),
        settings(optimiser="sgd", learning_rate=1e-3),
        row_count=ROWS,
        session=here,
    )
    assert len(here.run.metrics()) == 10
    last, best = Line(), Line()
    here.run.restore(last, "last")
    here.run.restore(best, "best")
    assert last.weight.item() == line.weight.item() > best.weight.item() > 0


def test_gradients_are_clipped_by_their_norm(tmp_path: Path) -> None:
    moved = {}
    for norm in (None, 2.0, 1e6):
        line = Line()
        table = settings(epochs=1, batch_rows=ROWS, optimiser="sgd", learning_rate=1e-3, clip_norm=norm)
        run_phase(phase(line, slope=50.0), table, row_count=ROWS, session=session(tmp_path, line))
        moved[norm] = line.weight.item()
    assert moved[None] == moved[1e6] == pytest.approx(50e-3)
    assert moved[2.0] == pytest.approx(2e-3)


def test_a_line_of_the_log_has_what_one_wants_to_know(tmp_path: Path) -> None:
    line = Line()
    here = session(tmp_path, line)
    watched: list[Any] = []
    here._watch = watched.append
    table = settings(epochs=3, schedule="step", step_epochs=1, step_factor=0.5, optimiser="sgd", learning_rate=1e-3)
    run_phase(phase(line), table, row_count=ROWS, session=here)
    log = here.run.metrics()
    assert log == watched
    assert [entry["learning_rate"] for entry in log] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert log[0]["train_loss"] == pytest.approx(1.0, abs=0.02)
    assert log[0]["train_loss"] > log[1]["train_loss"] > log[2]["train_loss"]
    for entry in log:
        assert {"phase", "epoch", "train_penalty", "validation_loss", "seconds", "rows_per_s", "best"} <= entry.keys()
        assert entry["rows_per_s"] * (entry["seconds"] + 0.0005) > 0.2 * ROWS  # to milliseconds


@pytest.mark.parametrize(
    ("precision", "native", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_bfloat16_by_itself_only_where_the_device_has_it(
    precision: str, native: bool, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: native)
    seen = set()
    line = Line()

    def batch_loss(indices: Tensor) -> tuple[Tensor, Tensor]:
        product = line.weight.reshape(1, 1) @ torch.ones(1, 1)
        seen.add(product.dtype)
        return product.float().sum(), torch.zeros(())

    ours = phase(line)
    run_phase(
        Phase(name="line", parameters=ours.parameters, batch_loss=batch_loss, validate=ours.validate),
        settings(epochs=1, precision=precision),
        row_count=ROWS,
        session=session(tmp_path, line),
    )
    assert seen == {expected}


def test_a_device_that_is_not_there_is_an_error_and_auto_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose("auto") == devices.choose("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device: 'cuda' is not to be had here"):
        devices.choose("cuda")
