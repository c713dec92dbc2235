"""costs: float64 oracle, digits far from the origin, sign, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import costs
from sinkflow.ot import _centred
from tests import helpers
from tests.helpers import half_squares

DIMENSIONS = [1, 2, 5, 6, 64]  # both sides of MAX_DIFFERENCE_DIM
ROUNDING = float(np.finfo(np.float32).eps)


clouds = functools.partial(helpers.clouds, n=13, m=9)


def test_by_hand():
    cost = costs.squared_euclidean(jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(cost, [[12.5], [6.5]])


def test_the_dimensions_above_meet_both_formulas():
    assert {d <= _centred.MAX_DIFFERENCE_DIM for d in DIMENSIONS} == {True, False}


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("distance", [0.0, 1e4])
def test_matches_float64(key, d, distance):
    x, y = (cloud + distance for cloud in clouds(key, d))
    expected = half_squares(x, y)  # of the same, already rounded, points
    # Expanding |x - y|^2 around the origin would be wrong by about 1 in each dimension at 1e4.
    np.testing.assert_allclose(
        costs.squared_euclidean(x, y), expected, rtol=8 * ROUNDING, atol=4 * ROUNDING * d
    )


@pytest.mark.parametrize("d", DIMENSIONS)
def test_clouds_far_apart_keep_their_relative_digits(key, d):
    x, y = clouds(key, d)
    y = y + 1e4
    np.testing.assert_allclose(costs.squared_euclidean(x, y), half_squares(x, y), rtol=1e-6)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_is_never_negative(key, d):
    x, _ = clouds(key, d, n=64)
    cost = costs.squared_euclidean(x, x * (1 + ROUNDING))
    assert cost.min() >= 0
    assert cost.max() > 0


@pytest.mark.parametrize("d", [2, 64])
def test_gradient_is_the_difference_also_where_points_coincide(key, d):
    x, _ = clouds(key, d)
    gradient = jax.grad(lambda moved: costs.squared_euclidean(moved, x)[0].sum())(x)
    scale = 10 * len(x) * ROUNDING * d
    np.testing.assert_allclose(gradient[0], (x[:1] - x).sum(0), atol=scale)


def test_float64_stays_float64(key):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(np.asarray(cloud), jnp.float64) for cloud in clouds(key, 6))
        cost = costs.squared_euclidean(x, y)
        assert cost.dtype == jnp.float64
        np.testing.assert_allclose(cost, half_squares(x, y), rtol=1e-13)


@pytest.mark.parametrize(
    ("x_shape", "y_shape", "message"),
    [
        ((3,), (3, 2), r"x has shape \(3,\); a cloud is \[points, dimension\]"),
        ((3, 2), (1, 3, 2), r"y has shape \(1, 3, 2\); a cloud is"),
        ((0, 2), (3, 2), r"x has shape \(0, 2\): the cloud is empty"),
        ((3, 2), (3, 0), r"y has shape \(3, 0\): the cloud is empty"),
        ((3, 2), (3, 4), r"x and y differ in dimension: \(3, 2\) and \(3, 4\)"),
    ],
)
def test_wrong_shapes_raise(unchecked_shapes, x_shape, y_shape, message):
    with pytest.raises(ValueError, match=message):
        costs.squared_euclidean(jnp.zeros(x_shape), jnp.zeros(y_shape))
