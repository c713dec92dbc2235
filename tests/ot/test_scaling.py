"""scaling: closed form, log domain, exact transport, gradients, underflow, identities, errors."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinkflow import Limits
from sinkflow.ot.costs import squared_euclidean
from sinkflow.ot.exact import transport_plan
from sinkflow.ot.scaling import (
    _matrix_scaling,
    entropic_objective,
    entropy,
    kl_divergence,
    matrix_scaling,
)
from sinkflow.ot.solver import sinkhorn

N, M = 13, 9
# Another assignment is cheaper, 90 against 105, but float32 loses the kernel entry that it needs.
HIDDEN = np.array([[35.0, 0.0, 99.0], [99.0, 35.0, 0.0], [90.0, 99.0, 35.0]])


def problem(key):
    """Clouds of different size and weights, two of each zero, in float64 on the host."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    x, y = rng.normal(size=(N, 2)), rng.normal(size=(M, 2)) + 1.0
    a, b = rng.uniform(0.2, 1, N), rng.uniform(0.2, 1, M)
    a[:2], b[-2:] = 0, 0
    return x, y, a / a.sum(), b / b.sum()


def arrays(key, dtype=None):
    return tuple(jnp.asarray(array, dtype or jnp.float32) for array in problem(key))


def marginal_error(plan, a, b):
    return max(np.abs(plan.sum(1) - a).sum(), np.abs(plan.sum(0) - b).sum())


def plan_of_potentials(out, x, y, a, b, epsilon):
    exponent = (out.f[:, None] + out.g[None] - squared_euclidean(x, y)) / epsilon
    return a[:, None] * b[None] * jnp.exp(exponent)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 5.0])
def test_two_points_match_closed_form(epsilon):
    cost = jnp.array([[0.0, 0.5], [0.5, 0.0]])
    out = matrix_scaling(cost, epsilon, num_iterations=3)
    kept = 0.5 / (1 + np.exp(-0.5 / epsilon))  # by hand: the mass that stays at each point
    expected = np.array([[kept, 0.5 - kept], [0.5 - kept, kept]])
    np.testing.assert_allclose(out.plan, expected, rtol=1e-5)
    np.testing.assert_allclose(out.transport_cost, 0.5 - kept, rtol=1e-5)  # twice at cost 1/2
    assert out.marginal_error < 1e-6
    assert not out.underflow
    # log(normaliser): -epsilon log of the sum of K over the plan's two free choices.
    objective = -epsilon * np.log(2 * (1 + np.exp(-0.5 / epsilon)))
    np.testing.assert_allclose(entropic_objective(cost, out.plan, epsilon), objective, rtol=1e-5)


@pytest.mark.parametrize("num_iterations", [1, 2, 7])
def test_does_the_iterations_it_is_told(key, num_iterations):
    x, y, a, b = problem(key)
    cost = 0.5 * scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    kernel, v = np.exp(-cost / 0.3), np.ones(M)
    for _ in range(num_iterations):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    plan = np.diag(u) @ kernel @ np.diag(v)
    with jax.enable_x64(True):
        arguments = jnp.asarray(cost), 0.3, jnp.asarray(a), jnp.asarray(b)
        out = jax.device_get(matrix_scaling(*arguments, num_iterations=num_iterations))
    for found, expected in ((out.u, u), (out.v, v), (out.plan, plan)):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(out.transport_cost, (plan * cost).sum(), rtol=1e-12)
    np.testing.assert_allclose(out.marginal_error, marginal_error(plan, a, b), rtol=1e-9)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-12)  # v is updated last


def test_default_weights_are_uniform(key):
    x, y, *_ = arrays(key)
    cost = squared_euclidean(x, y)
    given = matrix_scaling(cost, 1.0, jnp.full(N, 1 / N), jnp.full(M, 1 / M), num_iterations=5)
    np.testing.assert_array_equal(matrix_scaling(cost, 1.0, num_iterations=5).plan, given.plan)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("key", range(2), indirect=True)
