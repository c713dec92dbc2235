"""Steppers: order, an independent oracle, exact evaluation counts, directions, errors."""

import functools
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import ode

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2}
ORACLES = {"euler": diffrax.Euler, "midpoint": diffrax.Midpoint, "heun": diffrax.Heun}
all_methods = pytest.mark.parametrize("method", ORDERS)


def pendulum(params, x, t):
    """Nonlinear and driven: dq = p, dp = -a sin q + cos t."""
    force = -params * jnp.sin(x[:, 0]) + jnp.cos(t)
    return jnp.stack([x[:, 1], force], axis=1)


def exact_field(params, x, t):
    """dx/dt = params x cos t, so x(t) = x(0) exp(params sin t)."""
    return params * x * jnp.cos(t)[:, None]


@pytest.fixture
def x(key):
    return jax.random.normal(key, (5, 2))


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def test_every_method_is_tested_and_has_its_stages():
    assert {*ode.ONE_STEP, "ab2"} == ode.STAGES.keys() == ORDERS.keys()


@all_methods
def test_error_falls_with_the_order_of_the_method(double, method):
    # In float64, so that the fourth-order error stays far above rounding.
    start = jnp.linspace(0.5, 2.0, 6, dtype=jnp.float64).reshape(3, 2)
    expected = start * np.exp(1.3 * np.sin(1.5))
    errors = []
    steps = np.array([16, 32, 64])
    for count in steps:
        nfe = int(count) * ode.STAGES[method]
        end = ode.integrate(exact_field, 1.3, start, t1=1.5, nfe=nfe, method=method)
        assert end.dtype == jnp.float64
        errors.append(float(np.max(np.abs(end - expected))))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[method], abs=0.15)


def diffrax_solution(x, solver, controller, steps):
    """Each particle on its own: the oracle knows nothing of batches."""
    term = diffrax.ODETerm(lambda t, y, params: pendulum(params, y[None], t[None])[0])
    with jax.numpy_rank_promotion("allow"):
        solve = lambda y: diffrax.diffeqsolve(
            term, solver, 0.2, 1.7, 1.5 / steps, y, 2.0, stepsize_controller=controller
        ).ys[0]
        return jnp.stack([solve(y) for y in x])


@pytest.mark.parametrize("method", ORACLES)
def test_equal_steps_match_diffrax(x, method):
    expected = diffrax_solution(x, ORACLES[method](), diffrax.ConstantStepSize(), 12)
    nfe = 12 * ode.STAGES[method]
    actual = ode.integrate(pendulum, 2.0, x, t0=0.2, t1=1.7, nfe=nfe, method=method)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_rk4_matches_diffrax_tsit5(x):
    controller = diffrax.PIDController(rtol=1e-7, atol=1e-7)
    expected = diffrax_solution(x, diffrax.Tsit5(), controller, 50)
    actual = ode.integrate(pendulum, 2.0, x, t0=0.2, t1=1.7, nfe=160, method="rk4")
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@all_methods
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_field_is_evaluated_exactly_nfe_times(x, method, steps):
    times = []

    def counted(params, x, t):
        # Runs on the host at every evaluation, unlike code that only runs when tracing.
        jax.debug.callback(lambda t: times.append(float(t)), t[0], ordered=True)
        return -params * x

    nfe = steps * ode.STAGES[method]
    jax.block_until_ready(ode.integrate(counted, 1.0, x, nfe=nfe, method=method))
    jax.effects_barrier()
    assert len(times) == nfe
    assert times[0] == 0 and max(times) <= 1


def test_stages_are_evaluated_at_their_own_times(x):
    seen = {}
    for method in ORDERS:
        times = []

        def clocked(_, x, t, times=times):
            jax.debug.callback(lambda t: times.append(float(t)), t[0], ordered=True)
            return x

        nfe = 2 * ode.STAGES[method]
        jax.block_until_ready(ode.integrate(clocked, 0, x, t0=1.0, t1=3.0, nfe=nfe, method=method))
        jax.effects_barrier()
        seen[method] = times
    assert seen == {
        "euler": [1, 2],
        "ab2": [1, 2],
        "midpoint": [1, 1.5, 2, 2.5],
        "heun": [1, 2, 2, 3],
        "rk4": [1, 1.5, 1.5, 2, 2, 2.5, 2.5, 3],
    }


