"""The latents between two latents.

Shape legend: P pairs, S points of a path, L... the dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from service.errors import InvalidArgument

Rows = npt.NDArray[np.float32]

# Below this angle, in radians, from the same or the opposite direction, the great circle is not defined well enough.
_SMALLEST_ANGLE = 1e-4


def linear(start: Rows, end: Rows, weights: Rows) -> Rows:
    """Ends [P, L...] and weights [S] to points [P, S, L...] on straight lines; weight 0 is `start`, 1 is `end`."""
    weight = weights.reshape(1, -1, *(1,) * (start.ndim - 1))
    # The ends may be as large as float32 goes: what is beyond is infinite in the answer, and no warning's business.
    with np.errstate(over="ignore", invalid="ignore"):
        return (1 - weight) * start[:, None] + weight * end[:, None]


def spherical(start: Rows, end: Rows, weights: Rows) -> Rows:
    """Like `linear` along great circles (Shoemake 1985), the length going evenly from one to the other.

    A pair whose directions are the same, opposite or not defined (a latent of zeros) is joined by the straight line.
    """
    shape = start.shape[1:]
    a_PL, b_PL = start.reshape(len(start), -1).astype(np.float64), end.reshape(len(end), -1).astype(np.float64)
    a_length_P1 = np.linalg.norm(a_PL, axis=1, keepdims=True)
    b_length_P1 = np.linalg.norm(b_PL, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        a_unit_PL, b_unit_PL = a_PL / a_length_P1, b_PL / b_length_P1
        angle_P = np.arccos(np.clip(np.einsum("pl,pl->p", a_unit_PL, b_unit_PL), -1.0, 1.0))
        defined_P = (angle_P > _SMALLEST_ANGLE) & (angle_P < np.pi - _SMALLEST_ANGLE)
        angle_P11 = angle_P[:, None, None]
        weight_S1 = weights.astype(np.float64)[:, None]
        direction_PSL = (
            np.sin((1 - weight_S1) * angle_P11) * a_unit_PL[:, None]
            + np.sin(weight_S1 * angle_P11) * b_unit_PL[:, None]
        ) / np.sin(angle_P11)
    length_PS1 = (1 - weight_S1) * a_length_P1[:, None] + weight_S1 * b_length_P1[:, None]
    points = np.where(defined_P[:, None, None], direction_PSL * length_PS1, 0.0)
    with np.errstate(over="ignore"):
        points = points.reshape(len(start), len(weights), *shape).astype(np.float32)
    straight = ~defined_P
    points[straight] = linear(start[straight], end[straight], weights)
    return points


@dataclass(frozen=True, kw_only=True)
class Path:
    """How to walk from one latent to another: a method, and the points as weights [S] of the end."""

    method: Callable[[Rows, Rows, Rows], Rows]
    weights: Rows

    @classmethod
    def through(
        cls,
        method: Callable[[Rows, Rows, Rows], Rows],
        *,
        steps: int | None,
        weights: Sequence[float] | Rows | None,
        max_points: int,
    ) -> Self:
        """Through `steps` evenly spaced points, both ends among them, or those at `weights`. Raises InvalidArgument."""
        if steps is not None:
            count, least, field = steps, 2, "steps"
        elif weights is not None:
            count, least, field = len(weights), 1, "weights"
        else:
            raise InvalidArgument("NO_POINTS", "steps or weights: one of them must be given")
        if not least <= count <= max_points:
            raise InvalidArgument(
                "BAD_POINTS", f"{field}: from {least} to --max-interpolation-points={max_points} points; got {count}"
            )
        if weights is None:
            return cls(method=method, weights=np.linspace(0.0, 1.0, count, dtype=np.float32))
        points = np.asarray(weights, dtype=np.float32)
        low, high = (0.0, 1.0) if method is spherical else (-1.0, 2.0)
        wrong = points[~((points >= low) & (points <= high))]
        if len(wrong):
            raise InvalidArgument("BAD_WEIGHT", f"weights: from {low:g} to {high:g}; got {wrong[0]:g}")
        return cls(method=method, weights=points)

    def between(self, start: Rows, end: Rows) -> Rows:
        """Ends [P, L...] to points [P, S, L...]."""
        return self.method(start, end, self.weights)
