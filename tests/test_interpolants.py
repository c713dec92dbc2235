"""interpolants: ends, and velocities that are the paths' time derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import interpolants, pool

PATHS = [interpolants.straight, interpolants.trigonometric]


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
    x, velocity = interpolants.straight(x0[pair], x1[pair], rows.t)
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