@all_methods
def test_going_back_returns_to_the_start(x, method):
    nfe = {"euler": 4_000, "rk4": 80}.get(method, 400)
    go = functools.partial(ode.integrate, pendulum, 2.0, nfe=nfe, method=method)
    there = go(x, t0=0.2, t1=1.7)
    assert np.max(np.abs(there - x)) > 0.5
    np.testing.assert_allclose(go(there, t0=1.7, t1=0.2), x, atol=2e-3)


@all_methods
def test_each_particle_has_its_own_times(x, method):
    t0, t1 = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4]), jnp.array([1.0, 0.5, 0.2, -0.5, 2.0])
    settings = {"nfe": 8, "method": method}
    together = ode.integrate(pendulum, 2.0, x, t0=t0, t1=t1, **settings)
    for i in range(5):
        alone = ode.integrate(
            pendulum, 2.0, x[i : i + 1], t0=float(t0[i]), t1=float(t1[i]), **settings
        )
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-6)
    np.testing.assert_array_equal(together[2], x[2])  # t0 = t1: it stays


@all_methods
def test_trajectory_begins_at_the_start_and_ends_where_integrate_does(x, method):
    settings = {"t0": 0.2, "t1": 1.7, "nfe": 12, "method": method}
    states = ode.trajectory(pendulum, 2.0, x, **settings)
    assert states.shape == (12 // ode.STAGES[method] + 1, 5, 2)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], ode.integrate(pendulum, 2.0, x, **settings))


def test_trajectory_holds_every_step_in_between(x):
    # By hand: Euler on dx = -x with steps of 1/4 multiplies by 3/4.
    states = ode.trajectory(lambda params, x, t: -params * x, 1.0, x, nfe=4)
    np.testing.assert_allclose(states, x[None] * 0.75 ** np.arange(5.0)[:, None, None], atol=1e-6)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_gradients_pass_through(x, method):
    # d/dp of x(0) exp(p sin 1), by hand.
    total = lambda p: jnp.sum(ode.integrate(exact_field, p, x, nfe=400, method=method))
    expected = float(jnp.sum(x) * np.sin(1.0) * np.exp(0.7 * np.sin(1.0)))
    assert float(jax.grad(total)(0.7)) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("nfe", "method", "message"),
    [
        (0, "euler", "nfe is 0; euler spends 1 evaluations"),
        (-4, "rk4", "nfe is -4"),
        (3, "heun", "nfe is 3; heun spends 2 evaluations"),
        (6, "rk4", "nfe is 6; rk4 spends 4 evaluations"),
        (4, "leapfrog", "unknown method 'leapfrog'; choose one of euler, midpoint, heun, rk4, ab2"),
    ],
)
def test_impossible_counts_and_unknown_methods_raise(x, nfe, method, message):
    for call in (ode.integrate, ode.trajectory):
        with pytest.raises(ValueError, match=message):
            call(pendulum, 2.0, x, nfe=nfe, method=method)
    with pytest.raises(ValueError, match=message):
        ode.num_steps(nfe, method)


@all_methods
def test_an_array_of_evaluations_does_as_the_number_does(x, method):
    settings = {"t0": 0.2, "t1": 1.7, "method": method, "power": 1.5}
    counted = functools.partial(ode.integrate, pendulum, 2.0, x, **settings)
    counted(nfe=jnp.asarray(4))
    compiled = ode._count._cache_size()
    for steps in (1, 3, 10):
        nfe = steps * ode.STAGES[method]
        np.testing.assert_allclose(counted(nfe=jnp.asarray(nfe)), counted(nfe=nfe), atol=1e-5)
    assert ode._count._cache_size() == compiled


def test_an_unknown_method_is_named_for_arrays_too(x):
    with pytest.raises(ValueError, match="unknown method 'leapfrog'; choose one of euler"):
        ode.integrate(pendulum, 2.0, x, nfe=jnp.asarray(4), method="leapfrog")


@all_methods
def test_two_parts_do_as_the_whole(x, method):
    nfe = 4 * ode.STAGES[method]
    settings = {"nfe": nfe, "method": method}
    middle, last = ode.advance(pendulum, 2.0, x, None, t0=0.2, t1=0.7, **settings)
    end, _ = ode.advance(pendulum, 2.0, middle, last, t0=0.7, t1=1.2, **settings)
    whole = ode.trajectory(pendulum, 2.0, x, t0=0.2, t1=1.2, nfe=2 * nfe, method=method)
    np.testing.assert_allclose(middle, whole[4], atol=1e-6)
    np.testing.assert_allclose(end, whole[8], atol=1e-6)


