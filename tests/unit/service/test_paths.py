from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service import paths

finite = st.floats(-100, 100, width=32)
pairs = hnp.arrays(np.float32, (2, 3, 5), elements=finite)
WEIGHTS = np.linspace(0, 1, 7, dtype=np.float32)


@given(pairs)
def test_both_methods_begin_and_end_at_the_ends(ends: np.ndarray) -> None:
    start, end = ends
    for method in (paths.linear, paths.spherical):
        points = method(start, end, WEIGHTS)
        assert points.shape == (3, 7, 5)
        assert points.dtype == np.float32
        np.testing.assert_allclose(points[:, 0], start, atol=1e-3)
        np.testing.assert_allclose(points[:, -1], end, atol=1e-3)


def test_the_middle_of_a_line_is_the_mean() -> None:
    points = paths.linear(np.array([[0.0, 2.0]], np.float32), np.array([[4.0, 0.0]], np.float32), WEIGHTS)
    np.testing.assert_allclose(points[0, 3], [2.0, 1.0])


def test_the_middle_of_a_great_circle_is_half_way_round_and_half_way_long() -> None:
    points = paths.spherical(np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 3.0]], np.float32), WEIGHTS)
    np.testing.assert_allclose(points[0, 3], np.array([1.0, 1.0]) / np.sqrt(2) * 2, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points[0], axis=1), np.linspace(1, 3, 7), rtol=1e-6)


def test_directions_without_a_great_circle_are_joined_by_a_line() -> None:
    start = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    end = np.array([[-2.0, 0.0], [5.0, 0.0], [1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(paths.spherical(start, end, WEIGHTS), paths.linear(start, end, WEIGHTS))


def test_directions_too_close_to_opposite_for_a_great_circle_are_joined_by_a_line() -> None:
    start = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    end = -3 * np.array([[np.cos(5e-5), np.sin(5e-5)], [np.cos(1e-2), np.sin(1e-2)]], np.float32)
    straight = (paths.spherical(start, end, WEIGHTS) == paths.linear(start, end, WEIGHTS)).all(axis=(1, 2))
    assert straight.tolist() == [True, False]


def test_a_great_circle_of_huge_latents_is_finite() -> None:
    huge = np.float32(3e38)
    points = paths.spherical(np.array([[huge, 0]], np.float32), np.array([[0, huge]], np.float32), WEIGHTS)
    np.testing.assert_allclose(np.linalg.norm(points[0].astype(np.float64), axis=1), huge, rtol=1e-6)


def test_latents_of_several_dimensions_keep_their_shape() -> None:
    ends = np.random.default_rng(0).normal(size=(2, 4, 2, 3, 3)).astype(np.float32)
    for method in (paths.linear, paths.spherical):
        assert method(ends[0], ends[1], WEIGHTS).shape == (4, 7, 2, 3, 3)


def test_a_line_between_huge_latents_is_infinite_without_a_warning() -> None:
    huge = np.full((1, 2), 3e38, np.float32)
    assert np.isinf(paths.linear(huge, -huge, np.array([-1.0], np.float32))).all()
