"""Flow maps: pairs of states by hand, maps of Gaussians and straight pairs, evaluations counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from sinkflow import flow_map, nets, pool, train

DRAWS = 20_000


@pytest.fixture
def bent():
    """Two paths of two segments each: their corners at s = 0.5 and 0.25."""
    x = jnp.array([[[0.0, 0.0], [1.0, 0.0]], [[5.0, 1.0], [5.0, 2.0]]])
    velocity = jnp.array([[[2.0, 0.0], [0.0, 4.0]], [[0.0, 4.0], [-1.0, 0.0]]])
    t = jnp.array([[0.0, 0.5], [0.0, 0.25]])
    return pool.Pool(x, velocity, t, jnp.array([[0.5, 0.5], [0.25, 0.75]]))


def position(row, t):
    """Of the paths of ``bent``, by hand."""
    first = np.stack([2 * np.minimum(t, 0.5), 4 * np.maximum(t - 0.5, 0)], axis=-1)
    second = np.stack([5 - np.maximum(t - 0.25, 0), 1 + 4 * np.minimum(t, 0.25)], axis=-1)
    return np.where(np.asarray(row)[:, None] == 0, first, second)


def test_a_pair_of_states_has_their_mean_velocity(bent, key):
    rows = jax.tree.map(np.asarray, flow_map.sample(bent, key, DRAWS))
    assert np.all((rows.s >= 0) & (rows.s <= rows.t) & (rows.t <= 1))
    row = (rows.x[:, 0] > 4).astype(int)  # whose path stays on the right of x = 4
    np.testing.assert_allclose(rows.x, position(row, rows.s), atol=1e-5)
    span = (rows.t - rows.s)[:, None]
    expected = (position(row, rows.t) - position(row, rows.s)) / np.where(span > 0, span, 1)
    far = span[:, 0] > flow_map.SHORTEST
    np.testing.assert_allclose(rows.velocity[far], expected[far], atol=5e-3)
    assert far.mean() > 0.98 and 0.4 < row.mean() < 0.6
    # Some pairs cross a corner: theirs is the velocity of neither segment.
    own = np.array(bent.velocity)[row]
    assert (np.abs(rows.velocity[:, None] - own).max(-1).min(-1) > 0.1).mean() > 0.2


def test_close_pairs_have_the_velocity_itself(bent, key):
    rows = jax.tree.map(np.asarray, flow_map.sample(bent, key, DRAWS))
    near = rows.t - rows.s <= flow_map.SHORTEST
    assert near.sum() > 10
    own = np.array(bent.velocity)[(rows.x[near, 0] > 4).astype(int)]
    assert np.abs(rows.velocity[near][:, None] - own).max(-1).min(-1).max() == 0


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_times_are_drawn_as_said(bent, key, power):
    rows = jax.tree.map(np.asarray, flow_map.sample(bent, key, DRAWS, power))
    assert scipy.stats.kstest(rows.s ** (1 / power), "uniform").pvalue > 1e-4
    assert scipy.stats.kstest((rows.t - rows.s) / (1 - rows.s), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize("power", [1.0, 1.5])
def test_steps_cover_the_time_with_exactly_k_evaluations(key, nfe, power):
    x = jax.random.normal(key, (6, 2))
    seen = []

    def field(params, x, s, t):
        jax.debug.callback(lambda s, t: seen.append((float(s[0]), float(t[0]))), s, t, ordered=True)
        return jnp.broadcast_to(params, x.shape)

    moved = flow_map.carry(field, jnp.array([[3.0, -2.0]]), x, nfe=nfe, power=power)
    jax.effects_barrier()
    np.testing.assert_allclose(moved, x + jnp.array([[3.0, -2.0]]), atol=1e-5)
    ends = (np.arange(nfe + 1) / nfe) ** power
    np.testing.assert_allclose(seen, np.stack([ends[:-1], ends[1:]], axis=1), atol=1e-6)


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_the_map_of_gaussians_is_exact_with_any_number_of_evaluations(key, nfe):
    """From N(0, 1) to N(m, c^2) a path is x_s = (1 + s (c - 1)) z + s m: u is known."""
    c, m = 0.3, jnp.array([[4.0, -1.0]])

    def field(params, x, s, t):
        z = (x - s[:, None] * m) / (1 + s[:, None] * (c - 1))
        return (c - 1) * z + m

    z = jax.random.normal(key, (50, 2))
    np.testing.assert_allclose(flow_map.carry(field, None, z, nfe=nfe), c * z + m, atol=1e-5)
    # And these are the velocities of the rows that a pool of such paths gives.
    rows = flow_map.sample(pool.from_pairs(z, c * z + m), key, 500)
    np.testing.assert_allclose(rows.velocity, field(None, rows.x, rows.s, rows.t), atol=5e-3)
    assert flow_map.matching_loss(field, None, rows) < 1e-6


def test_a_field_regressed_from_bent_paths_is_their_map(key):
    """Where one-step Euler is wrong by the bend, the regressed map is not."""
    x0 = jax.random.normal(key, (512, 2))
    first, second = jnp.array([[4.0, 0.0]]), jnp.array([[0.0, 4.0]]) - x0
    x = jnp.stack([x0, x0 + 0.5 * first], axis=1)
    velocity = jnp.stack([jnp.broadcast_to(first, x0.shape), second], axis=1)
    t = jnp.broadcast_to(jnp.array([0.0, 0.5]), (512, 2))
    paths = pool.Pool(x, velocity, t, jnp.full((512, 2), 0.5))
    ends = x[:, 1] + 0.5 * velocity[:, 1]
    params = fitted(paths, key)
    for nfe in (1, 2, 5):
        moved = flow_map.carry(MODEL.apply, params, x0, nfe=nfe)
        assert rms(moved - ends) < 0.05 * rms(x0 + velocity[:, 0] - ends), nfe  # of Euler's step


def gaussian_map(c, m):
    """Mean velocities between the laws of (1 - s) z + s (m + c w), z and w independent N(0, 1)."""

    def deviation(s):
        return jnp.sqrt((1 - s) ** 2 + (s * c) ** 2)[:, None]

    def moved(x, s, t):
        return t[:, None] * m + deviation(t) / deviation(s) * (x - s[:, None] * m)

    def velocity(x, s):
        """The limit t = s."""
        return m + (c**2 * s - (1 - s))[:, None] / deviation(s) ** 2 * (x - s[:, None] * m)

    def field(params, x, s, t):
        span = (t - s)[:, None]
        equal = span == 0
        mean = (moved(x, s, t) - x) / jnp.where(equal, 1, span)
        return jnp.where(equal, velocity(x, s), mean) + params

    return field, velocity


def test_the_mean_velocities_of_gaussians_satisfy_the_mean_flow_identity(key):
    field, velocity = gaussian_map(0.3, jnp.array([[4.0, -1.0]]))
    key_x, key_s, key_t = jax.random.split(key, 3)
    s = jax.random.uniform(key_s, (200,), maxval=0.8)
    t = s + (1 - s) * jax.random.uniform(key_t, (200,), minval=0.2)
    x = jax.random.normal(key_x, (200, 2))
    rows = flow_map.Rows(x, s, t, velocity(x, s))
    assert flow_map.mean_flow_loss(field, 0.0, rows, weight_power=0) < 1e-6
    # A field that is off everywhere has the square of it; one of velocities alone misses the turn.
    off = flow_map.mean_flow_loss(field, 0.5, rows, weight_power=0)
    np.testing.assert_allclose(off, 2 * 0.5**2, rtol=1e-3)
    alone = flow_map.mean_flow_loss(lambda p, x, s, t: velocity(x, s), 0, rows, weight_power=0)
    assert alone > 0.1


def test_the_target_of_mean_flow_has_no_gradient(key):
    """By hand: u = p x with v = 1: target 1 + (t - s) p; only the left side has a derivative."""
    s, t, p = jnp.array([0.2]), jnp.array([0.7]), 3.0
    rows = flow_map.Rows(jnp.array([[0.4]]), s, t, jnp.array([[1.0]]))
    error = p * 0.4 - (1 + 0.5 * p)
    for power in (0.0, 1.0):
        loss = lambda p, power=power: flow_map.mean_flow_loss(
            lambda p, x, s, t: p * x, p, rows, power
        )
        weight = (error**2 + 1e-3) ** -power
        value, slope = jax.value_and_grad(loss)(p)
        np.testing.assert_allclose(
            [value, slope], weight * np.array([error**2, 2 * error * 0.4]), 1e-4
        )


def test_mean_flow_draws_its_times_as_its_source_says(key):
    x0 = jax.random.normal(key, (64, 2))
    rows = flow_map.sample_mean_flow(pool.from_pairs(x0, 2 * x0), key, DRAWS)
    rows = jax.tree.map(np.asarray, rows)
    equal = rows.s == rows.t
    assert abs(equal.mean() - 0.75) < 0.02
    both = np.sort(np.stack([rows.s[~equal], rows.t[~equal]]), axis=0)
    np.testing.assert_array_equal(both[0], rows.s[~equal])
    logits = scipy.special.logit(both.astype(np.float64).ravel())
    assert scipy.stats.kstest(logits - 0.4, "norm").pvalue > 1e-4
    np.testing.assert_allclose(rows.x, rows.velocity * (1 + rows.s)[:, None], atol=1e-4)


def test_mean_flow_learns_the_map_of_gaussians_in_one_step(key):
    c, m = 0.3, jnp.array([[4.0, -1.0]])
    key_z, key_w, key_fit = jax.random.split(key, 3)
    z, w = (jax.random.normal(key, (20_000, 2)) for key in (key_z, key_w))
    params = fitted(
        pool.from_pairs(z, m + c * w),
        key_fit,
        functools.partial(flow_map.sample_mean_flow, equal_share=0.25, law="uniform"),
        functools.partial(flow_map.mean_flow_loss, weight_power=0.0),
    )
    expected = c * z + m  # of the flow of independent pairs
    assert rms(flow_map.carry(MODEL.apply, params, z, nfe=1) - expected) < 0.2
    assert rms(z + m - expected) > 0.9  # one step of Euler along the velocity at 0 collapses to m


MODEL = nets.FlowMapMLP((64, 64))


def fitted(paths, key, sample=flow_map.sample, loss_fn=flow_map.matching_loss, steps=800):
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    start = (jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros(1))
    state = train.create(MODEL.init(key, *start), optimizer)
    step = train.make_step(MODEL.apply, optimizer, ema_decay=0.98, loss_fn=loss_fn)
    draw = train.drawing_step(step, lambda rows, key: sample(rows, key, 256))
    return jax.jit(train.make_steps(draw, steps))(state, paths, key)[0].ema_params


def rms(difference):
    return float(jnp.sqrt(jnp.mean(jnp.sum(difference**2, axis=1))))
