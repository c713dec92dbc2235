"""pairs: ends and velocities of the paths; couplings against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import Limits, pairs, pool

PATHS = [pairs.straight, pairs.trigonometric]


@pytest.mark.parametrize("path", PATHS)
def test_ends_are_the_pair(key, path):
    x0, x1 = jax.random.normal(key, (2, 7, 3))
    np.testing.assert_allclose(path(x0, x1, jnp.zeros(7))[0], x0, atol=1e-6)
    np.testing.assert_allclose(path(x0, x1, jnp.ones(7))[0], x1, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_the_derivative(key, path):
    x0, x1 = jax.random.normal(key, (2, 7, 3))
    t = jnp.linspace(0.0, 1.0, 7)
    _, derivative = jax.jvp(lambda t: path(x0, x1, t)[0], (t,), (jnp.ones(7),))
    np.testing.assert_allclose(path(x0, x1, t)[1], derivative, atol=1e-5)


def test_rows_of_a_pool_of_pairs_are_the_straight_path(key):
    x0 = jnp.arange(5.0)[:, None] * jnp.ones((1, 2))
    x1 = x0 * jnp.array([[2.0, -1.0]]) + 1  # every row tells which pair it came from
    rows = pool.sample(pool.from_pairs(x0, x1), key, 200)
    # From x = (1 - t) i + t (2 i + 1) follows the pair i; the second coordinate must agree.
    index = (rows.x[:, 0] - rows.t) / (1 + rows.t)
    np.testing.assert_allclose(index, jnp.round(index), atol=1e-4)
    pair = jnp.round(index).astype(int)
    x, velocity = pairs.straight(x0[pair], x1[pair], rows.t)
    np.testing.assert_allclose(rows.x, x, atol=1e-5)
    np.testing.assert_allclose(rows.velocity, velocity, atol=1e-5)
    assert len(set(pair.tolist())) == 5


@pytest.mark.parametrize("path", PATHS)
def test_images_are_scaled_along_their_batch_axis(key, path):
    x0, x1 = jax.random.normal(key, (2, 4, 4, 4, 3))
    t = jnp.array([0.0, 0.3, 0.7, 1.0])
    expected = path(x0.reshape(4, -1), x1.reshape(4, -1), t)
    for image, vector in zip(path(x0, x1, t), expected, strict=True):
        np.testing.assert_allclose(image, vector.reshape(x0.shape), atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_half_precision_is_computed_in_float32_also_under_strict_promotion(key, path):
    x0, x1 = jax.random.normal(key, (2, 7, 3)).astype(jnp.bfloat16)
    t = jnp.linspace(0.0, 1.0, 7)
    expected = path(x0.astype(jnp.float32), x1.astype(jnp.float32), t)
    with jax.numpy_dtype_promotion("strict"):
        found = path(x0, x1, t)
    for leaf, wanted in zip(found, expected, strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, wanted)


def test_exact_pairs_are_the_cheapest_permutation(key):
    x, y = jax.random.normal(key, (2, 3, 2, 4, 2))
    partners = pairs.exact(x, y)
    for source, target, found in zip(*(z.reshape(6, 4, 2) for z in (x, y, partners)), strict=True):
        costs = {
            order: float(jnp.sum((source - target[jnp.array(order)]) ** 2))
            for order in itertools.permutations(range(4))
        }
        np.testing.assert_array_equal(found, target[jnp.array(min(costs, key=costs.get))])


def test_exact_pairs_are_refused_between_clouds_of_different_shapes(unchecked_shapes):
    with pytest.raises(ValueError, match=r"y has shape \(1, 3, 2\); it must be \(1, 4, 2\), as x"):
        pairs.exact(jnp.zeros((1, 4, 2)), jnp.zeros((1, 3, 2)))


def test_entropic_partners_are_drawn_from_the_plan(key):
    """Of two targets, whose shares at a point the potentials of a symmetric problem give."""
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [1.0]])
    clouds = jnp.broadcast_to(x, (2_000, 2, 1)), jnp.broadcast_to(y, (2_000, 2, 1))
    drawn, converged = pairs.entropic(key, *clouds, 0.5, limits=Limits(1e-4))
    assert converged.all() and drawn.shape == (2_000, 2, 1)
    stays = jnp.mean(drawn == clouds[0], axis=(0, 2))
    np.testing.assert_allclose(stays, 1 / (1 + np.exp(-1)), atol=0.04)  # by hand: C is 1/2 or 0


def test_entropic_pairs_say_which_clouds_did_not_converge(key):
    x, y = jax.random.normal(key, (2, 2, 16, 2))
    x = x.at[1].set(jnp.nan)
    _, converged = pairs.entropic(key, x, y, 0.5)
    assert converged.tolist() == [True, False]
