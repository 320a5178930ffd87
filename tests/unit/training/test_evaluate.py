"""Figures equal values worked out by hand or by another library."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.unit.training.short import short_recipe
from training import evaluate, networks, recipes
from training.data import Dataset


def test_picture_metrics_equal_values_worked_out_by_hand() -> None:
    targets = torch.zeros(2, 16, 16)
    targets[0, :8] = 1
    outputs = targets.clone()
    outputs[1, 0, :4] = 0.6  # four of 512 pixels are wrong, by 0.6, and on the wrong side of one half
    got = evaluate.picture_metrics(outputs, targets)
    assert got["squared_error_sum"] == pytest.approx(4 * 0.36 / 2)
    assert got["mean_squared_error"] == pytest.approx(4 * 0.36 / 512)
    assert got["psnr_db"] == pytest.approx(-10 * math.log10(4 * 0.36 / 512))
    assert got["pixel_accuracy"] == pytest.approx(508 / 512)
    assert 0.5 < got["ssim"] < 1


@pytest.mark.parametrize("size", [8, 28])
def test_a_perfect_copy_is_perfect_at_every_size(size: int) -> None:
    rows = torch.rand(3, size, size)
    got = evaluate.picture_metrics(rows, rows)
    assert got["squared_error_sum"] == 0
    assert got["psnr_db"] == pytest.approx(120)
    assert got["ssim"] == pytest.approx(1)
    assert got["pixel_accuracy"] == 1


@pytest.mark.parametrize(("size", "sigma", "reach"), [(12, 0.5, 2), (28, 1.5, 5)])
def test_ssim_is_the_papers_at_every_pixel_of_the_mirrored_picture(size: int, sigma: float, reach: int) -> None:
    random = np.random.default_rng(0)
    x = random.random((size, size))
    y = np.clip(x + 0.2 * random.normal(size=x.shape), 0, 1)

    window = np.exp(-np.square(np.arange(-reach, reach + 1) / sigma) / 2)

    def smooth(values: np.ndarray) -> np.ndarray:
        values = np.pad(values, reach, mode="reflect")
        for axis in (0, 1):
            values = np.apply_along_axis(np.convolve, axis, values, window / window.sum(), mode="valid")
        return values

    x_mean, y_mean = smooth(x), smooth(y)
    variances = smooth(x * x) - x_mean**2 + smooth(y * y) - y_mean**2
    covariance = smooth(x * y) - x_mean * y_mean
    alike = (2 * x_mean * y_mean + 1e-4) * (2 * covariance + 9e-4)
    expected = (alike / ((x_mean**2 + y_mean**2 + 1e-4) * (variances + 9e-4))).mean()
    got = evaluate.ssim(torch.from_numpy(y[None]).float(), torch.from_numpy(x[None]).float())
    assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 1), (2, 2, 3)])
def test_pictures_too_small_for_the_window_have_no_ssim(shape: tuple[int, ...]) -> None:
    got = evaluate.picture_metrics(torch.rand(3, *shape), torch.rand(3, *shape))
    assert "ssim" not in got
    assert all(math.isfinite(value) for value in got.values())


def test_cross_entropy_is_the_mean_over_pixels_and_has_its_floor() -> None:
    network = networks.build(recipes.Dense(kind="dense", latent=3), (4, 4))
    rows = torch.rand(5, 4, 4)
    with torch.no_grad():
        outputs = network(rows).double()
    expected = -(rows * outputs.log() + (1 - rows) * (1 - outputs).log()).mean().item()
    assert evaluate.cross_entropy(network, rows, rows) == pytest.approx(expected, rel=1e-5)
    floor = float((torch.special.entr(rows) + torch.special.entr(1 - rows)).mean())
    assert floor < expected


def test_dead_units_are_those_that_never_change() -> None:
    latents = torch.tensor([[0.0, 1.0, 0.5, 2.0], [0.0, 1.0, 0.7, 2.0]])
    assert evaluate.dead_units(latents) == 3


def test_the_peer_is_pca_of_the_same_code_size(digits: Dataset) -> None:
    peer = evaluate.PeerPCA(digits.train_rows, 10)
    assert peer.encode(digits.test_rows).shape == (360, 10)
    everything = evaluate.PeerPCA(digits.train_rows, 1000)  # a code larger than the row: PCA copies
    assert torch.allclose(everything.reconstruct(digits.test_rows), digits.test_rows, atol=1e-4)


def test_pca_of_rows_fewer_than_their_elements_is_the_same_without_the_covariance() -> None:
    # Whose covariance would take 1.6 GB and minutes.
    wide = evaluate.PeerPCA(torch.rand(20, 100, 200), 20)
    assert wide.encode(torch.rand(3, 100, 200)).shape == (3, 20)
    rows = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    by_covariance = PCA(5, svd_solver="covariance_eigh").fit(rows.numpy())
    expected = by_covariance.inverse_transform(by_covariance.transform(rows.numpy()))
    assert np.allclose(evaluate.PeerPCA(rows, 5).reconstruct(rows).numpy(), expected, atol=1e-5)


def test_the_norm_of_a_large_jacobian_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    recipe = recipes.Convolutional(kind="convolutional", channels=(8, 8), decoder_channels=(4, 4))
    network = networks.build(recipe, (16, 16))
    rows = torch.rand(100, 16, 16)
    exact = evaluate.jacobian_norm(network, rows)
    monkeypatch.setattr(evaluate, "_MOST_JACOBIAN_ELEMENTS", 1)
    estimate = evaluate.jacobian_norm(network, rows)
    assert estimate != exact
    assert estimate == pytest.approx(exact, rel=0.02)


def test_a_class_too_rare_for_the_sample_leaves_the_probes_out(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.zeros_like(digits.train_labels)
    labels[-1] = 1
    rare = replace(digits, train_labels=labels, test_labels=torch.zeros_like(digits.test_labels))
    monkeypatch.setattr(evaluate, "PROBE_ROWS", 500)
    recipe = short_recipe("pca")
    metrics = evaluate.evaluate(recipe, networks.build(recipe.network, rare.row_shape), rare, None).metrics
    assert rare.has_classes
    assert "linear_probe_accuracy" not in metrics


def test_probes_read_classes_off_separable_latents() -> None:
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 3, 300))
    latents = torch.nn.functional.one_hot(labels, 3).float() * 5 + torch.from_numpy(
        generator.normal(size=(300, 3)).astype(np.float32)
    )
    got = evaluate.code_metrics(latents[:200], labels[:200], latents[200:], labels[200:])
    assert got["linear_probe_accuracy"] > 0.95
    assert got["knn_accuracy"] > 0.95
    noise = evaluate.code_metrics(torch.rand(200, 3), labels[:200], torch.rand(100, 3), labels[200:])
    assert noise["linear_probe_accuracy"] < 0.6
