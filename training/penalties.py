"""What a code costs beside the reconstruction.

Shape legend: B rows, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from training import recipes
from training.networks import Autoencoder

_TINY = 1e-6  # a unit that never or always fires would cost infinity


def penalise(
    penalty: recipes.Penalty, network: Autoencoder, rows: Tensor, latents: Tensor, generator: Generator
) -> Tensor:
    """The weighted penalty of the latents [B, L...] of the encoded rows [B, D...], a scalar."""
    match penalty:
        case recipes.KLSparsity():
            return penalty.beta * kl_sparsity(latents, penalty.rho)
        case recipes.L1():
            return penalty.strength * l1(latents)
        case recipes.Contractive(method="closed-form"):
            return penalty.strength * contractive(latents, network.input_weight())
        case recipes.Contractive():
            return penalty.strength * contractive_estimate(network, rows, penalty.projections, generator)
        case _:
            return latents.new_zeros(())


def kl_sparsity(latents: Tensor, rho: float) -> Tensor:
    """Sum over the units of KL(rho || mean activation), where the mean is over the batch; latents lie in 0..1.

    The mean over all training rows is what is meant; a large batch is close to it, and training logs the true one.
    """
    mean_L = latents.flatten(1).mean(0).clamp(_TINY, 1 - _TINY)
    return (rho * (rho / mean_L).log() + (1 - rho) * ((1 - rho) / (1 - mean_L)).log()).sum()


def l1(latents: Tensor) -> Tensor:
    """The sum of the absolute values of a latent, averaged over the rows."""
    return latents.float().abs().sum() / len(latents)


def contractive(latents: Tensor, weight_LD: Tensor) -> Tensor:
    """Squared Frobenius norm of d latent / d row for latents = sigmoid(weight row + bias), averaged over the rows.

    sum_j (h_j (1 - h_j))^2 sum_i W_ji^2 (Rifai et al. 2011).
    """
    slope_BL = latents * (1 - latents)
    return (slope_BL.square() @ weight_LD.square().sum(1)).mean()


def contractive_estimate(network: Autoencoder, rows: Tensor, projections: int, generator: Generator) -> Tensor:
    """The same norm for any encoder: for v of independent unit normals, |v J|^2 has the expectation |J|_F^2."""
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        latents = network.encode(rows)
        total = rows.new_zeros(())
        for _ in range(projections):
            direction = torch.randn(latents.shape, generator=generator, device=rows.device)
            (product,) = torch.autograd.grad((latents * direction).sum(), rows, create_graph=True)
            total = total + product.square().sum() / len(rows)
    return total / projections
