"""A training that was stopped goes on as if it had not been: the same weights, bit for bit, and the same log."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.training.short import short_recipe
from training import recipes, session, stopping, train
from training.checkpoints import read
from training.data import Dataset
from training.errors import Diverged, Interrupted, RunError
from training.runs import Run
from training.session import Session

FIT_ROWS = 300
REAL_EVALUATION = train.evaluate_run


@pytest.fixture(scope="module")
def rows(digits: Dataset) -> Dataset:
    return Dataset(
        name="digits",
        train_rows=digits.train_rows[:FIT_ROWS],
        train_labels=digits.train_labels[:FIT_ROWS],
        validation_rows=digits.validation_rows,
        validation_labels=digits.validation_labels,
        test_rows=digits.test_rows,
        test_labels=digits.test_labels,
    )


@pytest.fixture(autouse=True)
def _without_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "evaluate_run", lambda run, dataset: None)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a signal came while that step of the training, counted from 1, was being done."""
    done = 0
    real = Session.keep

    def keep(self: Session, *arguments: Any, **named: Any) -> None:
        nonlocal done
        done += 1
        if done == steps:
            self._stop.signal_number = 2
        real(self, *arguments, **named)

    monkeypatch.setattr(Session, "keep", keep)


def weights(run: Run) -> dict[str, Tensor]:
    """Of all that the run keeps when it is over."""
    return {
        f"{path.stem}.{name}": value
        for path in run.folder.glob("*.safetensors")
        for name, value in read(path)[0].items()
    }


def log(run: Run) -> list[dict[str, object]]:
    return [
        {key: value for key, value in entry.items() if key not in ("seconds", "rows_per_s")} for entry in run.metrics()
    ]


def figures(run: Run, rows: Dataset) -> dict[str, Any]:
    return train.figures(run, rows, train.restore(run, rows.row_shape))


def same(one: Run, other: Run) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log(one) == log(other)


