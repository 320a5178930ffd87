"""Each penalty equals a value worked out by hand, by numpy, or by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.training.short import first_layer
from training import networks, penalties, recipes
from training.evaluate import jacobian_norm, jacobians


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(*, tied: bool, hidden: tuple[int, ...] = (), normalisation: str = "none") -> networks.Autoencoder:
    torch.manual_seed(0)
    recipe = recipes.Dense(
        kind="dense",
        hidden=hidden,
        latent=6,
        activation="tanh",
        latent_activation="sigmoid",
        output_activation="linear",
        tied=tied,
        normalisation=normalisation,  # type: ignore[arg-type]
    )
    return networks.build(recipe, (3, 4))


def exact_penalty(network: networks.Autoencoder, rows: Tensor) -> float:
    return jacobians(network, rows).square().sum((1, 2)).mean().item()


def test_kl_sparsity_equals_the_formula() -> None:
    latents = torch.tensor([[0.1, 0.6], [0.3, 0.2]])
    expected = sum(0.1 * math.log(0.1 / mean) + 0.9 * math.log(0.9 / (1 - mean)) for mean in (0.2, 0.4))
    assert penalties.kl_sparsity(latents, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_kl_sparsity_is_zero_exactly_at_rho_and_finite_at_the_ends() -> None:
    assert penalties.kl_sparsity(torch.full((4, 3), 0.3), 0.3).item() == pytest.approx(0, abs=1e-6)
    for value in (0.0, 1.0):
        assert math.isfinite(penalties.kl_sparsity(torch.full((4, 3), value), 0.3).item())


@pytest.mark.parametrize("start", [0.05, 0.6])
def test_the_gradient_of_kl_sparsity_pulls_the_mean_activation_to_rho(start: float) -> None:
    logits = (torch.full((50, 8), start).logit() + 0.1 * torch.randn(50, 8, generator=generator())).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for _ in range(200):
        loss = penalties.kl_sparsity(torch.sigmoid(logits), 0.2)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert torch.sigmoid(logits).mean(0).detach() == pytest.approx(0.2, abs=0.01)


def test_l1_is_the_sum_of_absolute_values_averaged_over_rows() -> None:
    assert penalties.l1(torch.tensor([[[1.0, -2.0]], [[0.0, 4.0]]])).item() == pytest.approx(3.5)
    # In bfloat16, 256 and 1 are 256.
    assert penalties.l1(torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)).item() == 257


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normalisation", ["none", "standardise"])
def test_the_closed_form_of_the_contractive_penalty_equals_autograd(tied: bool, normalisation: str) -> None:
    network = dense(tied=tied, normalisation=normalisation)
    rows = torch.rand(5, 3, 4, generator=generator())
    network.fit_normalisation(normalisation, rows)
    got = penalties.contractive(network.encode(rows), network.input_weight())
    assert got.item() == pytest.approx(exact_penalty(network, rows), rel=1e-5)


def test_the_closed_form_has_the_gradient_of_the_exact_penalty() -> None:
    network = dense(tied=True)
    rows = torch.rand(5, 3, 4, generator=generator())
    closed = penalties.contractive(network.encode(rows), network.input_weight())
    weight = first_layer(network).weight
    (got,) = torch.autograd.grad(closed, weight)

    exact = jacobians(network, rows, keep_graph=True).square().sum((1, 2)).mean()
    (expected,) = torch.autograd.grad(exact, weight)
    assert torch.allclose(got, expected, atol=1e-6)


def test_the_estimator_converges_to_the_exact_norm_of_a_deep_encoder() -> None:
    network = dense(tied=False, hidden=(10, 8))
    rows = torch.rand(8, 3, 4, generator=generator())
    estimate = penalties.contractive_estimate(network, rows, 4000, generator()).item()
    assert estimate == pytest.approx(exact_penalty(network, rows), rel=0.03)


def test_the_estimator_has_a_gradient_on_the_encoder_even_where_none_is_recorded() -> None:
    network = dense(tied=False, hidden=(10,))
    rows = torch.rand(8, 3, 4, generator=generator())
    penalties.contractive_estimate(network, rows, 1, generator()).backward()  # type: ignore[no-untyped-call]
    gradient = first_layer(network).weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert penalties.contractive_estimate(network, rows, 1, generator()).item() > 0


def test_the_jacobian_norm_of_a_linear_encoder_is_the_norm_of_its_weights() -> None:
    torch.manual_seed(0)
    network = networks.build(recipes.Linear(kind="linear", latent=5), (3, 4))
    weight = first_layer(network).weight
    assert jacobian_norm(network, torch.rand(40, 3, 4)) == pytest.approx(weight.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (recipes.NoPenalty(kind="none"), 0.0),
        (recipes.L1(kind="l1", strength=0.5), 0.5 * 6 * 0.5),
        (recipes.KLSparsity(kind="kl-sparsity", rho=0.5, beta=2.0), 0.0),
    ],
)
def test_a_penalty_is_weighted_by_its_strength(table: recipes.Penalty, expected: float) -> None:
    network = dense(tied=False)
    latents = torch.full((4, 6), 0.5)
    got = penalties.penalise(table, network, torch.zeros(4, 3, 4), latents, generator())
    assert got.item() == pytest.approx(expected, abs=1e-6)
