"""VelocityMLP: shapes, dtype, and that it listens to both of its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow.nets.mlp import FlowMapMLP, VelocityMLP


def initialised(key, dim=2, **settings):
    model = VelocityMLP(**{"hidden_dims": (16, 16), **settings})
    return model, model.init(key, jnp.zeros((1, dim)), jnp.zeros(1))


@pytest.mark.parametrize("dim", [1, 2, 64])
@pytest.mark.parametrize("n", [1, 5])
def test_velocity_has_the_shape_and_dtype_of_the_particles(key, n, dim):
    model, params = initialised(key, dim)
    velocity = model.apply(params, jnp.ones((n, dim)), jnp.ones(n))
    assert velocity.shape == (n, dim) and velocity.dtype == jnp.float32


def test_velocity_depends_on_x_and_on_t(key):
    model, params = initialised(key)
    field = lambda x, t: model.apply(params, jnp.full((1, 2), x), jnp.full(1, t))
    base = field(0.3, 0.4)
    assert np.max(np.abs(field(0.5, 0.4) - base)) > 1e-3
    assert np.max(np.abs(field(0.3, 0.6) - base)) > 1e-3


def test_time_embedding_tells_all_times_of_the_flow_apart(key):
    # The longest period is 4: t and t + 2 would be confused by sines of period 2 alone.
    model, params = initialised(key)
    t = jnp.linspace(0, 4, 41)
    velocity = np.asarray(model.apply(params, jnp.zeros((41, 2)), t))
    gaps = np.linalg.norm(velocity[:, None] - velocity[None], axis=2) + np.eye(41)
    assert gaps.min() > 1e-3


def test_particles_do_not_interact(key):
    model, params = initialised(key)
    x, t = jax.random.normal(key, (6, 2)), jnp.linspace(0, 1, 6)
    together = model.apply(params, x, t)
    alone = jnp.concatenate([model.apply(params, x[i : i + 1], t[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_parameter_count_follows_the_widths(key):
    _, params = initialised(key, hidden_dims=(8, 8), num_frequencies=3)
    inputs = 2 + 1 + 2 * 3  # x, t, and a sine and cosine for each frequency
    expected = (inputs + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 2
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_a_flow_map_depends_on_both_of_its_times(key):
    model = FlowMapMLP((16, 16))
    x, zero = jax.random.normal(key, (3, 2)), jnp.zeros(3)
    params = model.init(key, x, zero, zero)
    base = model.apply(params, x, zero, zero)
    assert base.shape == (3, 2) and base.dtype == jnp.float32
    later = [model.apply(params, x, *times) for times in ((zero + 0.2, zero), (zero, zero + 0.2))]
    assert all(np.max(np.abs(velocity - base)) > 1e-3 for velocity in later)
    assert np.max(np.abs(later[0] - later[1])) > 1e-3


def test_strict_promotion_and_half_precision_are_allowed(key):
    model, params = initialised(key)
    x, t = jax.random.normal(key, (6, 2)).astype(jnp.bfloat16), jnp.linspace(0, 1, 6)
    with jax.numpy_dtype_promotion("strict"):
        velocity = model.apply(params, x, t)
    assert velocity.dtype == jnp.float32
    np.testing.assert_array_equal(velocity, model.apply(params, x.astype(jnp.float32), t))
