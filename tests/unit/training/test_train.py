"""Training learns, repeats itself exactly, and does in each phase what the procedure says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.unit.training.short import EPOCHS, first_layer, short_recipe
from training import networks, procedures, recipes, train
from training.checkpoints import with_prefix
from training.corruption import corrupt
from training.data import Dataset
from training.errors import RecipeError, RunError
from training.networks import DenseAutoencoder
from training.runs import Run
from training.session import Session


def context(recipe: recipes.Recipe, dataset: Dataset, folder: Path) -> procedures.Context:
    torch.manual_seed(recipe.seed)
    network = networks.build(recipe.network, dataset.row_shape)
    generator = torch.Generator().manual_seed(recipe.seed)
    session = Session(Run.create(folder, recipe), network, generator)
    return procedures.Context(recipe=recipe, dataset=dataset, session=session, generator=generator)


@pytest.mark.parametrize("name", ["undercomplete", "deep", "conv", "denoising-conv"])
def test_one_batch_can_be_learned_by_heart(name: str, digits: Dataset) -> None:
    recipe = short_recipe(name, ("corruption", {"kind": "none"}), ("loss.kind", "squared-error"))
    torch.manual_seed(0)
    network = networks.build(recipe.network, digits.row_shape)
    rows = digits.train_rows[:4]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    first = None
    for _ in range(500):
        loss, _ = procedures.objective(recipe, network, rows, torch.Generator())
        first = first or loss.item()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss.item() < 0.05 * first  # type: ignore[operator]


@pytest.mark.parametrize("name", ["denoising", "stacked", "contractive"])
def test_the_same_seed_gives_the_same_losses_and_weights(
    name: str, digits: Dataset, digit_runs: dict[str, Run], tmp_path: Path
) -> None:
    again = train.train(short_recipe(name), digits, tmp_path)
    assert without_seconds(again) == without_seconds(digit_runs[name])
    first, second = (train.restore(run, digits.row_shape).state_dict() for run in (again, digit_runs[name]))
    assert all(torch.equal(first[key], second[key]) for key in second)
    other = train.train(short_recipe(name, ("seed", 1)), digits, tmp_path)
    assert without_seconds(other) != without_seconds(again)


def without_seconds(run: Run) -> list[dict[str, object]]:
    return [
        {key: value for key, value in entry.items() if key not in ("seconds", "rows_per_s")} for entry in run.metrics()
    ]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_leaves_a_complete_run(name: str, digit_runs: dict[str, Run]) -> None:
    run = digit_runs[name]
    assert run.recipe() == short_recipe(name)
    assert run.has("last")
    assert run.has("best")
    evaluation = run.evaluation()
    assert evaluation is not None
    metrics = evaluation["metrics"]
    for key in ("squared_error_sum", "psnr_db", "ssim", "pixel_accuracy", "linear_probe_accuracy", "knn_accuracy"):
        assert np.isfinite(metrics[key])
        assert np.isfinite(metrics[f"pca_{key}"])
    for key in ("mean_activation", "dead_units", "jacobian_norm", "cross_entropy_floor"):
        assert np.isfinite(metrics[key])
    assert ("noisy_psnr_db" in metrics) == ("denoised_psnr_db" in metrics) == name.startswith("denoising")
    assert ("classifier_accuracy" in metrics) == (name == "stacked")
    assert ("train_mean_activation" in metrics) == (name == "sparse")
    assert len(evaluation["reconstruction_error_quantiles"]) == 101
    phases = {entry["phase"] for entry in run.metrics()}
    assert len(run.metrics()) == EPOCHS * len(phases)
    if name == "stacked":
        assert phases == {"layer 1", "layer 2", "fine-tuning", "refitting"}


def test_the_closed_form_is_principal_component_analysis(digits: Dataset, digit_runs: dict[str, Run]) -> None:
    network = train.restore(digit_runs["pca"], digits.row_shape)
    flat = digits.train_rows.flatten(1).numpy()
    peer = PCA(32).fit(flat)
    test = digits.test_rows.flatten(1).numpy()
    expected = peer.inverse_transform(peer.transform(test)).reshape(-1, 8, 8)
    with torch.no_grad():
        assert np.allclose(network(digits.test_rows).numpy(), expected, atol=1e-4)


def test_the_linear_autoencoder_reaches_pca(digits: Dataset, tmp_path: Path) -> None:
    recipe = recipes.load(
        "linear",
        [("data.name", "digits"), ("network.latent", 8), ("procedure.epochs", 300), ("procedure.batch_rows", 64)],
    )
    run = train.train(recipe, digits, tmp_path)
    evaluation = run.evaluation()
    assert evaluation is not None
    metrics = evaluation["metrics"]
    assert metrics["squared_error_sum"] == pytest.approx(metrics["pca_squared_error_sum"], rel=0.01)
    # The same subspace, too: the reconstructions agree, not only their errors.
    network = train.restore(run, digits.row_shape)
    peer = PCA(8).fit(digits.train_rows.flatten(1).numpy())
    flat = digits.test_rows.flatten(1).numpy()
    with torch.no_grad():
        got = network(digits.test_rows).flatten(1).numpy()
    assert np.mean((got - peer.inverse_transform(peer.transform(flat))) ** 2) < 0.05 * np.mean((got - flat) ** 2)


def test_a_greedy_layer_learns_the_clean_output_of_the_layer_below_and_moves_nothing_else(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short_recipe("stacked", ("corruption", {"kind": "masking", "level": 0.5}), ("network.hidden", [20, 15]))
    here = context(recipe, digits, tmp_path)
    network = here.network
    assert isinstance(network, DenseAutoencoder)
    given: list[tuple[int, torch.Tensor]] = []
    real = procedures.train_layer

    def spy(
        context: procedures.Context,
        settings: recipes.Optimisation,
        index: int,
        train_inputs: torch.Tensor,
        validation_inputs: torch.Tensor,
    ) -> None:
        given.append((index, train_inputs))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        real(context, settings, index, train_inputs, validation_inputs)
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        mirror = 2 - index
        assert moved == {
            f"{side}.{number}.{kind}"
            for side, number in (("encoder", index), ("decoder", mirror))
            for kind in ("weight", "bias")
        }

    monkeypatch.setattr(procedures, "train_layer", spy)
    monkeypatch.setattr(procedures, "fine_tune", lambda context, settings: torch.nn.Linear(1, 1))
    procedures.perform(here)
    assert [index for index, _ in given] == [0, 1, 2]
    values = digits.train_rows.flatten(1)
    with torch.no_grad():
        for index, inputs in given:
            assert torch.equal(inputs, values)  # no corruption below
            values = network.encoder_layer(index, values)


def test_noise_is_inside_the_layer_being_trained(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short_recipe("stacked", ("corruption", {"kind": "masking", "level": 0.5}))
    corrupted: list[tuple[int, ...]] = []
    real = corrupt

    def spy(table: recipes.Corruption, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        corrupted.append(tuple(rows.shape[1:]))
        return real(table, rows, generator)

    monkeypatch.setattr(procedures, "corrupt", spy)
    procedures.perform(context(recipe, digits, tmp_path))
    assert set(corrupted) == {(64,), (240,), (8, 8)}  # layer 1, layer 2, refitting; never in fine-tuning


def test_refitting_moves_the_decoder_and_never_the_encoder(digits: Dataset, tmp_path: Path) -> None:
    here = context(short_recipe("stacked"), digits, tmp_path)
    network = here.network
    after_tuning: dict[str, torch.Tensor] = {}
    real = procedures.fine_tune

    def spy(context: procedures.Context, settings: recipes.FineTuning) -> torch.nn.Linear:
        classifier = real(context, settings)
        after_tuning.update({name: value.clone() for name, value in network.state_dict().items()})
        return classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedures, "fine_tune", spy)
        procedures.perform(here)
    for name, value in network.state_dict().items():
        assert torch.equal(value, after_tuning[name]) == (not name.startswith("decoder")), name


def test_fine_tuning_teaches_the_classes(digits: Dataset, tmp_path: Path) -> None:
    recipe = recipes.load(
        "stacked",
        [
            ("data.name", "digits"),
            ("procedure.epochs", 10),
            ("procedure.finetuning.epochs", 60),
            ("procedure.refitting.epochs", 1),
        ],
    )
    evaluation = train.train(recipe, digits, tmp_path).evaluation()
    assert evaluation is not None
    assert evaluation["metrics"]["classifier_accuracy"] > 0.9


def test_the_sparsity_penalty_brings_the_mean_activation_to_rho(digits: Dataset, tmp_path: Path) -> None:
    recipe = recipes.load(
        "sparse",
        [("data.name", "digits"), ("procedure.epochs", 150), ("procedure.batch_rows", 400), ("network.latent", 64)],
    )
    run = train.train(recipe, digits, tmp_path)
    evaluation = run.evaluation()
    assert evaluation is not None
    assert evaluation["metrics"]["train_mean_activation"] == pytest.approx(0.1, rel=0.2)
    assert run.metrics()[-1]["mean_activation"] == pytest.approx(0.1, rel=0.2)  # the log has the full pass, too


def test_the_best_epoch_is_kept_not_the_last(digits: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("deep", ("procedure.learning_rate", 3e-3))
    here = context(recipe, digits, tmp_path)
    objectives = iter([3.0, 1.0, 2.0])
    from training.optimise import Phase, run_phase

    def validate() -> dict[str, float]:
        return {"validation_loss": next(objectives), "validation_penalty": 0.0}

    weights = []

    def batch_loss(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights.append(first_layer(here.network).weight.detach().clone())
        return procedures.objective(recipe, here.network, digits.train_rows[indices], here.generator)

    phase = Phase(
        name="test",
        parameters=here.network.parameters(),
        batch_loss=batch_loss,
        validate=validate,
        keeps_best=True,
    )
    settings = recipes.Optimisation(epochs=3, batch_rows=2000)
    run_phase(phase, settings, row_count=1000, session=here.session)
    best = first_layer(train.restore(here.session.run, digits.row_shape)).weight
    assert torch.equal(best, weights[2])  # the weights after the second of three epochs of one batch


def test_bfloat16_keeps_the_weights_in_float32(digits: Dataset, digit_runs: dict[str, Run]) -> None:
    assert digit_runs["conv"].recipe().procedure.precision == "auto"  # type: ignore[union-attr]
    network = train.restore(digit_runs["conv"], digits.row_shape)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_shifted_rows_keep_their_ink_and_move_by_whole_pixels() -> None:
    rows = torch.zeros(200, 9, 9)
    rows[:, 4, 4] = 1
    moved = procedures.shift(rows, 2, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum((1, 2)), torch.ones(200))
    places = moved.flatten(1).argmax(1)
    assert set((places // 9).tolist()) == set((places % 9).tolist()) == {2, 3, 4, 5, 6}


def test_a_recipe_that_does_not_fit_the_rows_leaves_no_run(digits: Dataset, tmp_path: Path) -> None:
    recipe = short_recipe("conv", ("network.decoder_channels", [8]))
    with pytest.raises(RecipeError, match="doublings"):
        train.train(recipe, digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="train one first"):
        Run.newest(tmp_path, "conv")
    with pytest.raises(RunError, match=r"recipe.json: cannot be read"):
        Run(tmp_path).recipe()


def test_a_broken_checkpoint_is_an_error_that_names_the_file(
    digits: Dataset, digit_runs: dict[str, Run], tmp_path: Path
) -> None:
    run = Run.create(tmp_path, digit_runs["deep"].recipe())
    (run.folder / "last.safetensors").write_bytes(b"not weights")
    with pytest.raises(RunError, match=r"last.safetensors: cannot be read"):
        train.restore(run, digits.row_shape)
    other = networks.build(recipes.load("pca").network, digits.row_shape)
    run.save_state(with_prefix("network", other.state_dict()), {})
    with pytest.raises(RunError, match=r"last.safetensors: cannot be read as this recipe's weights"):
        train.restore(run, digits.row_shape)