def test_is_the_plan_of_the_log_domain(key, epsilon):
    x, y, a, b = arrays(key)
    out = matrix_scaling(squared_euclidean(x, y), epsilon, a, b, num_iterations=2_000)
    solved = sinkhorn(x, y, epsilon, a=a, b=b, limits=Limits(1e-5))
    assert solved.converged & ~out.underflow & (out.marginal_error < 1e-5)
    expected = plan_of_potentials(solved, x, y, a, b, epsilon)
    np.testing.assert_allclose(out.plan, expected, atol=1e-5)
    assert not out.plan[:2].any() and not out.plan[:, -2:].any()  # where there is no weight
    # Values too: a plan cannot see terms u(x) + v(y) of the cost.
    constant = epsilon * (entropy(a) + entropy(b))
    value = entropic_objective(squared_euclidean(x, y), out.plan, epsilon) + constant
    np.testing.assert_allclose(value, solved.value, rtol=2e-5)


def test_is_the_plan_of_the_log_domain_in_float64(key):
    with jax.enable_x64(True):
        x, y, a, b = arrays(key, jnp.float64)
        cost = squared_euclidean(x, y)
        out = matrix_scaling(cost, 0.05, a, b, num_iterations=5_000)
        solved = sinkhorn(x, y, 0.05, a=a, b=b, limits=Limits(1e-11, 100_000))
        assert solved.converged & ~out.underflow & (out.marginal_error < 1e-11)
        assert {leaf.dtype for leaf in out[:5]} == {np.dtype("float64")}
        expected = plan_of_potentials(solved, x, y, a, b, 0.05)
        np.testing.assert_allclose(out.plan, expected, atol=1e-9)
        objective = entropic_objective(cost, out.plan, 0.05)
        constant = 0.05 * (entropy(a) + entropy(b))
        np.testing.assert_allclose(objective + constant, solved.value, rtol=1e-9)


def test_tends_to_exact_transport(key):
    x, y, a, b = problem(key)
    exact_plan, exact = transport_plan(x, y, a, b)
    epsilons = np.array([1.0, 0.3, 0.1, 0.03])
    with jax.enable_x64(True):
        x, y, a, b = arrays(key, jnp.float64)
        cost = squared_euclidean(x, y)
        outs = [matrix_scaling(cost, e, a, b, num_iterations=5_000) for e in epsilons]
        outs = jax.device_get(outs)
    assert not any(out.underflow for out in outs)
    assert max(out.marginal_error for out in outs) < 1e-9
    above = np.array([out.transport_cost for out in outs]) - exact
    assert (above > -1e-9).all()
    assert (np.diff(above) < 0).all()
    # The entropic plan is optimal with its penalty, 0 <= KL(pi | a x b) <= log M.
    assert (above < epsilons * np.log(M)).all()
    assert above[-1] < 0.01 * exact
    np.testing.assert_allclose(outs[-1].plan, exact_plan, atol=0.05)


def test_tends_to_independence(key):
    x, y, a, b = arrays(key)
    out = matrix_scaling(squared_euclidean(x, y), 1e4, a, b, num_iterations=5)
    np.testing.assert_allclose(out.plan, a[:, None] * b[None], atol=1e-4)


@pytest.mark.parametrize("num_iterations", [1, 4, 50])
def test_gradient_through_the_iterations(key, num_iterations):
    """Against finite differences, also long before convergence."""
    with jax.enable_x64(True):
        x, y, a, b = arrays(key, jnp.float64)

        def of_cost(cost):
            cost = jnp.asarray(cost)  # check_grads calls with arrays of the host
            return matrix_scaling(cost, 0.5, a, b, num_iterations=num_iterations).transport_cost

        cost = squared_euclidean(x, y)
        of_points = lambda x, y: of_cost(squared_euclidean(jnp.asarray(x), jnp.asarray(y)))
        scale = jax.jit(matrix_scaling, static_argnames="num_iterations")

        def of_weights(logits):  # finite differences of weights leave those that are allowed
            a = jax.nn.softmax(logits)
            return scale(cost, 0.5, a, b, num_iterations=num_iterations).transport_cost

        logits = jnp.log(a + 0.1)
        for function, at in ((of_points, (x, y)), (of_cost, (cost,)), (of_weights, (logits,))):
            jax.test_util.check_grads(function, at, order=1, modes=("rev",), rtol=1e-6)


