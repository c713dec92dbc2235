"""NSGF sampling along fields whose flow is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import sampling

MATRIX = jnp.array([[0.8, -1.1], [0.6, 0.3]])  # turns and stretches


def towards(params, x, t):
    """Geodesic field to a point c: x(s) = x + s (c - x), so its map at s = 1 is c."""
    return (params - x) / (1 - t)[:, None]


def linear(params, x, t):
    """dx/dt = A x, whose map at t is expm(A t)."""
    return jnp.matmul(x, params.T, precision="highest")


@pytest.fixture
def x(key):
    return jax.random.normal(key, (7, 2))


@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
def test_straight_paths_arrive_with_any_number_of_evaluations(x, nfe):
    # Euler is exact on straight lines: every particle lands on the target.
    end = sampling.nsgf(towards, jnp.array([[2.0, -3.0]]), x, nfe=nfe)
    np.testing.assert_allclose(end, np.tile([2.0, -3.0], (7, 1)), atol=1e-5)


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_field_is_followed_to_the_horizon(x, horizon):
    end = sampling.nsgf(linear, MATRIX, x, nfe=80, method="rk4", horizon=horizon)
    expected = x @ jax.scipy.linalg.expm(MATRIX * horizon).T
    np.testing.assert_allclose(end, expected, rtol=1e-4, atol=1e-4)


def test_default_horizon_is_one_and_default_method_euler(x):
    expected = x + x @ MATRIX.T  # by hand: one Euler step of length 1
    np.testing.assert_allclose(sampling.nsgf(linear, MATRIX, x, nfe=1), expected, atol=1e-5)


@pytest.mark.parametrize("horizon", [1.0, 2.0])
def test_reverse_undoes_the_flow(x, horizon):
    settings = {"nfe": 80, "method": "rk4", "horizon": horizon}
    there = sampling.nsgf(linear, MATRIX, x, **settings)
    back = sampling.nsgf(linear, MATRIX, there, reverse=True, **settings)
    assert np.max(np.abs(there - x)) > 0.5
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_reverse_sees_the_times_from_the_end(x):
    # Velocity is the time itself: one Euler step back from 3 moves by -3 * 3.
    clock = lambda params, x, t: jnp.broadcast_to(t[:, None], x.shape)
    back = sampling.nsgf(clock, None, x, nfe=1, horizon=3.0, reverse=True)
    np.testing.assert_allclose(back, x - 9, atol=1e-5)


@pytest.mark.parametrize(("nfe", "method"), [(0, "euler"), (-1, "euler"), (6, "rk4"), (3, "heun")])
def test_impossible_evaluation_counts_raise(x, nfe, method):
    with pytest.raises(ValueError, match=f"nfe is {nfe}"):
        sampling.nsgf(linear, MATRIX, x, nfe=nfe, method=method)


def test_two_phase_spends_its_evaluations_and_starts_each_sample_at_its_own_time():
    """Phase 1 moves by 1 in x, the predictor reads tau off y, phase 2 moves y to y + 1 - tau."""
    calls = []

    def first(params, x, t):
        jax.debug.callback(lambda: calls.append("first"), ordered=True)
        return jnp.broadcast_to(params, x.shape) * jnp.array([[1.0, 0.0]])

    def second(params, x, t):
        jax.debug.callback(lambda: calls.append("second"), ordered=True)
        return jnp.broadcast_to(params, x.shape) * jnp.array([[0.0, 1.0]])

    def predict(params, x):
        jax.debug.callback(lambda: calls.append("predict"), ordered=True)
        return x[:, 1]

    x = jnp.array([[0.0, 0.25], [2.0, 0.5], [4.0, 1.0]])
    params = (jnp.float32(0.5), jnp.float32(1.0), None)
    settings = {"nsgf_steps": 3, "straight_steps": 4, "horizon": 2.0}
    out = sampling.two_phase(first, second, predict, params, x, **settings)
    jax.effects_barrier()
    np.testing.assert_allclose(out, [[1.0, 1.0], [3.0, 1.0], [5.0, 1.0]], atol=1e-6)
    assert calls == ["first"] * 3 + ["predict"] + ["second"] * 4


def test_two_phases_of_second_order_follow_one_field_as_one(x):
    """A predictor that says the horizon itself, equal steps: nothing tells the phases apart."""
    settings = {"horizon": 0.75, "method": "ab2"}
    steps = {"nsgf_steps": jnp.asarray(6), "straight_steps": 2}
    params = (MATRIX, MATRIX, None)
    predict = lambda params, x: jnp.full(len(x), 0.75)
    end = sampling.two_phase(linear, linear, predict, params, x, **steps, **settings)
    whole = sampling.nsgf(linear, MATRIX, x, nfe=8, method="ab2")
    np.testing.assert_allclose(end, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("nfe", "settings", "steps"),
    [
        (3, {}, (1, 1)),
        (10, {"most": 5}, (4, 5)),
        (60, {"most": 5}, (5, 54)),
        (11, {"share": 0.7}, (7, 3)),
        (5, {"share": 1.0}, (3, 1)),
        (5, {"share": 0.0}, (1, 3)),
    ],
)
def test_phases_and_predictor_spend_the_evaluations(nfe, settings, steps):
    assert sampling.phase_steps(nfe, **settings) == steps
    assert sum(steps) + 1 == nfe


@pytest.mark.parametrize(
    ("nfe", "settings", "message"),
    [
        (2, {}, "nfe is 2; two phases"),
        (10, {"most": 0}, "0 steps; it needs at least 1"),
        (10, {"share": 1.5}, r"share is 1\.5"),
    ],
)
def test_phases_without_steps_raise(nfe, settings, message):
    with pytest.raises(ValueError, match=message):
        sampling.phase_steps(nfe, **settings)


def test_a_predictor_of_another_shape_is_named(x):
    column = lambda params, x: jnp.full((len(x), 1), 0.5)
    settings = {"nsgf_steps": 1, "straight_steps": 1}
    with pytest.raises(ValueError, match=r"predictor has shape \(7, 1\); it must be \(7,\)"):
        sampling.two_phase(linear, linear, column, (MATRIX, MATRIX, None), x, **settings)