def test_new_parameters_particles_and_times_do_not_recompile(x):
    def field(params, x, t):
        return params["rate"] * x

    run = functools.partial(ode.integrate, field, nfe=8, method="heun")
    run({"rate": jnp.array(1.0)}, x, t1=1.0)
    before = ode._scan._cache_size()
    for rate in (2.0, 3.0):
        run({"rate": jnp.array(rate)}, x + rate, t1=rate)
    assert ode._scan._cache_size() == before
    run({"rate": jnp.array(1.0)}, x[:3])
    assert ode._scan._cache_size() == before + 1  # or the count above would mean nothing


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_power_spaces_the_steps(x, power):
    times = 0.5 + (np.arange(5) / 4) ** power * 1.0
    expected = [np.asarray(x)]
    for here, there in itertools.pairwise(times):
        slope = pendulum(2.0, jnp.asarray(expected[-1]), jnp.full(len(x), here))
        expected.append(expected[-1] + (there - here) * np.asarray(slope))
    found = ode.trajectory(pendulum, 2.0, x, t0=0.5, t1=1.5, nfe=4, power=power)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    end = ode.integrate(pendulum, 2.0, x, t0=0.5, t1=1.5, nfe=4, power=power)
    np.testing.assert_allclose(end, expected[-1], atol=1e-5)


def test_ab2_is_of_second_order_in_unequal_steps_too(double):
    start = jnp.linspace(0.5, 2.0, 6, dtype=jnp.float64).reshape(3, 2)
    expected = start * np.exp(1.3 * np.sin(1.5))
    steps = np.array([32, 64, 128])
    ends = [
        ode.integrate(exact_field, 1.3, start, t1=1.5, nfe=int(k), method="ab2", power=2.0)
        for k in steps
    ]
    errors = [float(np.max(np.abs(end - expected))) for end in ends]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.15)


def test_ab2_begins_with_an_euler_step_and_extrapolates_from_then_on(x):
    # By hand: the velocity 2t is linear in time, which the second step onward integrates exactly.
    field = lambda params, x, t: jnp.broadcast_to(2 * t[:, None], x.shape)
    states = ode.trajectory(field, 0, x, nfe=4, method="ab2", power=2.0)
    times = (np.arange(5) / 4) ** 2
    moved = np.concatenate([[0.0], times[1:] ** 2 - times[1] ** 2])
    np.testing.assert_allclose(states, x[None] + moved[:, None, None], atol=1e-5)


def test_a_new_power_does_not_recompile_and_a_wrong_one_is_named(x):
    ode.integrate(pendulum, 2.0, x, nfe=4)
    compiled = ode._scan._cache_size()
    ode.integrate(pendulum, 2.0, x, nfe=4, power=3.0)
    assert ode._scan._cache_size() == compiled
    with pytest.raises(ValueError, match=r"power is 0\.0; it must be positive"):
        ode.integrate(pendulum, 2.0, x, nfe=4, power=0.0)


@all_methods
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("counted", [False, True])
def test_half_precision_is_integrated_in_float32_and_given_back(x, method, dtype, counted):
    seen = []

    def network(params, x, t):  # a network of float32 parameters answers in float32
        seen.extend((x.dtype, t.dtype))
        return params * x

    nfe = 4 * ode.STAGES[method]
    settings = {"nfe": jnp.asarray(nfe) if counted else nfe, "method": method, "power": 1.5}
    half = x.astype(dtype)
    expected = ode.integrate(network, 0.3, half.astype(jnp.float32), **settings)
    with jax.numpy_dtype_promotion("strict"):
        found = ode.integrate(network, jnp.float32(0.3), half, **settings)
    assert found.dtype == dtype and {*seen} == {jnp.dtype("float32")}
    # Rounded twice, at the start and at the end; a step in half precision loses more.
    np.testing.assert_array_equal(found, expected.astype(dtype))
    if not counted:
        assert ode.trajectory(network, 0.3, half, **settings).dtype == dtype


def test_a_field_in_half_precision_moves_float32_particles(x):
    field = lambda params, x, t: x.astype(jnp.bfloat16)
    for nfe in (2, jnp.asarray(2)):
        assert ode.integrate(field, 0, x, nfe=nfe, method="ab2").dtype == jnp.float32
