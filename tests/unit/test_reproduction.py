"""The reproduction table: its records, its page, and what its trials are made of."""

from __future__ import annotations

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Generator, nn

from benchmarks.reproduction import keras_series, layers, page, redrawn, rows
from benchmarks.reproduction.__main__ import main
from benchmarks.reproduction.bench import Bench, Outcome
from benchmarks.reproduction.classifier import (
    Classifier,
    FineTuning,
    augment,
    error_percent,
    fine_tune,
    fine_tune_by_each,
)
from benchmarks.reproduction.codes import few_labels
from benchmarks.reproduction.layers import Pretraining
from benchmarks.reproduction.results import Record, Results, record
from benchmarks.reproduction.rows import Group, Paper, Row
from benchmarks.reproduction.svm import rbf
from training import networks, recipes
from training.data import Dataset
from training.world import World

EVERY = [row for group in rows.groups() for row in group.rows]


def made(row: str, protocol: rows.Protocol, seed: int, error: float) -> Record:
    outcome = Outcome(figures={"test_error_percent": error}, settings={"epochs": 1}, cached_s=30.0)
    return record(row, protocol, seed, outcome, 60.0)


def trial(bench: Bench) -> Outcome:
    raise AssertionError("the page runs nothing")


def row(name: str, value: float) -> Row:
    return Row(
        name=name,
        title=name.upper(),
        metric="test_error_percent",
        form=".2f",
        better="lower",
        paper=Paper(value=value, test_rows=10_000),
        trials={"paper": trial},
        wanted={"paper": value},
    )


def group() -> Group:
    return Group(
        title="Errors", text="Two rows.", unit="%", rows=(row("a", 1.5), row("b", 1.0)), wanted_order=("a", "b")
    )


def dataset(count: int = 60) -> Dataset:
    """Rows of 4x4 whose label is the half that is lit."""
    generator = Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    images = 0.2 * torch.rand(count, 4, 4, generator=generator)
    images[labels == 0, :2] += 0.7
    images[labels == 1, 2:] += 0.7
    return Dataset(
        name="halves",
        train_rows=images,
        train_labels=labels,
        validation_rows=images[:20],
        validation_labels=labels[:20],
        test_rows=images[20:40],
        test_labels=labels[20:40],
    )


def test_rows_have_names_of_their_own_and_wants_only_of_trials_that_there_are() -> None:
    names = [one.name for one in EVERY]
    assert len(set(names)) == len(names)
    for one in EVERY:
        assert one.trials
        assert set(one.wanted) <= set(one.trials)


def test_the_page_is_what_the_records_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(Results()), "run make reproduce"


def test_every_record_belongs_to_a_row_and_names_how_to_run_it() -> None:
    results = Results()
    known = {one.name: one for one in EVERY}
    for path in results.folder.glob("*.json"):
        for one in results.of(path.stem):
            assert one.row == path.stem
            assert one.protocol in known[one.row].trials
            assert known[one.row].metric in one.figures
            assert f"run {one.row} --protocol {one.protocol} --seeds {one.seed}" in one.command