def interrupted(recipe: recipes.Recipe, rows: Dataset, folder: Path, steps: int, checkpoint_s: float = 1e9) -> Run:
    """A run that was stopped after so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(steps, patch)
        with pytest.raises(Interrupted, match="python -m training resume"):
            train.train(recipe, rows, folder, checkpoint_s=checkpoint_s)
    return Run.newest(folder, recipe.name)


RECIPES: dict[str, Callable[[], recipes.Recipe]] = {
    "joint, convolutions in bfloat16": lambda: short_recipe("conv"),
    "joint, noise": lambda: short_recipe("denoising-conv"),
    "joint, estimator of the Jacobian": lambda: short_recipe(
        "deep",
        ("penalty", {"kind": "contractive", "strength": 0.01, "method": "estimator"}),
        ("procedure.batch_rows", 100),
    ),
    "joint, early stopping": lambda: short_recipe(
        "sparse", ("procedure.patience", 1), ("procedure.batch_rows", 100), ("procedure.learning_rate", 0.05)
    ),
    "greedy, dropout and shifts": lambda: short_recipe(
        "stacked",
        ("procedure.finetuning.shift_share", 0.2),
        ("procedure.finetuning.patience", 1),
        ("procedure.refitting.patience", 1),
        ("corruption", {"kind": "masking", "level": 0.3}),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_at_any_step_a_run_goes_on_to_the_same_weights(name: str, rows: Dataset, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    whole = train.train(recipe, rows, tmp_path / "whole")
    steps_of_phases = 24 if recipe.procedure.kind == "greedy" else 6
    stopped = 0
    for steps in (1, 2, 3, 5, 7, 10, 13, 18, 22):
        if steps >= steps_of_phases:
            break
        run = interrupted(recipe, rows, tmp_path / str(steps), steps)
        assert not run.finished
        same(train.resume(run, rows), whole)
        assert run.finished
        stopped += 1
    assert stopped >= 4


def test_stopped_again_and_again_and_killed_in_between(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("stacked", ("corruption", {"kind": "masking", "level": 0.3}))
    whole = train.train(recipe, rows, tmp_path / "whole")
    run = interrupted(recipe, rows, tmp_path / "stopped", 4)
    for steps in (3, 1, 5, 4):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(steps, patch)
            with pytest.raises(Interrupted):
                train.resume(run, rows)
        # As kill -9 leaves it: lines after the checkpoint, the last one torn, and half a file.
        with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"phase": "layer 2", "epoch": 1}\n{"phase": "la')
        (run.folder / ".last.new").write_bytes(b"half")
    same(train.resume(run, rows), whole)


def test_when_checkpoints_are_written_changes_nothing(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("denoising")
    same(
        train.train(recipe, rows, tmp_path / "often", checkpoint_s=0),
        train.train(recipe, rows, tmp_path / "seldom", checkpoint_s=1e9),
    )


def test_a_broken_checkpoint_is_refused_and_the_one_before_taken(
    rows: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = short_recipe("denoising", ("procedure.batch_rows", 50))
    whole = train.train(recipe, rows, tmp_path / "whole")
    run = interrupted(recipe, rows, tmp_path / "broken", 8, checkpoint_s=0)
    last, previous = run.folder / "last.safetensors", run.folder / "previous.safetensors"
    assert {path.name for path in run.folder.glob("*.safetensors")} == {last.name, previous.name, "best.safetensors"}
    content = bytearray(last.read_bytes())
    content[-100] ^= 1  # one bit of a weight
    last.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert run.state()[1]["position"]["step"] == read(previous)[1]["position"]["step"]
    assert "last.safetensors: is not what was written: its checksum differs; taking previous" in caplog.text
    copy = Run(Path(shutil.copytree(run.folder, tmp_path / "again" / "denoising" / "run")))
    same(train.resume(run, rows), whole)
    # The next checkpoint takes the place of the broken one, not of the one that is whole.
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Interrupted):
            train.resume(copy, rows)
    for name in ("last", "previous"):
        read(copy.folder / f"{name}.safetensors")
    for path in (copy.folder / "last.safetensors", copy.folder / "previous.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"(?s)last.safetensors: cannot be read.*previous.safetensors: cannot be read"):
        train.resume(copy, rows)


def test_a_run_is_trained_by_one_process_at_a_time(rows: Dataset, tmp_path: Path) -> None:
    refused = 0

    def watch(run: Run) -> Callable[[Any], None]:
        def tell(entry: Any) -> None:
            nonlocal refused
            with pytest.raises(RunError, match="is being trained by another process"):
                train.resume(run, rows)
            refused += 1

        return tell

    recipe = short_recipe("deep")
    train.train(recipe, rows, tmp_path / "begun", watch=watch)
    stopped = interrupted(recipe, rows, tmp_path / "resumed", 1)
    train.resume(stopped, rows, watch=watch)
    assert refused == 4


def test_stopped_before_its_first_epoch_a_last_phase_has_no_best_weights_yet(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("stacked", ("procedure.finetuning.patience", 1))
    run = interrupted(recipe, rows, tmp_path, 19)
    position = run.state()[1]["position"]
    assert (position["phase"], position["epoch"]) == ("refitting", 1)
    assert not run.has("best")
    train.restore(run, rows.row_shape)


def test_figures_of_a_run_that_goes_on_are_of_the_weights_of_the_moment(rows: Dataset, tmp_path: Path) -> None:
    run = interrupted(short_recipe("deep"), rows, tmp_path, 1)
    early = figures(run, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate_run", REAL_EVALUATION)
        train.resume(run, rows)
    assert figures(run, rows) == run.evaluation() != early
    # The report of a run that is stopped leaves nothing behind that the next one would take.
    other = interrupted(short_recipe("deep"), rows, tmp_path, 1)
    assert figures(other, rows) == early
    assert other.evaluation() is None


def test_a_run_of_another_release_is_not_in_the_way_of_those_of_this_one(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("deep")
    run = interrupted(recipe, rows, tmp_path, 2)
    old = Path(shutil.copytree(run.folder, tmp_path / "deep" / "99990101-000000"))
    old.joinpath("recipe.json").write_text('{"name": "deep", "epoch_count": 3}', encoding="utf-8")
    assert Run.newest(tmp_path, "deep").folder == old
    found = train.newest_of(recipe, tmp_path)
    assert found == run
    shutil.rmtree(run.folder)
    assert train.newest_of(recipe, tmp_path) is None


def test_a_finished_run_is_not_trained_again(rows: Dataset, tmp_path: Path) -> None:
    for name in ("pca", "deep"):
        run = train.train(short_recipe(name), rows, tmp_path)
        assert run.finished
        assert not (run.folder / "previous.safetensors").exists()
        before = run.metrics()
        with pytest.raises(RunError, match="is finished"):
            train.resume(run, rows)
        assert run.metrics() == before
        train.restore(run, rows.row_shape)


def test_what_differs_at_resume_is_named(
    rows: Dataset, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(short_recipe("deep"), rows, tmp_path, 2)
    with pytest.raises(RunError, match=r"data.fingerprint: '[0-9a-f]{64}' then, '[0-9a-f]{64}' now"):
        train.resume(run, digits)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        with pytest.raises(RunError, match=r"versions.torch: '2.* then, '9.9.9' now"):
            train.resume(run, rows)
    path = run.folder / "recipe.json"
    table = json.loads(path.read_text())
    table["procedure"]["learning_rate"] = 0.5
    path.write_text(json.dumps(table))
    with pytest.raises(RunError, match=r"recipe.procedure.learning_rate: 0.002 then, 0.5 now"):
        train.resume(run, rows)


def test_as_many_threads_compute_as_did_before(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("deep")
    run = interrupted(recipe, rows, tmp_path / "stopped", 2)
    whole = train.train(recipe, rows, tmp_path / "whole")
    torch.set_num_threads(2)
    same(train.resume(run, rows), whole)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("bad_step", [0, 2, 4])
def test_a_loss_that_is_not_a_number_stops_the_run_and_the_weights_of_before_are_kept(
    bad_step: int, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import procedures

    done = 0
    real = procedures.objective

    def objective(recipe: Any, network: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal done
        loss, penalty = real(recipe, network, *arguments)
        if network.training:
            loss = loss * float("nan") if done == bad_step else loss
            done += 1
        return loss, penalty

    monkeypatch.setattr(procedures, "objective", objective)
    epoch, step = bad_step // 3 + 1, bad_step % 3
    with pytest.raises(Diverged, match=rf"phase 'joint', epoch {epoch}, step {step}: the loss is nan.*\n.*\ntry: "):
        train.train(short_recipe("conv"), rows, tmp_path, checkpoint_s=0)
    if bad_step:
        state, facts = Run.newest(tmp_path, "conv").state()
        assert (facts["position"]["epoch"], facts["position"]["step"]) == (epoch, step)
        assert all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())


def test_weights_that_are_not_numbers_are_never_saved(rows: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("linear", ("procedure.learning_rate", 1e38), ("procedure.optimiser", "sgd"))
    with pytest.raises(Diverged):
        train.train(recipe, rows, tmp_path, checkpoint_s=0)
    for path in tmp_path.glob("linear/*/*.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in read(path)[0].values() if value.is_floating_point())


def test_a_second_signal_does_what_it_always_did() -> None:
    import signal

    with stopping.on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT) if signal.getsignal(
            signal.SIGINT
        ) is not signal.default_int_handler else None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert session.CHECKPOINT_S > 1