def test_gradient_at_convergence_is_the_envelope(key):
    """Of the regularised objective: the plan, as if it did not depend on the cost."""
    with jax.enable_x64(True):
        x, y, a, b = arrays(key, jnp.float64)

        def objective(cost):
            out = matrix_scaling(cost, 0.5, a, b, num_iterations=500)
            return entropic_objective(cost, out.plan, 0.5), out.plan

        gradient, plan = jax.grad(objective, has_aux=True)(squared_euclidean(x, y))
        np.testing.assert_allclose(gradient, plan, atol=1e-12)


def test_underflow_is_flagged_where_the_log_domain_converges(key):
    x, y, a, b = arrays(key)
    cost = squared_euclidean(x, y)
    out = matrix_scaling(cost, 0.005, num_iterations=100)
    assert out.underflow
    assert sinkhorn(x, y, 0.005).converged
    assert not matrix_scaling(cost, 1.0, num_iterations=100).underflow


@pytest.mark.parametrize("axis", [0, 1])
def test_a_row_or_column_that_is_lost_is_flagged(key, axis):
    x, y, *_ = arrays(key)
    cost = squared_euclidean(x, y)
    cost = cost.at[3].set(1e3) if axis == 0 else cost.at[:, 3].set(1e3)
    out = matrix_scaling(cost, 1.0, num_iterations=5)
    assert out.underflow
    assert not jnp.isfinite(out.transport_cost)  # and not made to look like a number


def test_lost_mass_is_flagged_although_the_marginals_agree():
    cost = jnp.asarray(HIDDEN)
    out = matrix_scaling(cost, 1.0, num_iterations=1_000)
    assert jnp.isfinite(out.plan).all() & (out.marginal_error < 1e-2)
    assert out.plan[0, 0] > 0.3  # the wrong assignment
    assert out.underflow
    with jax.enable_x64(True):
        out = matrix_scaling(jnp.asarray(HIDDEN), 1.0, num_iterations=1_000)
        assert not out.underflow
        np.testing.assert_allclose(out.plan, np.eye(3)[[1, 2, 0]] / 3, atol=0.01)


def test_entries_that_hold_nothing_may_be_lost():
    cost = 1e3 * (1 - jnp.eye(3))
    out = matrix_scaling(cost, 1.0, num_iterations=5)
    assert not out.underflow
    np.testing.assert_allclose(out.plan, np.eye(3) / 3, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, jnp.nan])
def test_wrong_epsilon_inside_a_trace_is_flagged(key, epsilon):
    x, y, *_ = arrays(key)
    cost = squared_euclidean(x, y)
    assert jax.jit(lambda e: matrix_scaling(cost, e, num_iterations=5).underflow)(epsilon)


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_cost_that_is_not_finite_is_flagged(key, wrong):
    x, y, *_ = arrays(key)
    cost = squared_euclidean(x, y).at[2, 3].set(wrong)
    assert matrix_scaling(cost, 1.0, num_iterations=5).underflow


def numbers(shape, low, high):
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, shape, elements=elements)