def test_a_record_takes_the_place_of_one_of_the_same_trial_only(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed, error in ((1, 3.0), (0, 2.0), (1, 4.0)):
        results.add(made("a", "paper", seed, error))
    results.add(made("a", "ours", 1, 5.0))
    found = [(one.protocol, one.seed, one.figures["test_error_percent"]) for one in results.of("a")]
    assert found == [("ours", 1, 5.0), ("paper", 0, 2.0), ("paper", 1, 4.0)]
    assert results.of("a")[0].seconds == 90.0
    assert results.find("a", "paper", 7) is None


def test_two_that_add_to_a_row_lose_nothing(tmp_path: Path) -> None:
    def add(seeds: range) -> None:
        for seed in seeds:
            Results(tmp_path).add(made("a", "ours", seed, 1.0))

    with ThreadPoolExecutor(2) as pool:  # a lock of a file is between two that opened it, threads as well
        list(pool.map(add, (range(40), range(40, 80))))
    assert [each.seed for each in Results(tmp_path).of("a")] == list(range(80))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_table_gives_mean_spread_and_whether_it_reaches(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name, errors in (("a", (1.4, 1.6)), ("b", (1.1, 1.3))):
        for seed, error in enumerate(errors):
            results.add(made(name, "paper", seed, error))
    text = "\n".join(page.section(group(), results))
    assert "| A | 1.50 ± 0.24 | 1.50 ± 0.14 (2) | ≤ 1.50 | yes | 1.5 |" in text
    assert "| B | 1.00 ± 0.20 | 1.20 ± 0.14 (2) | ≤ 1.00 | **no** | 1.5 |" in text
    assert "A > B. This is the paper's." in text
    assert "run a b --protocol paper --seeds 0 1" in text


def test_an_order_that_does_not_come_out_is_said(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(made("a", "paper", 0, 1.0))
    assert "Order" not in "\n".join(page.section(group(), results)), "b is missing"
    results.add(made("b", "paper", 0, 1.2))
    assert "B > A. This is **not** the paper's." in "\n".join(page.section(group(), results))


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(made("rifai-cae", "paper", 0, 1.0))
    text = page.text(results)
    count = sum(len(one.trials) for one in EVERY)
    assert f"Of {count} trials, 1 were run. Not run: `rifai-ae` (paper), " in text
    assert "`rifai-cae` (ours)" in text
    assert "`rifai-cae` (paper)" not in text
    assert text.count("not run") == count - 1


def test_the_interval_is_that_of_a_proportion() -> None:
    assert Paper(value=1.14, test_rows=10_000).interval == pytest.approx(0.208, abs=5e-4)
    assert Paper(value=3.0).interval is None


def test_an_unknown_row_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "rifai-vae"]) == 2
    assert "no row 'rifai-vae': must be one of rifai-ae, " in capsys.readouterr().err


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    assert main(["table", "--page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.text(Results())


def test_gaussian_noise_is_not_clipped_and_masking_keeps_the_rest() -> None:
    images = torch.full((50, 40), 0.5)
    noisy = layers.corrupt(Pretraining(corruption="gaussian", level=1.0), images, Generator().manual_seed(0))
    assert float(noisy.min()) < 0
    assert float(noisy.max()) > 1
    assert float(noisy.std()) == pytest.approx(1, abs=0.1)
    masked = layers.corrupt(Pretraining(corruption="masking", level=0.25), images, Generator().manual_seed(0))
    assert set(masked.flatten().tolist()) == {0.0, 0.5}
    assert float((masked == 0).float().mean()) == pytest.approx(0.25, abs=0.05)


def test_the_objective_adds_its_penalties() -> None:
    rows_BN = torch.rand(8, 6, generator=Generator().manual_seed(0))
    network = layers.train_network(Pretraining(units=3, epochs=1), rows_BN, Generator().manual_seed(0), "test")
    weight = network.input_weight().detach()
    latents = network.encode(rows_BN).detach()

    def value(**settings: float) -> float:
        return float(layers.objective(Pretraining(**settings), network, rows_BN, Generator()).detach())  # type: ignore[arg-type]

    decay = 0.5 * float(weight.square().sum())
    slopes = (latents * (1 - latents))[:, :, None] * weight
    contraction = 0.5 * float(slopes.square().sum((1, 2)).mean())
    assert value(weight_decay=0.5) - value() == pytest.approx(decay, rel=1e-4)
    assert value(contraction=0.5) - value() == pytest.approx(contraction, rel=1e-4)


def test_pretraining_is_used_again_and_by_nothing_else(tmp_path: Path) -> None:
    images = dataset().train_rows.flatten(1)
    settings = [Pretraining(units=5, epochs=1), Pretraining(units=4, epochs=1, corruption="masking", level=0.2)]
    bench = Bench(seed=0, data_dir=None, cache=tmp_path)
    first, none_s = layers.pretrain(bench, "halves", images, settings)
    again, cached_s = layers.pretrain(bench, "halves", images, settings)
    fresh, _ = layers.pretrain(dataclasses.replace(bench, cache=None), "halves", images, settings)
    other, _ = layers.pretrain(dataclasses.replace(bench, seed=1), "halves", images, settings)
    assert none_s == 0
    assert cached_s > 0
    assert [layer.weight.shape for layer in first] == [(5, 16), (4, 5)]
    for one, two, three, four in zip(first, again, fresh, other, strict=True):
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.weight, three.weight), "the same seed gives the same layers, kept or not"
        assert not torch.equal(one.weight, four.weight)


def test_fine_tuning_learns() -> None:
    torch.manual_seed(0)
    classifier = Classifier([nn.Linear(16, 8), nn.Linear(8, 8)], 2)
    settings = FineTuning(epochs=30, learning_rate=1.0, batch_rows=10, momentum=0.5, turn_degrees=10)
    figures = fine_tune(settings, classifier, dataset(), Generator().manual_seed(0))
    assert figures["validation_error_percent"] == 0
    assert figures["test_error_percent"] == 0
    assert figures["epochs"] == 30


def test_fine_tuning_ends_and_goes_back_when_the_validation_error_rises() -> None:
    torch.manual_seed(1)
    data = dataset()
    # The validation labels are the wrong ones, so that learning makes it worse.
    wrong = dataclasses.replace(data, validation_labels=1 - data.validation_labels)
    classifier = Classifier([nn.Linear(16, 8)], 2)
    settings = FineTuning(epochs=60, learning_rate=0.3, batch_rows=10, patience=4)
    figures = fine_tune(settings, classifier, wrong, Generator().manual_seed(0))
    assert figures["epochs"] == figures["epoch"] + 4
    assert figures["epochs"] < 60
    assert figures["validation_error_percent"] < 100
    kept = error_percent(classifier, wrong.validation_rows, wrong.validation_labels)
    assert kept == figures["validation_error_percent"]


def test_of_several_ways_to_fine_tune_the_validation_rows_choose() -> None:
    data = dataset()
    bench = Bench(seed=0, data_dir=None, cache=None)
    torch.manual_seed(0)
    pretrained = [nn.Linear(16, 8)]
    before = pretrained[0].weight.clone()
    idle = FineTuning(epochs=1, learning_rate=0.0, batch_rows=10)
    learning = dataclasses.replace(idle, epochs=30, learning_rate=1.0)
    for tunings in ([idle, learning], [learning, idle]):
        chosen, figures = fine_tune_by_each(tunings, pretrained, data, bench)
        assert chosen == learning
        assert figures["validation_error_percent"] == 0
    assert torch.equal(pretrained[0].weight, before), "each begins at the pretrained layers"


def test_rows_are_moved_and_turned_each_otherwise() -> None:
    row = torch.zeros(9, 9)
    row[4, 2:7] = 1
    settings = FineTuning(epochs=1, learning_rate=1.0)
    same = row.expand(40, 9, 9)
    assert torch.equal(augment(settings, same, Generator().manual_seed(0)), same)
    moved = augment(dataclasses.replace(settings, shift_pixels=1), same, Generator().manual_seed(0))
    assert {int(one.sum(1).argmax()) for one in moved} == {3, 4, 5}
    turned = augment(dataclasses.replace(settings, turn_degrees=90), same, Generator().manual_seed(0))
    assert float(turned[:, 4, 4].min()) > 0.9, "the middle stays"
    assert len({round(float(one[4, 2]), 3) for one in turned}) > 10


def test_biases_begin_at_the_mean() -> None:
    images = dataset().train_rows.flatten(1)
    network = layers.train_network(Pretraining(units=5, epochs=1), images, Generator().manual_seed(0), "test")
    layers.begin_at_mean(network, images, 1.0)
    latents = network.encode(images.mean(0, keepdim=True))
    torch.testing.assert_close(latents, torch.sigmoid(torch.full((1, 5), -1.0)))
    torch.testing.assert_close(torch.sigmoid(network.logits(torch.zeros(1, 5)))[0], images.mean(0))


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(2, 6, 6, generator=Generator().manual_seed(0))
    turned = redrawn.rotate(images, torch.tensor([0.0, math.pi / 2]))
    torch.testing.assert_close(turned[0], images[0], atol=1e-5, rtol=0)
    quarter = [torch.rot90(images[1], k) for k in (1, -1)]
    assert min(float((turned[1] - one).abs().max()) for one in quarter) < 1e-5


def test_the_background_is_noise_and_the_digit_stays() -> None:
    images = torch.zeros(200, 4, 4)
    images[:, 1, 1] = 1
    varied = redrawn.vary("bg-rand", images, Generator().manual_seed(0))
    assert bool((varied[:, 1, 1] == 1).all())
    assert float(varied[:, 0, 0].mean()) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="must be basic, rot or bg-rand; got 'bg-img'"):
        redrawn.vary("bg-img", images, Generator())


def test_the_kernel_is_scikit_learns() -> None:
    one, two = torch.rand(5, 7), torch.rand(4, 7)
    assert rbf(one, two, 0.3) == pytest.approx(rbf_kernel(one.numpy(), two.numpy(), gamma=0.3), abs=1e-5)


def test_few_labels_are_enough_for_what_is_plain() -> None:
    data = dataset()
    flat = data.train_rows.flatten(1)
    accuracy = few_labels(flat, data.train_labels, flat, data.train_labels, 2, Generator().manual_seed(0))
    assert accuracy > 0.95
    shuffled = data.train_labels[torch.randperm(60, generator=Generator().manual_seed(3))]
    assert few_labels(flat, shuffled, flat, data.train_labels, 2, Generator().manual_seed(0)) < 0.9


class Evaluated:
    """Stands for a run that was trained and measured."""

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def evaluation(self) -> dict[str, dict[str, float]]:
        return {"metrics": {self.metric: 0.5}}


def test_every_keras_trial_is_a_recipe_that_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[recipes.Recipe] = []
    for one in keras_series.group().rows:

        def train(
            recipe: recipes.Recipe, data: object, runs: Path, *, world: World, metric: str = one.metric
        ) -> Evaluated:
            assert world.device.type == "cpu"
            networks.build(recipe.network, (28, 28))
            taken.append(recipe)
            return Evaluated(metric)

        monkeypatch.setattr(keras_series, "train", train)
        monkeypatch.setattr(keras_series, "load_dataset", lambda recipe, folder: None)
        for run in one.trials.values():
            outcome = run(Bench(seed=3, data_dir=None, cache=None))
            assert outcome.figures == {one.metric: 0.5}
            assert outcome.settings["recipe"]["seed"] == 3
    assert len(taken) == sum(len(one.trials) for one in keras_series.group().rows)
    # The blog's penalty of 1e-4 beside a mean over 784 pixels.
    assert any(isinstance(one.penalty, recipes.L1) and one.penalty.strength == pytest.approx(0.0784) for one in taken)


@pytest.mark.parametrize("kept", [False, True])
def test_seconds_of_pretraining_are_counted_once(kept: bool, tmp_path: Path) -> None:
    made_s = 0.2

    def make() -> dict[str, torch.Tensor]:
        time.sleep(made_s)
        return {"weight": torch.ones(3)}

    bench = Bench(seed=0, data_dir=None, cache=tmp_path if kept else None)
    # Made now, they are in the wall time of the trial already.
    assert bench.cached({"layer": 1}, make)[1] == 0
    tensors, spent_s = bench.cached({"layer": 1}, make)
    assert tensors["weight"].tolist() == [1, 1, 1]
    assert spent_s >= made_s if kept else spent_s == 0
