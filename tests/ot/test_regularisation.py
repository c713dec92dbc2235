"""epsilon: the mean cost in closed form, and plans of the wanted kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import Limits, sinkhorn
from sinkflow.ot.regularisation import (
    _bisect,
    epsilon_for_entropy,
    epsilon_for_neighbours,
    mean_cost,
)
from tests import helpers

N, M = 23, 19


clouds = functools.partial(helpers.clouds, n=N, m=M)


@pytest.mark.parametrize("d", [1, 2, 64])
def test_mean_cost_is_the_mean_of_the_matrix(key, d):
    x, y = clouds(key, d)
    a = jax.random.uniform(key, N)
    a, b = a / a.sum(), jnp.full(M, 1 / M)
    cost = 0.5 * ((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2).sum(-1)
    np.testing.assert_allclose(mean_cost(x, y), cost.mean(), rtol=1e-5)
    expected = np.asarray(a) @ cost @ np.asarray(b)
    np.testing.assert_allclose(mean_cost(x, y, a, b), expected, rtol=1e-5)
    # Far from the origin nothing cancels.
    shift = jnp.full((1, d), 1e3)
    np.testing.assert_allclose(mean_cost(x + shift, y + shift), cost.mean(), rtol=1e-3)


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_entropy_is_met_at_any_scale(key, wanted, scale):
    x, y = clouds(key)
    found, out = epsilon_for_entropy(scale * x, scale * y, wanted)
    assert out.converged
    np.testing.assert_allclose(out.entropy, wanted, atol=2e-3)
    again = sinkhorn(scale * x, scale * y, found)
    np.testing.assert_allclose(again.entropy, wanted, atol=1e-2)


@pytest.mark.parametrize("wanted", [2.0, 3.0, 15.0])
def test_neighbours_are_met(key, wanted):
    x, y = clouds(key)
    _, out = epsilon_for_neighbours(x, y, wanted)
    assert out.converged
    np.testing.assert_allclose(out.neighbours, wanted, rtol=1e-2)


def test_what_no_epsilon_gives_shows(key):
    """Of duplicated targets a particle cannot choose one: two neighbours at the least."""
    _, y = clouds(key)
    y = jnp.concatenate([y, y])
    found, out = epsilon_for_neighbours(y, y, 1.5, limits=Limits(max_iterations=200))
    assert out.neighbours > 1.9
    assert found < 1e-4 * mean_cost(y, y)


def test_wrong_wishes_are_refused(key):
    x, y = clouds(key)
    for wanted in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"entropy is .*; it must lie between 0 and 1"):
            epsilon_for_entropy(x, y, wanted)
    with pytest.raises(ValueError, match="neighbours is 19; it must lie between 1 and 19"):
        epsilon_for_neighbours(x, y, M)


def test_new_wishes_do_not_recompile(key):
    x, y = clouds(key)
    epsilon_for_entropy(x, y, 0.4)
    compiled = _bisect._cache_size()
    epsilon_for_entropy(x + 1.0, y, 0.5)
    assert _bisect._cache_size() == compiled