@settings(deadline=None, max_examples=30)
@given(numbers((N, M), 0, 10), numbers(N, 0, 1).filter(lambda a: a.sum() > 0.5), st.floats(0.02, 5))
def test_any_plan_that_is_not_flagged_is_what_its_scalings_say(cost, a, epsilon):
    a = np.asarray(a / a.sum(dtype=np.float64), np.float32)
    epsilon = float(np.float32(epsilon))
    out = matrix_scaling(jnp.asarray(cost), epsilon, jnp.asarray(a), num_iterations=20)
    out = jax.device_get(out)
    largest = cost.max() / epsilon
    assert not out.underflow or largest > 80  # flagged only where something leaves float32
    if out.underflow:
        return
    with np.errstate(divide="ignore"):
        logs = [np.log(scaling.astype(np.float64)) for scaling in (out.u, out.v)]
    truth = np.exp(logs[0][:, None] + logs[1] - cost.astype(np.float64) / epsilon)
    rounding = 4 * np.finfo(np.float32).eps * (10 + largest)
    assert np.abs(out.plan - truth).sum() < rounding
    error = marginal_error(truth, a, np.full(M, 1 / M))
    np.testing.assert_allclose(out.marginal_error, error, atol=2 * rounding)
    np.testing.assert_allclose(out.transport_cost, (truth * cost).sum(), atol=10 * rounding)


@settings(deadline=None, max_examples=30)
@given(numbers((N, M), 0, 10), numbers((N, M), 0, 1), st.floats(0.5, 5))
def test_the_objective_is_a_divergence_from_the_kernel(cost, plan, epsilon):
    """eps KL(pi | K) = <C, pi> - eps H(pi) - eps sum(pi) + eps sum(K), for any mass."""
    with jax.enable_x64(True):
        cost, plan = jnp.asarray(cost, jnp.float64), jnp.asarray(plan, jnp.float64)
        kernel = jnp.exp(-cost / epsilon)
        masses = jnp.sum(plan) - jnp.sum(kernel)
        expected = epsilon * (kl_divergence(plan, kernel) + masses)
        found = entropic_objective(cost, plan, epsilon)
        terms = jnp.sum(cost * plan) + epsilon * (jnp.sum(plan) + jnp.sum(kernel))  # which cancel
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * (1 + terms))


def test_the_divergence_from_the_product_is_an_entropy(key):
    """KL(pi | a x b) = H(a) + H(b) - H(pi) for a feasible pi, also where a weight is zero."""
    plan, _ = transport_plan(*problem(key))
    with jax.enable_x64(True):
        *_, a, b = arrays(key, jnp.float64)
        plan = jnp.asarray(plan)
        expected = entropy(a) + entropy(b) - entropy(plan)
        found = kl_divergence(plan, a[:, None] * b[None, :])
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert found > 0.5


def test_entropy_by_hand():
    np.testing.assert_allclose(entropy(jnp.full((3, 4), 1 / 12)), np.log(12), rtol=1e-6)
    assert entropy(jnp.array([0.0, 1.0, 0.0])) == 0.0
    np.testing.assert_allclose(entropy(jnp.array([0.5, 0.5, 0.0])), np.log(2), rtol=1e-6)
    gradient = jax.grad(entropy)(jnp.array([0.0, 1.0, 0.25]))
    np.testing.assert_allclose(gradient, [0.0, -1.0, np.log(4) - 1], rtol=1e-6)
    assert jnp.isnan(entropy(jnp.array([0.5, jnp.nan])))
    assert jnp.isnan(entropy(jnp.array([1.5, -0.5])))


def test_kl_divergence_by_hand():
    p, q = jnp.array([0.5, 0.0, 1.5]), jnp.array([0.25, 2.0, 1.5])
    expected = 0.5 * np.log(2) - 0.5 + 0.25 + 2.0
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-6)
    assert kl_divergence(q, q) == 0.0
    assert kl_divergence(jnp.zeros(2), jnp.zeros(2)) == 0.0
    assert kl_divergence(q, p) == jnp.inf  # p is 0 where q is not
    assert jnp.isnan(kl_divergence(jnp.array([jnp.nan]), jnp.array([1.0])))
    gradient = jax.grad(kl_divergence)(jnp.array([0.0, 0.0, 0.5]), jnp.array([0.0, 1.0, 0.25]))
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[2], np.log(2), rtol=1e-6)


