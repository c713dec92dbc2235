"""general: ott-jax behind our signature: our own solver, POT, derivatives, soft marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

from sinkflow import Limits, general, sinkhorn, sinkhorn_divergence

N, M = 9, 7
EXACT = {"limits": Limits(1e-9, 20_000)}


@pytest.fixture
def problem(key):
    """Clouds and weights in float64, one weight zero."""
    keys = jax.random.split(key, 4)
    with jax.enable_x64(True):
        x = jax.random.normal(keys[0], (N, 2), jnp.float64)
        y = jax.random.normal(keys[1], (M, 2), jnp.float64) + 1.0
        a = jax.random.uniform(keys[2], N, jnp.float64, 0.2)
        b = jax.random.uniform(keys[3], M, jnp.float64, 0.2).at[0].set(0.0)
        yield x, y, a / a.sum(), b / b.sum()


def manhattan(x, y):
    return jnp.sum(jnp.abs(x - y))


@pytest.mark.slow
def test_agrees_with_our_solver_on_our_cost(problem):
    x, y, a, b = problem
    ours = sinkhorn(x, y, 0.2, a=a, b=b, **EXACT)
    theirs = general.sinkhorn(x, y, 0.2, a=a, b=b, **EXACT)
    assert ours.converged & theirs.converged
    shift = ours.f[0] - theirs.f[0]
    np.testing.assert_allclose(theirs.f + shift, ours.f, atol=1e-7)
    np.testing.assert_allclose(theirs.g - shift, ours.g, atol=1e-7)  # also where b is 0
    for name in ("value", "entropy", "neighbours", "diagonal_mass"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), rtol=1e-6)
    expected, _ = sinkhorn_divergence(x, y, 0.2, a=a, b=b, **EXACT)
    found, converged = general.sinkhorn_divergence(x, y, 0.2, a=a, b=b, **EXACT)
    assert converged
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("cost_fn", [general.euclidean, manhattan])
def test_other_costs_match_pot(problem, cost_fn):
    x, y, a, b = problem
    metric = {general.euclidean: "euclidean", manhattan: "cityblock"}[cost_fn]
    cost = ot.dist(np.asarray(x), np.asarray(y), metric)
    keep = np.asarray(b) > 0
    a64, b64 = np.asarray(a), np.asarray(b)[keep]
    plan = ot.bregman.sinkhorn_log(a64, b64, cost[:, keep], 0.3, stopThr=1e-11)
    expected = np.sum(plan * cost[:, keep])
    masses = np.outer(a64, b64)
    expected += 0.3 * np.sum(plan * np.log(plan / masses))
    out = general.sinkhorn(x, y, 0.3, a=a, b=b, cost_fn=cost_fn, **EXACT)
    assert out.converged
    np.testing.assert_allclose(out.value, expected, rtol=1e-7)


@pytest.mark.parametrize("penalty", [0.5, 5.0])
def test_soft_marginals_match_pot(problem, penalty):
    x, y, a, b = problem
    a, b = 1.3 * a, b[1:]
    y = y[1:]
    cost = 0.5 * ((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2).sum(-1)
    options = {"reg_type": "kl", "stopThr": 1e-12, "numItermax": 20_000}
    plan = ot.unbalanced.sinkhorn_unbalanced(
        np.asarray(a), np.asarray(b), cost, 0.3, penalty, **options
    )
    out = general.sinkhorn(x, y, 0.3, a=a, b=b, marginal_penalty=penalty, **EXACT)
    assert out.converged
    found = jnp.exp((out.f[:, None] + out.g[None] - cost) / 0.3) * a[:, None] * b[None]
    np.testing.assert_allclose(found, plan, atol=1e-7)

    def generalised_kl(p, q):
        return float(np.sum(p * np.log(p / q) - p + q))

    primal = np.sum(plan * cost) + 0.3 * generalised_kl(plan, np.outer(a, b))
    primal += penalty * generalised_kl(plan.sum(1), np.asarray(a))
    primal += penalty * generalised_kl(plan.sum(0), np.asarray(b))
    np.testing.assert_allclose(out.value, primal, rtol=1e-6)


def test_hard_marginals_are_the_limit_of_soft_ones(problem):
    x, y, a, b = problem
    hard = general.sinkhorn(x, y, 0.3, a=a, b=b, **EXACT).value
    gaps = [
        float(hard - general.sinkhorn(x, y, 0.3, a=a, b=b, marginal_penalty=p, **EXACT).value)
        for p in (1.0, 10.0, 100.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.02 * hard


@pytest.mark.parametrize("penalty", [None, 2.0])
@pytest.mark.parametrize("cost_fn", [general.half_squares, general.euclidean])
@pytest.mark.slow
def test_gradient_is_the_central_difference(key, problem, penalty, cost_fn):
    x, y, a, b = problem

    def value(x, epsilon):
        out = general.sinkhorn_divergence(
            x, y, epsilon, a=a, b=b, cost_fn=cost_fn, marginal_penalty=penalty, **EXACT
        )
        return out[0]

    move, step = jax.random.normal(key, x.shape), 1e-4
    ahead, behind = (value(x + s * move, 0.3 + s) for s in (step, -step))
    gradient, in_epsilon = jax.grad(value, (0, 1))(x, 0.3)
    found = jnp.sum(gradient * move) + in_epsilon
    np.testing.assert_allclose(found, (ahead - behind) / (2 * step), rtol=1e-5)


def test_divergence_between_different_masses_vanishes_only_at_equality(problem):
    x, _, a, _ = problem
    options = {"marginal_penalty": 1.0, **EXACT}
    same, _ = general.sinkhorn_divergence(x, x, 0.3, a=a, b=a, **options)
    np.testing.assert_allclose(same, 0.0, atol=1e-8)
    more, _ = general.sinkhorn_divergence(x, x, 0.3, a=a, b=1.5 * a, **options)
    assert more > 1e-3


def test_too_few_iterations_are_reported(problem):
    x, y, _, _ = problem
    out = general.sinkhorn(x, y, 0.01, limits=Limits(max_iterations=10))
    assert not out.converged
    assert out.marginal_error > 1e-3
    soft = general.sinkhorn(x, y, 0.01, marginal_penalty=10.0, limits=Limits(max_iterations=10))
    assert not soft.converged


def test_bad_input_is_named(problem, unchecked_shapes):
    x, y, a, _ = problem
    with pytest.raises(ValueError, match=r"marginal_penalty is -1\.0; it must be positive"):
        general.sinkhorn(x, y, 0.1, marginal_penalty=-1.0)
    with pytest.raises(ValueError, match=r"a sums to 2\.0"):
        general.sinkhorn(x, y, 0.1, a=2.0 * a)
    with pytest.raises(ValueError, match=r"differ in dimension"):
        general.sinkhorn(x, jnp.zeros((3, 3)), 0.1)
    with pytest.raises(ValueError, match="epsilon or marginal_penalty is traced"):
        jax.jit(lambda e: general.sinkhorn(x, y, e, marginal_penalty=1.0).value)(0.1)
    with pytest.raises(ValueError, match=r"epsilon is 0\.0"):
        general.sinkhorn(x, y, 0.0)
