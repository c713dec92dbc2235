"""sinkhorn: closed form, two oracles, exact transport, laws, certificate, errors, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinkflow import Limits
from sinkflow.ot.solver import _cloud_to_cloud, _cloud_to_itself, sinkhorn, sinkhorn_self
from tests import helpers
from tests.helpers import float64, half_squares, plan

N, M = 13, 9  # every test of random clouds uses these shapes, so that they compile once
EXACT = {"limits": Limits(1e-10, 100_000)}  # in float64
# d, epsilon: from nearly a matching (0.1% of the mean cost) to nearly the product plan.
PROBLEMS = [(1, 0.005), (1, 0.1), (2, 0.02), (2, 1.0), (5, 0.02), (5, 10.0), (64, 0.1), (64, 10.0)]
DIMENSIONS = sorted({d for d, _ in PROBLEMS})


clouds = functools.partial(helpers.clouds, n=N, m=M)
weights = functools.partial(helpers.weights, n=N, m=M)


def rounding(x, y, epsilon):
    """What float32 costs leave uncertain in the marginals (an L1 norm of total mass 1)."""
    return 8 * np.finfo(np.float32).eps * (1 + half_squares(x, y).max() / epsilon)


def marginal_error(plan, a, b):
    return max(np.abs(plan.sum(1) - a).sum(), np.abs(plan.sum(0) - b).sum())


def problem(key, d):
    """Clouds and weights as float32 and as the float64 of the same numbers, sum 1 to its digits."""
    x, y = clouds(key, d)
    exact = float64(x, y, *weights(key))
    exact = (*exact[:2], exact[2] / exact[2].sum(), exact[3] / exact[3].sum())
    return tuple(jnp.asarray(array, jnp.float32) for array in exact), exact


def solve_float64(x, y, epsilon, a, b):
    with jax.enable_x64(True):
        x, y, a, b = map(jnp.asarray, (x, y, a, b))
        out = sinkhorn(x, y, epsilon, a=a, b=b, **EXACT)
        assert out.value.dtype == jnp.float64
        return jax.device_get(out)


def check_against(oracle_plan, oracle_value, key, d, epsilon):
    """Both precisions of ours, on the plan and on the value.

    The plan alone cannot see an error in the cost of the form u(x) + v(y).
    """
    (x, y, a, b), exact = problem(key, d)
    out = solve_float64(*exact[:2], epsilon, *exact[2:])
    assert out.converged
    assert np.abs(plan(*exact[:2], epsilon, out, *exact[2:]) - oracle_plan).sum() < 3e-8
    np.testing.assert_allclose(out.value, oracle_value, rtol=1e-8)

    threshold = max(1e-5, rounding(x, y, epsilon))
    out = sinkhorn(x, y, epsilon, a=a, b=b, limits=Limits(threshold))
    assert out.converged
    # A marginal error of e leaves the plan wrong by a multiple of e that grows with 1/epsilon.
    error = np.abs(plan(*exact[:2], epsilon, out, *exact[2:]) - oracle_plan).sum()
    assert error < 10 * threshold
    np.testing.assert_allclose(out.value, oracle_value, rtol=3e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_two_points_match_closed_form(epsilon):
    x = jnp.array([[0.0], [1.0]])
    out = sinkhorn(x, x, epsilon, limits=Limits(1e-6))
    kept = 0.5 / (1 + np.exp(-0.5 / epsilon))  # by hand: the mass that stays at each point
    expected = np.array([[kept, 0.5 - kept], [0.5 - kept, kept]])
    np.testing.assert_allclose(plan(x, x, epsilon, out), expected, rtol=1e-5)
    value = epsilon * (np.log(2) - np.log1p(np.exp(-0.5 / epsilon)))
    np.testing.assert_allclose(out.value, value, rtol=1e-5)


@pytest.mark.parametrize(("d", "epsilon"), PROBLEMS)
def test_matches_pot(key, d, epsilon):
    _, (x, y, a, b) = problem(key, d)
    cost = half_squares(x, y)
    with np.errstate(divide="ignore"):  # POT takes the logarithm of zero weights
        expected, log = ot.bregman.sinkhorn_log(
            a, b, cost, epsilon, numItermax=20_000, stopThr=1e-10, log=True
        )
    assert marginal_error(expected, a, b) < 1e-9
    divergence = scipy.special.rel_entr(expected, np.outer(a, b)).sum()
    value = (expected * cost).sum() + epsilon * divergence
    check_against(expected, value, key, d, epsilon)


@pytest.mark.parametrize(("d", "epsilon"), [(1, 0.005), (2, 0.02), (5, 0.02), (64, 10.0)])
def test_matches_ott(key, d, epsilon):
    from ott.geometry import pointcloud  # takes seconds to import
    from ott.solvers import linear

    _, (x, y, a, b) = problem(key, d)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):  # OTT relies on the latter
        x, y, a, b = map(jnp.asarray, (x, y, a, b))
        # OTT's SqEuclidean has no factor one half: its epsilon and value are doubled.
        geom = pointcloud.PointCloud(x, y, epsilon=2 * epsilon)
        oracle = linear.solve(geom, a=a, b=b, threshold=1e-10, max_iterations=20_000)
        assert oracle.converged
        expected, value = np.asarray(oracle.matrix), float(oracle.reg_ot_cost) / 2
    assert expected.dtype == np.float64
    check_against(expected, value, key, d, epsilon)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_value_tends_to_exact_transport(key, d):
    _, (x, y, a, b) = problem(key, d)
    cost = half_squares(x, y)
    exact = ot.emd2(a, b, cost)
    epsilons = np.array([1.0, 0.1, 0.01, 0.001]) * cost.mean()
    values = np.array([solve_float64(x, y, epsilon, a, b).value for epsilon in epsilons])
    # KL(pi | a x b) is between 0 and the entropy of the smaller marginal, at most log M.
    assert (values > exact - 1e-9).all()
    assert (values < exact + epsilons * np.log(M)).all()
    assert (np.diff(values) < 0).all()
    assert values[-1] - exact < 0.02 * exact


def test_value_tends_to_the_mean_cost(key):
    (x, y, a, b), (*exact, a64, b64) = problem(key, 2)
    out = sinkhorn(x, y, 1e3, a=a, b=b, limits=Limits(1e-6))
    np.testing.assert_allclose(plan(*exact, 1e3, out, a64, b64), np.outer(a64, b64), atol=1e-3)
    np.testing.assert_allclose(out.value, a64 @ half_squares(*exact) @ b64, rtol=2e-3)


@pytest.mark.parametrize("d", [2, 64])
def test_zero_weights_are_absent_points(key, d):
    (x, y, a, b), _ = problem(key, d)
    out = sinkhorn(x, y, 0.2 * d, a=a, b=b, limits=Limits(1e-5))
    # Points of no mass at a great distance change neither the plan nor the certificate.
    distance = 1e3 / d  # beyond d = 5 the costs lose digits with the square of the extent
    far_x, far_y = x.at[:2].set(distance), y.at[-2:].set(-distance)
    far = sinkhorn(far_x, far_y, 0.2 * d, a=a, b=b, limits=Limits(1e-5))
    alone = sinkhorn(x[2:], y[:-2], 0.2 * d, a=a[2:], b=b[:-2], limits=Limits(1e-5))
    assert out.converged & far.converged & alone.converged
    expected = plan(x[2:], y[:-2], 0.2 * d, alone, a[2:], b[:-2])
    for other in (out, far):
        cut = alone._replace(f=other.f[2:], g=other.g[:-2])
        found = plan(x[2:], y[:-2], 0.2 * d, cut, a[2:], b[:-2])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(other.value, alone.value, rtol=1e-5)
        assert jnp.isfinite(other.f).all()
        assert jnp.isfinite(other.g).all()


def test_translations(key):
    x, y = clouds(key)
    shift = jnp.array([[3.0, -2.0]])
    base = sinkhorn(x, y, 0.1, limits=Limits(1e-5))
    both = sinkhorn(x + shift, y + shift, 0.1, limits=Limits(1e-5))
    np.testing.assert_allclose(plan(x, y, 0.1, both), plan(x, y, 0.1, base), atol=1e-5)
    np.testing.assert_allclose(both.value, base.value, rtol=1e-5)
    # Moving one cloud adds terms u(x) + v(y) to the cost: same plan, known value.
    one = sinkhorn(x, y + shift, 0.1, limits=Limits(1e-5))
    moved = plan(x, y + shift, 0.1, one)
    np.testing.assert_allclose(moved, plan(x, y, 0.1, base), atol=1e-5)
    change = jnp.sum(shift[0] * (y.mean(0) - x.mean(0) + 0.5 * shift[0]))
    np.testing.assert_allclose(one.value, base.value + change, rtol=1e-5)


@pytest.mark.parametrize("key", range(3), indirect=True)
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_potentials_scale_with_length_squared(key, scale):
    x, y = clouds(key)
    base = sinkhorn(x, y, 0.1, limits=Limits(1e-5))
    scaled = sinkhorn(scale * x, scale * y, scale**2 * 0.1, limits=Limits(1e-5))
    assert base.converged & scaled.converged
    sums = (out.f[:, None] + out.g[None, :] for out in (base, scaled))  # free of the constant
    expected, found = (np.asarray(value) for value in sums)
    np.testing.assert_allclose(found / scale**2, expected, atol=1e-4)
    np.testing.assert_allclose(scaled.value, scale**2 * base.value, rtol=1e-5)


def test_order_of_points_and_of_clouds_does_not_matter(key):
    (x, y, a, b), _ = problem(key, 2)
    order = jax.random.permutation(key, M)
    base = sinkhorn(x, y, 0.1, a=a, b=b, limits=Limits(1e-5))
    expected = plan(x, y, 0.1, base, a, b)
    permuted = sinkhorn(x, y[order], 0.1, a=a, b=b[order], limits=Limits(1e-5))
    found = plan(x, y[order], 0.1, permuted, a, b[order])
    np.testing.assert_allclose(found, expected[:, order], atol=1e-5)
    swapped = sinkhorn(y, x, 0.1, a=b, b=a, limits=Limits(1e-5))
    np.testing.assert_allclose(plan(y, x, 0.1, swapped, b, a), expected.T, atol=1e-5)
    np.testing.assert_allclose([permuted.value, swapped.value], base.value, rtol=1e-5)


def test_a_constant_in_the_potentials_changes_nothing(key):
    x, y = clouds(key)
    base = sinkhorn(x, y, 0.1, limits=Limits(1e-5))
    shifted = sinkhorn(x, y, 0.1, g_init=base.g + 100.0, limits=Limits(1e-5))
    assert shifted.num_iterations < base.num_iterations
    np.testing.assert_allclose(plan(x, y, 0.1, shifted), plan(x, y, 0.1, base), atol=1e-4)
    np.testing.assert_allclose(shifted.value, base.value, rtol=1e-4)


def test_duplicated_points_share_their_weight(key):
    x, y = clouds(key)
    a = jnp.full(N, 1 / (N - 1)).at[:2].set(0.5 / (N - 1))
    doubled = x.at[1].set(x[0])
    single = sinkhorn(doubled[1:], y, 0.1, limits=Limits(1e-5))
    out = sinkhorn(doubled, y, 0.1, a=a, limits=Limits(1e-5))
    assert out.converged & single.converged
    found = plan(doubled, y, 0.1, out, a)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    merged = np.concatenate([found[:1] + found[1:2], found[2:]])
    np.testing.assert_allclose(merged, plan(doubled[1:], y, 0.1, single), atol=1e-5)
    np.testing.assert_allclose(out.value, single.value, rtol=1e-5)


def test_one_place_costs_nothing():
    x = jnp.ones((N, 2))
    for out in (sinkhorn(x, x[:M], 0.1), sinkhorn_self(x, 0.1)):
        assert out.converged
        np.testing.assert_allclose(out.value, 0.0, atol=1e-6)


def test_a_single_point_pays_the_mean_cost(key):
    x, y = clouds(key)
    out = sinkhorn(x[:1], y, 0.1)
    assert out.converged
    np.testing.assert_allclose(out.value, half_squares(x[:1], y).mean(), rtol=1e-5)
    np.testing.assert_allclose(plan(x[:1], y, 0.1, out), np.full((1, M), 1 / M), rtol=1e-4)
    out = sinkhorn(x[:1], y[:1], 0.1)
    assert out.converged
    np.testing.assert_allclose(out.value, half_squares(x, y)[0, 0], rtol=1e-6)


@pytest.mark.parametrize("max_iterations", [5, 20, 50, 5_000])
@pytest.mark.parametrize(("d", "epsilon"), [(2, 0.02), (2, 0.5), (64, 1.0)])
def test_certificate_is_the_error_of_the_returned_potentials(key, d, epsilon, max_iterations):
    (x, y, a, b), exact = problem(key, d)
    out = sinkhorn(x, y, epsilon, a=a, b=b, limits=Limits(max_iterations=max_iterations))
    truth = marginal_error(plan(*exact[:2], epsilon, out, *exact[2:]), *exact[2:])
    np.testing.assert_allclose(out.marginal_error, truth, atol=rounding(x, y, epsilon))
    assert out.converged == (out.marginal_error <= 1e-3)


@pytest.mark.parametrize("max_iterations", [5, 5_000])
@pytest.mark.parametrize("epsilon", [0.02, 0.5])
def test_certificate_of_the_self_solve(key, epsilon, max_iterations):
    (x, _, a, _), (exact, _, a64, _) = problem(key, 2)
    out = sinkhorn_self(x, epsilon, a=a, limits=Limits(1e-4, max_iterations))
    found = plan(exact, exact, epsilon, out, a64, a64)
    truth = marginal_error(found, a64, a64)
    np.testing.assert_allclose(out.marginal_error, truth, atol=rounding(x, x, epsilon))
    assert out.converged == (max_iterations > 5) == (truth < 1e-4)
    # The dual objective: a total mass that is off must not enter the value to first order.
    dual = 2 * a64 @ float64(out.f)[0] - epsilon * (found.sum() - 1)
    np.testing.assert_allclose(out.value, dual, rtol=1e-6, atol=1e-6 * epsilon)


def test_too_few_iterations_are_reported_everywhere(key):
    x, y = clouds(key)
    epsilons = jnp.array([0.01, 0.02, 10.0])  # the last one converges at once
    solve = lambda epsilon: sinkhorn(x, y, epsilon, limits=Limits(max_iterations=10)).converged
    expected = [False, False, True]
    assert [bool(solve(epsilon)) for epsilon in epsilons] == expected
    assert jax.vmap(solve)(epsilons).tolist() == expected
    scanned = jax.lax.scan(lambda carry, epsilon: (carry, solve(epsilon)), 0, epsilons)[1]
    assert scanned.tolist() == expected
    assert not sinkhorn_self(x, 0.01, limits=Limits(1e-6, 5)).converged


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_input_that_is_not_finite_is_reported_not_hidden(key, wrong):
    x, y = clouds(key)
    broken_x, broken_y = x.at[0, 0].set(wrong), y.at[0, 0].set(wrong)
    # One point of little mass must not pass below the threshold either.
    a = jnp.full(N, 1e-6).at[1:].set((1 - 1e-6) / (N - 1))
    outs = [
        sinkhorn(broken_x, y, 0.1, a=a),
        sinkhorn(x, broken_y, 0.1),
        sinkhorn_self(broken_x, 0.1),
    ]
    for out in outs:
        assert not out.converged
        assert not out.marginal_error < 1e-3
        assert out.num_iterations <= 10  # and it does not burn the cap first


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, jnp.nan, jnp.inf])
def test_wrong_epsilon_inside_a_trace_is_data_and_the_solve_ends(key, epsilon):
    x, y = clouds(key)
    solves = jax.jit(lambda value: (sinkhorn(x, y, value), sinkhorn_self(x, value)))
    for out in solves(epsilon):
        assert not out.converged
        assert out.num_iterations <= 10


def test_warm_start_is_faster(key):
    x, y = clouds(key)
    moved = x + 0.02 * jax.random.normal(key, x.shape)
    cold = sinkhorn(moved, y, 0.02, limits=Limits(1e-4))
    warm = sinkhorn(moved, y, 0.02, g_init=sinkhorn(x, y, 0.02).g, limits=Limits(1e-4))
    assert cold.converged & warm.converged
    assert warm.num_iterations < 0.7 * cold.num_iterations
    np.testing.assert_allclose(plan(moved, y, 0.02, warm), plan(moved, y, 0.02, cold), atol=2e-4)
    # From its own solution a solve has nothing left to do but to measure.
    again = sinkhorn(x, y, 0.02, g_init=sinkhorn(x, y, 0.02).g)
    assert again.converged & (again.num_iterations == 0)
    own = sinkhorn_self(x, 0.02)
    again = sinkhorn_self(x, 0.02, f_init=own.f)
    assert again.converged & (again.num_iterations == 0)


@pytest.mark.parametrize("epsilon", [0.02, 1.0])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, jnp.inf, jnp.nan])
def test_useless_initial_potentials_cost_nothing(key, epsilon, size):
    x, y = clouds(key)
    noise = size * jax.random.normal(key, (N,))
    pairs = [
        (sinkhorn(x, y, epsilon), sinkhorn(x, y, epsilon, g_init=noise[:M])),
        (sinkhorn_self(x, epsilon), sinkhorn_self(x, epsilon, f_init=noise)),
    ]
    for cold, started in pairs:
        assert started.converged
        assert started.num_iterations <= 1.5 * cold.num_iterations
        np.testing.assert_allclose(started.value, cold.value, rtol=1e-3)


@pytest.mark.parametrize("epsilon", [0.02, 0.5])
def test_self_solve_is_the_solve_with_itself(key, epsilon):
    (x, _, a, _), (exact, _, a64, _) = problem(key, 2)
    one = sinkhorn_self(x, epsilon, a=a, limits=Limits(2e-5))
    # With costs of up to 320 epsilon float32 leaves two potentials an error of 2e-5, which one
    # potential, with the zeros of its costs exact, does not meet.
    two = sinkhorn(x, x, epsilon, a=a, b=a, limits=Limits(1e-4))
    assert one.converged & two.converged
    np.testing.assert_array_equal(one.f, one.g)
    np.testing.assert_allclose(one.value, two.value, rtol=1e-4)
    plans = (plan(exact, exact, epsilon, out, a64, a64) for out in (one, two))
    np.testing.assert_allclose(*plans, atol=1e-4)


def test_float64_under_x64(key):
    _, (x, y, a, b) = problem(key, 2)
    with jax.enable_x64(True):
        device_x, device_a = jnp.asarray(x), jnp.asarray(a)
        outs = [
            sinkhorn(device_x, jnp.asarray(y), 0.02, a=device_a, b=jnp.asarray(b), **EXACT),
            sinkhorn_self(device_x, 0.02, a=device_a, **EXACT),
        ]
    for out, other, masses in zip(outs, (y, x), (b, a), strict=True):
        assert {out.f.dtype, out.g.dtype, out.value.dtype, out.marginal_error.dtype} == {
            np.dtype("float64")
        }
        assert out.converged
        assert marginal_error(plan(x, other, 0.02, out, a, masses), a, masses) < 1e-10


def test_vmap_equals_a_loop(key):
    keys = jax.random.split(key, 3)
    xs, ys = jax.vmap(clouds)(keys)
    # Clouds of a batch stop one by one: the widest takes most iterations.
    xs = xs * jnp.array([0.3, 1.0, 3.0])[:, None, None]
    batched = jax.vmap(lambda x, y: sinkhorn(x, y, 0.1, limits=Limits(1e-4)))(xs, ys)
    looped = [sinkhorn(x, y, 0.1, limits=Limits(1e-4)) for x, y in zip(xs, ys, strict=True)]
    for index, single in enumerate(looped):
        out = jax.tree.map(lambda leaf, index=index: leaf[index], batched)
        assert out.num_iterations == single.num_iterations
        assert out.converged
        np.testing.assert_allclose(out.f, single.f, atol=1e-4)
        np.testing.assert_allclose(out.g, single.g, atol=1e-4)
        np.testing.assert_allclose(out.value, single.value, rtol=1e-5)
    assert len({int(single.num_iterations) for single in looped}) > 1


def test_integer_clouds_are_solved_in_floats(unchecked_shapes):
    out = sinkhorn(np.array([[0], [2]]), np.array([[0], [2]]), 0.1)
    assert out.value.dtype == jnp.float32
    np.testing.assert_allclose(out.value, 0.1 * np.log(2), rtol=1e-3)


BAD_INPUT = [
    ({"x": jnp.zeros(4)}, r"x has shape \(4,\); a cloud is \[points, dimension\]"),
    ({"y": jnp.zeros((1, 3, 2))}, r"y has shape \(1, 3, 2\); a cloud is"),
    ({"y": jnp.zeros((3, 5))}, r"x and y differ in dimension: \(4, 2\) and \(3, 5\)"),
    ({"x": jnp.zeros((0, 2))}, r"x has shape \(0, 2\): the cloud is empty"),
    ({"y": jnp.zeros((0, 2))}, r"y has shape \(0, 2\): the cloud is empty"),
    ({"epsilon": 0.0}, r"epsilon is 0\.0; it must be positive"),
    ({"epsilon": -0.5}, r"epsilon is -0\.5; it must be positive"),
    ({"epsilon": np.nan}, r"epsilon is nan; it must be positive and finite"),
    ({"epsilon": jnp.inf}, r"epsilon is inf; it must be positive and finite"),
    ({"a": jnp.array([0.5, 0.75, 0.25, -0.5])}, r"a contains -0\.5; weights are"),
    ({"a": jnp.array([0.5, 0.5, 0.0, jnp.nan])}, r"a contains nan; weights are"),
    ({"b": jnp.array([0.5, 0.5, jnp.inf])}, r"b contains inf; weights are"),
    ({"a": jnp.ones(4)}, r"a sums to 4\.0; weights sum to 1"),
    ({"b": jnp.zeros(3)}, r"b sums to 0\.0; weights sum to 1"),
    ({"a": jnp.ones(3) / 3}, r"a has shape \(3,\); there are 4 points"),
    ({"b": jnp.ones((3, 1)) / 3}, r"b has shape \(3, 1\); there are 3 points"),
    ({"g_init": jnp.zeros(4)}, r"g_init has shape \(4,\); y needs \(3,\)"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_INPUT)
def test_bad_input_raises_at_the_call(unchecked_shapes, wrong, message):
    good = {"x": jnp.zeros((4, 2)), "y": jnp.ones((3, 2)), "epsilon": 0.1}
    with pytest.raises(ValueError, match=message):
        sinkhorn(**{**good, **wrong})


def test_bad_input_of_the_self_solve_raises(unchecked_shapes):
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match=r"epsilon is -1\.0; it must be positive"):
        sinkhorn_self(x, -1.0)
    with pytest.raises(ValueError, match=r"a sums to 4\.0"):
        sinkhorn_self(x, 0.1, a=jnp.ones(4))
    with pytest.raises(ValueError, match=r"f_init has shape \(3,\); x needs \(4,\)"):
        sinkhorn_self(x, 0.1, f_init=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(4,\)"):
        sinkhorn_self(jnp.zeros(4), 0.1)


def test_shapes_are_checked_under_jit_too(unchecked_shapes):
    with pytest.raises(ValueError, match="differ in dimension"):
        jax.jit(lambda x, y: sinkhorn(x, y, 0.1).value)(jnp.zeros((4, 2)), jnp.zeros((4, 3)))


def test_new_values_do_not_recompile(key):
    (x, y, a, b), _ = problem(key, 2)
    g = jnp.zeros(M)
    sinkhorn(x, y, 0.1), sinkhorn(x, y, 0.1, g_init=g), sinkhorn_self(x, 0.1)
    compiled = _cloud_to_cloud._cache_size(), _cloud_to_itself._cache_size()
    sinkhorn(x + 1.0, y, 0.2)
    sinkhorn(x, y, 0.3, a=a, b=b, limits=Limits(1e-2, 7))
    sinkhorn(x, y, 0.4, g_init=g + 1.0, limits=Limits(1e-4))
    sinkhorn_self(x, 0.2, a=a, limits=Limits(1e-2, 9))
    assert (_cloud_to_cloud._cache_size(), _cloud_to_itself._cache_size()) == compiled


def points(n):
    coordinates = st.floats(-3, 3, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, (n, 2), elements=coordinates)


masses = hnp.arrays(np.float32, N, elements=st.floats(0, 1, width=32, allow_subnormal=False))


@settings(deadline=None, max_examples=20)
@given(points(N), points(M), masses.filter(lambda a: a.sum() > 0.5), st.floats(0.1, 10))
def test_any_solve_is_certified_and_bounded(x, y, a, epsilon):
    x, y = jnp.asarray(x), jnp.asarray(y)
    exact_a, exact_b = a / a.sum(dtype=np.float64), np.full(M, 1 / M)
    out = sinkhorn(x, y, epsilon, a=jnp.asarray(exact_a, jnp.float32))
    tolerance = rounding(x, y, epsilon)
    truth = marginal_error(plan(x, y, epsilon, out, exact_a, exact_b), exact_a, exact_b)
    np.testing.assert_allclose(out.marginal_error, truth, atol=tolerance)
    assert out.converged
    cost = half_squares(x, y)
    exact = ot.emd2(exact_a, exact_b, cost)
    # The dual value of a solve that stops early is below the optimum, by less than the
    # certificate times the spread of the potentials, which the costs bound.
    slack = float(out.marginal_error) * cost.max() + tolerance * epsilon
    assert exact - slack <= out.value <= exact + epsilon * np.log(M) + slack
    assert out.value <= exact_a @ cost @ exact_b + slack  # the product plan is feasible