GOOD = {"cost": jnp.ones((4, 3)), "epsilon": 0.1, "num_iterations": 5}
BAD_INPUT = [
    ({"cost": jnp.ones(4)}, r"cost has shape \(4,\); it is \[n, m\]"),
    ({"cost": jnp.ones((0, 3))}, r"cost has shape \(0, 3\); it is \[n, m\], not empty"),
    ({"epsilon": 0.0}, r"epsilon is 0\.0; it must be positive"),
    ({"epsilon": -0.5}, r"epsilon is -0\.5; it must be positive"),
    ({"epsilon": jnp.inf}, r"epsilon is inf; it must be positive and finite"),
    ({"epsilon": np.nan}, r"epsilon is nan; it must be positive and finite"),
    ({"num_iterations": 0}, r"num_iterations is 0; it must be an integer, at least 1"),
    ({"num_iterations": 2.5}, r"num_iterations is 2\.5; it must be an integer"),
    ({"a": jnp.ones(3) / 3}, r"a has shape \(3,\); there are 4 points"),
    ({"b": jnp.ones((3, 1)) / 3}, r"b has shape \(3, 1\); there are 3 points"),
    ({"a": jnp.array([0.5, 0.75, 0.25, -0.5])}, r"a contains -0\.5; weights are"),
    ({"b": jnp.array([0.5, 0.5, jnp.nan])}, r"b contains nan; weights are"),
    ({"b": jnp.ones(3)}, r"b sums to 3\.0; weights sum to 1"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_INPUT)
def test_bad_input_raises_at_the_call(unchecked_shapes, wrong, message):
    with pytest.raises(ValueError, match=message):
        matrix_scaling(**{**GOOD, **wrong})


def test_shapes_of_the_functionals_must_agree(unchecked_shapes):
    plan, row = jnp.ones((4, 3)), jnp.ones((1, 3))
    with pytest.raises(ValueError, match=r"differ in shape: \(4, 3\) and \(1, 3\)"):
        kl_divergence(plan, row)
    with pytest.raises(ValueError, match=r"cost and plan differ in shape: \(1, 3\) and \(4, 3\)"):
        entropic_objective(row, plan, 0.1)


def test_integer_costs_are_scaled_in_floats(unchecked_shapes):
    out = matrix_scaling(np.array([[0, 1], [1, 0]]), 0.5, num_iterations=np.int64(3))
    assert out.plan.dtype == jnp.float32
    np.testing.assert_allclose(out.plan[0, 0], 0.5 / (1 + np.exp(-2)), rtol=1e-5)


def test_the_cost_decides_the_precision(key):
    with jax.enable_x64(True):
        x, y, *_ = arrays(key)
        *_, a, b = arrays(key, jnp.float64)
        out = matrix_scaling(squared_euclidean(x, y), 1.0, a, b, num_iterations=5)
        assert {leaf.dtype for leaf in out[:5]} == {np.dtype("float32")}


def test_new_values_do_not_recompile_and_batches_are_loops(key):
    x, y, a, b = arrays(key)
    cost = squared_euclidean(x, y)
    base = matrix_scaling(cost, 1.0, a, b, num_iterations=9)
    compiled = _matrix_scaling._cache_size()
    other = matrix_scaling(cost + 1.0, 2.0, a[::-1], b, num_iterations=9)
    assert _matrix_scaling._cache_size() == compiled
    run = lambda cost, epsilon: matrix_scaling(cost, epsilon, a[::-1], b, num_iterations=9)
    batched = jax.vmap(run)(jnp.stack([cost, cost + 1.0]), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(batched.plan[1], other.plan, rtol=1e-4)
    assert not np.allclose(base.plan, other.plan, atol=1e-3)
