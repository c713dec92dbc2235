"""EPT and JKO-Flow on Gaussians, whose log ratio, particles and JKO steps have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.vectors import ratios
from sinkflow import nets, train

MEAN = jnp.array([[1.0, -0.5]])  # of the data
N = 8192
RATIO = nets.GeneratorMLP(1, (32, 32))


def rms(values):
    return float(jnp.sqrt(jnp.mean(values**2)))


def normal(key, mean=0.0, deviation=1.0):
    return mean + deviation * jax.random.normal(key, (N, 2))


def linear(params, x):
    return (x @ params)[:, None]


def fitted(key, loss_fn, x, y, updates=400):
    """Parameters of h that minimise the loss of particles and data."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, updates))
    step = train.make_step(RATIO.apply, optimizer, ema_decay=0.0, loss_fn=loss_fn)
    draw = lambda points, key: ratios.draw_rows(points, key, 1024)
    fit = jax.jit(train.make_steps(train.drawing_step(step, draw), updates))
    state = train.create(RATIO.init(key, x[:1]), optimizer)
    return fit(state, (x, y), key)[0].params


@pytest.mark.parametrize("loss", ["logistic", "dual"])
def test_the_minimum_of_either_loss_is_the_log_ratio(key, loss):
    """Of N(0, I) to N(m, I) it is |m|^2 / 2 - m.x; its values on the data vary by |m| = 1.1."""
    loss_fn = {
        "logistic": lambda *args: ratios.logistic_loss(*args, penalty=0.0),
        "dual": ratios.dual_loss,
    }[loss]
    key_x, key_y, key_fit, key_new = jax.random.split(key, 4)
    params = fitted(key_fit, loss_fn, normal(key_x), normal(key_y, MEAN))
    points = 0.5 * MEAN + jax.random.normal(key_new, (512, 2))  # where both have mass
    expected = 0.5 * jnp.sum(MEAN**2) - points @ MEAN[0]
    assert rms(ratios.log_ratio(RATIO.apply, params, points) - expected) < 0.15
    assert rms(ratios.ratio_gradient(RATIO.apply, params, points) + MEAN) < 0.25


def test_the_penalty_is_the_squared_gradient_at_particles_and_data(key):
    x, y = tuple(jax.random.normal(key, (2, 64, 2)))
    slope = jnp.array([0.6, -0.8]) * 2
    free = ratios.logistic_loss(linear, slope, (x, y), penalty=0.0)
    held = ratios.logistic_loss(linear, slope, (x, y), penalty=0.25)
    np.testing.assert_allclose(held - free, 0.25 * 4, rtol=1e-5)
    expected = np.log1p(np.exp(-x @ slope)).mean() + np.log1p(np.exp(y @ slope)).mean()
    np.testing.assert_allclose(free, expected, rtol=1e-5)


def test_the_loss_of_a_map_is_its_way_and_the_ratio_where_it_ends(key):
    """By hand, of a shift: |s|^2 / (2 a) + mean h(x + s)."""
    x = jax.random.normal(key, (64, 2))
    slope, shift = jnp.array([0.5, 2.0]), jnp.array([3.0, -4.0])
    loss = ratios.map_loss(lambda s, x: x + s[None], shift, (x, slope), linear, step_size=0.1)
    np.testing.assert_allclose(loss, 25 / 0.2 + np.mean((x + shift[None]) @ slope), rtol=1e-5)


def test_particles_of_ept_follow_the_flow_of_kl_between_gaussians(key):
    """From N(0, I) to N(m, I) each Euler step of 0.3 leaves 0.7 of the way of the mean."""
    key_x, key_y, key_learn, key_new = jax.random.split(key, 4)
    learn, move = ratios.make_ept(
        RATIO,
        optax.adam(3e-3),
        num_steps=8,
        step_size=0.3,
        updates=150,
        batch_size=1024,
        penalty=0.0,
    )
    params = jax.jit(learn)(key_learn, normal(key_x), normal(key_y, MEAN))
    states = ratios.carry(move, params, normal(key_new))  # points that it has not seen
    left = 0.7 ** np.arange(9)
    np.testing.assert_allclose(states.mean(axis=1), (1 - left)[:, None] * MEAN, atol=0.12)
    np.testing.assert_allclose(np.cov(states[-1].T), np.eye(2), atol=0.2)


def jko_step(mean, deviation, target_mean, target_deviation, a):
    """Mean and deviation after a JKO step of KL from N(mean, deviation^2 I).

    Minimises (|m - mean|^2 + d (s - deviation)^2) / (2 a) + KL over N(m, s^2 I).
    """
    inverse = 1 / a + 1 / target_deviation**2
    mean = (mean / a + target_mean / target_deviation**2) / inverse
    half = deviation / a / (2 * inverse)
    return mean, half + np.sqrt(half**2 + 1 / inverse)


def test_steps_of_jko_flow_between_gaussians_are_those_in_closed_form(key):
    key_x, key_y, key_learn, key_new = jax.random.split(key, 4)
    a, target = 0.5, 0.6
    learn, move = ratios.make_jko(
        nets.GeneratorMLP(2, (32, 32)),
        RATIO,
        optax.adam(3e-3),
        num_steps=3,
        step_size=a,
        updates=500,
        batch_size=512,
        ema_decay=0.999,
    )
    params = jax.jit(learn)(key_learn, normal(key_x), normal(key_y, MEAN, target))
    states = ratios.carry(move, params, normal(key_new))
    mean, deviation = np.zeros((1, 2)), 1.0
    for state in states[1:]:
        mean, deviation = jko_step(mean, deviation, np.array(MEAN), target, a)
        np.testing.assert_allclose(state.mean(axis=0)[None], mean, atol=0.06)
        np.testing.assert_allclose(state.std(axis=0), deviation, atol=0.06)
    # The closed form is near its end, so that the last step was held against the target too.
    assert np.linalg.norm(mean - MEAN) < 0.1 and abs(deviation - target) < 0.1
