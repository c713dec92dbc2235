"""matrix: entropic solves of given costs against POT, OTT, exact transport and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.special

import sinkflow
from sinkflow import Limits, sinkhorn, sinkhorn_matrix
from tests.helpers import half_squares

N, M = 9, 6  # random problems have these shapes, so that they compile once
EXACT = {"limits": Limits(1e-11, 100_000)}  # in float64
MASSES = [1.0, 7.3, 1e-3]
SCALES = [1.0, 1e6, 1e-6]
ROUNDING = float(np.finfo(np.float32).eps)
UNROLLED = {"gradient": "unrolled", "limits": Limits(1e-11, 400)}
GRADIENTS = {
    "envelope": EXACT,
    "implicit": {"gradient": "implicit", **EXACT},
    "unrolled": UNROLLED,
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def weights(rng, count, mass):
    drawn = rng.uniform(0.1, 1, count)
    return mass * drawn / drawn.sum()


def problem(seed=0, mass=1.0, scale=1.0, shape=(N, M)):
    """Costs of both signs and weights of one mass, in float64."""
    rng = np.random.default_rng(seed)
    cost = scale * rng.normal(size=shape)
    return cost, weights(rng, shape[0], mass), weights(rng, shape[1], mass)


def plan(cost, epsilon, out, a, b):
    """What the documentation says that the potentials stand for, in float64."""
    f, g = np.asarray(out.f, np.float64), np.asarray(out.g, np.float64)
    exponent = (f[:, None] + g[None] - np.asarray(cost, np.float64)) / epsilon
    masses = np.outer(a, b)
    return masses * np.exp(np.where(masses > 0, exponent, 0))


def objective(cost, epsilon, plan, a, b):
    """<C, pi> + epsilon KL(pi | a x b / mass) of a plan with these marginals."""
    ratio = plan * np.sum(a) / np.where(plan > 0, np.outer(a, b), 1)
    return np.sum(plan * cost) + epsilon * np.sum(scipy.special.xlogy(plan, ratio))


def entropy(weights):
    shares = weights / np.sum(weights)
    return scipy.special.entr(shares).sum()


def marginal_error(plan, a, b):
    """The larger L1 error as a share of the mass."""
    return max(np.abs(plan.sum(1) - a).sum(), np.abs(plan.sum(0) - b).sum()) / np.sum(a)


def solve(cost, epsilon, a=None, b=None, **options):
    """As users call it, with NumPy's arrays; annotations know those of jax."""
    arrays = (None if array is None else jnp.asarray(array) for array in (a, b))
    return sinkhorn_matrix(jnp.asarray(cost), epsilon, *arrays, **options)


def solved(cost, epsilon, a=None, b=None, **options):
    out = solve(cost, epsilon, a, b, **{**EXACT, **options})
    assert out.converged
    return out


# Other libraries.


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("shape", [(N, M), (M, N)])
def test_agrees_with_pot(x64, mass, scale, shape):
    cost, a, b = problem(1, mass, scale, shape)
    for epsilon in (0.1 * scale, 2.0 * scale):
        out = solved(cost, epsilon, a, b)
        options = {"method": "sinkhorn_log", "stopThr": 1e-13, "numItermax": 100_000}
        expected = mass * ot.sinkhorn(a / mass, b / mass, cost / scale, epsilon / scale, **options)
        np.testing.assert_allclose(plan(cost, epsilon, out, a, b), expected, atol=1e-9 * mass)
        value = objective(cost, epsilon, expected, a, b)
        np.testing.assert_allclose(out.value, value, rtol=1e-9, atol=1e-9 * mass * scale)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_ott(x64, seed):
    from ott.geometry import geometry
    from ott.solvers import linear

    cost, a, b = problem(seed)
    out = solved(cost, 0.2, a, b)
    with jax.numpy_rank_promotion("allow"):
        theirs = linear.solve(
            geometry.Geometry(cost_matrix=jnp.asarray(cost), epsilon=0.2),
            a=jnp.asarray(a),
            b=jnp.asarray(b),
            threshold=1e-11,
            max_iterations=100_000,
        )
        assert theirs.converged
        np.testing.assert_allclose(plan(cost, 0.2, out, a, b), theirs.matrix, atol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-2, 0.3, 1e4])
def test_agrees_with_the_solver_of_clouds(x64, key, epsilon):
    keys = jax.random.split(key)
    x, y = jax.random.normal(keys[0], (N, 2)), jax.random.normal(keys[1], (M, 2)) + 3.0
    _, a, b = problem()
    clouds = sinkhorn(x, y, epsilon, a=jnp.asarray(a), b=jnp.asarray(b), **EXACT)
    out = solved(half_squares(x, y), epsilon, a, b)
    shift = out.f[0] - clouds.f[0]
    np.testing.assert_allclose(out.f - shift, clouds.f, atol=1e-8 * max(1, epsilon))
    np.testing.assert_allclose(out.g + shift, clouds.g, atol=1e-8 * max(1, epsilon))
    for name in ("value", "entropy", "neighbours", "diagonal_mass"):
        found, expected = getattr(out, name), getattr(clouds, name)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("mass", MASSES)
def test_small_epsilons_end_at_exact_transport(x64, mass):
    """0 <= W_epsilon - W_0 <= epsilon mass min(H(a), H(b)): the plan's mutual information."""
    cost, a, b = problem(2, mass)
    exact = ot.emd2(a, b, cost)
    largest = np.abs(cost).max()
    for epsilon in (1.0, 0.1, 1e-2, 1e-3):
        out = solved(cost, epsilon, a, b, limits=Limits(1e-8, 1_000_000))
        certified = mass * float(out.marginal_error) * (largest + epsilon)
        bound = epsilon * mass * min(entropy(a), entropy(b))
        assert -certified <= float(out.value) - exact <= bound + certified
    assert bound < 2e-3 * mass


# Laws.


@pytest.mark.parametrize("mass", MASSES)
def test_value_and_plan_scale_with_the_mass(x64, mass):
    cost, a, b = problem(3)
    unit, out = solved(cost, 0.1, a, b), solved(cost, 0.1, mass * a, mass * b)
    np.testing.assert_allclose(out.value, mass * unit.value, rtol=1e-9)
    expected = mass * plan(cost, 0.1, unit, a, b)
    found = plan(cost, 0.1, out, mass * a, mass * b)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    for name in ("entropy", "neighbours", "diagonal_mass"):  # these are shares
        np.testing.assert_allclose(getattr(out, name), getattr(unit, name), rtol=1e-8)
    dual = np.sum(mass * a * out.f) + np.sum(mass * b * out.g) + 0.1 * mass * np.log(mass)
    np.testing.assert_allclose(out.value, dual, rtol=1e-9)


def test_one_given_side_sets_the_mass_of_the_other(x64):
    cost, a, b = problem(3, 7.3)
    uniform = np.full(M, 7.3 / M)
    assert solved(cost, 0.1, a).value == solved(cost, 0.1, a, uniform).value
    transposed = solved(cost.T, 0.1, None, a)
    np.testing.assert_allclose(transposed.value, solved(cost, 0.1, a).value, rtol=1e-9)
    neither = solved(cost, 0.1)
    both = solved(cost, 0.1, np.full(N, 1 / N), np.full(M, 1 / M))
    np.testing.assert_allclose(neither.value, both.value, rtol=1e-12)


def test_offsets_of_rows_and_columns_change_no_plan(x64):
    cost, a, b = problem(4)
    rows, columns = 1e4 * np.arange(N), -1e5 * np.arange(M)
    unit, out = solved(cost, 0.1, a, b), solved(cost + rows[:, None] + columns, 0.1, a, b)
    shifted = plan(cost + rows[:, None] + columns, 0.1, out, a, b)
    np.testing.assert_allclose(shifted, plan(cost, 0.1, unit, a, b), atol=1e-7)
    np.testing.assert_allclose(out.value, unit.value + a @ rows + b @ columns, rtol=1e-12)


# Derivatives.


def direction(seed, cost, a, b):
    """A tangent of costs, epsilon and weights; the masses change, by the same amount."""
    rng = np.random.default_rng(seed)
    moves = [w * rng.normal(size=w.shape) for w in (a, b)]
    a_dot, b_dot = (
        move - w * (move.sum() - 0.3) / w.sum() for move, w in zip(moves, (a, b), strict=True)
    )
    return rng.normal(size=cost.shape), 0.4, a_dot, b_dot


def central_difference(call, arguments, move, step=1e-4):
    ahead, behind = (
        call(*(p + s * t for p, t in zip(arguments, move, strict=True))) for s in (step, -step)
    )
    return jax.tree.map(lambda one, other: (one - other) / (2 * step), ahead, behind)


@pytest.mark.parametrize("mass", [1.0, 7.3])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_derivatives_of_the_value(x64, mass, gradient):
    cost, a, b = problem(5, mass)
    a = np.append(a[:-1], 0.0) * mass / a[:-1].sum()
    arguments = tuple(map(jnp.asarray, (cost, 0.3, a, b)))

    def value(cost, epsilon, a, b):
        return solve(cost, epsilon, a, b, **GRADIENTS[gradient]).value

    backward = jax.grad(value, (0, 1, 2, 3))(*arguments)
    move = direction(5, cost, a, b)
    for index in ({0}, {1}, {2, 3}):  # the weights together, so that their masses stay equal
        only = tuple(t if i in index else 0.0 * t for i, t in enumerate(move))
        expected = central_difference(value, arguments, only)
        found = sum(jnp.sum(slope * t) for slope, t in zip(backward, only, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        tangents = jax.tree.map(lambda t: jnp.asarray(t, jnp.float64), only)
        np.testing.assert_allclose(jax.jvp(value, arguments, tangents)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("mass", MASSES)
def test_derivative_in_the_costs_is_the_plan(x64, mass, gradient):
    cost, a, b = problem(6, mass)
    value = lambda cost: solve(cost, 0.3, a, b, **GRADIENTS[gradient]).value
    expected = plan(cost, 0.3, solved(cost, 0.3, a, b), a, b)
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(cost)), expected, atol=1e-9 * mass)


def test_derivative_in_the_weights_is_the_potentials(x64):
    cost, a, b = problem(6, 7.3)
    out = solved(cost, 0.3, a, b)
    value = lambda a, b: solve(cost, 0.3, a, b, **EXACT).value
    slopes = jax.grad(value, (0, 1))(jnp.asarray(a), jnp.asarray(b))
    for slope, potential in zip(slopes, (out.f, out.g), strict=True):
        np.testing.assert_allclose(slope - slope[0], potential - potential[0], atol=1e-9)


@pytest.mark.parametrize("gradient", ["envelope", "unrolled"])
def test_derivatives_of_the_potentials(x64, gradient):
    cost, a, b = problem(7, 7.3)

    def sums(*arguments):  # free of the constant
        out = solve(*arguments, **GRADIENTS[gradient])
        return out.f[:, None] + out.g[None, :]

    arguments = tuple(map(jnp.asarray, (cost, 0.3, a, b)))
    move = direction(7, cost, a, b)
    expected = central_difference(sums, arguments, move)
    tangents = jax.tree.map(lambda t: jnp.asarray(t, jnp.float64), move)
    np.testing.assert_allclose(jax.jvp(sums, arguments, tangents)[1], expected, atol=1e-5)


@pytest.mark.parametrize("gradient", ["envelope", "implicit"])
def test_second_derivatives_see_the_plan_move(x64, gradient):
    cost, a, b = problem(8, 7.3)
    value = lambda cost: solve(cost, 0.3, a, b, **GRADIENTS[gradient]).value
    move = direction(8, cost, a, b)[0]
    _, found = jax.jvp(jax.grad(value), (jnp.asarray(cost),), (jnp.asarray(move),))
    plans = lambda cost: plan(cost, 0.3, solved(cost, 0.3, a, b), a, b)
    np.testing.assert_allclose(found, central_difference(plans, (cost,), (move,)), atol=1e-6)


@pytest.mark.slow
def test_few_unrolled_updates_are_differentiated_as_they_are(x64):
    """Three updates of the textbook from g = 0, and the derivative of what they make of the dual.

    From f = softmin(C - g) and g = softmin(C^T - f) the columns are exact, and the dual is
    <a, f> + <b, g>.
    """
    cost, a, b = problem(9)

    def textbook(cost):
        g = jnp.zeros(M)
        for _ in range(3):
            exponent = (g[None, :] - cost) / 0.3
            f = -0.3 * jax.nn.logsumexp(exponent, axis=1, b=jnp.asarray(b)[None])
            exponent = (f[:, None] - cost) / 0.3
            g = -0.3 * jax.nn.logsumexp(exponent, axis=0, b=jnp.asarray(a)[:, None])
        return jnp.sum(a * f) + jnp.sum(b * g)

    def unrolled(cost):
        return solve(cost, 0.3, a, b, gradient="unrolled", limits=Limits(1e-3, 3)).value

    cost = jnp.asarray(cost)
    np.testing.assert_allclose(unrolled(cost), textbook(cost), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(unrolled)(cost), jax.grad(textbook)(cost), atol=1e-10)


# Certificate.


@pytest.mark.parametrize("cap", [5, 10, 20])
@pytest.mark.parametrize("mass", MASSES)
def test_capped_solves_say_how_far_they_are(x64, mass, cap):
    cost, a, b = problem(10, mass)
    out = solve(cost, 0.02, a, b, limits=Limits(1e-9, cap))
    truth = marginal_error(plan(cost, 0.02, out, a, b), a, b)
    assert truth > 1e-6 and not out.converged
    np.testing.assert_allclose(out.marginal_error, truth, rtol=1e-8)


@pytest.mark.parametrize("storage", ["full", "half", "chunks"])
@pytest.mark.parametrize("threshold", [1e-2, 1e-3])
def test_float32_certificates_are_those_of_the_returned_plan(storage, threshold):
    for seed in range(5):
        cost, a, b = (np.float32(z) for z in problem(seed, MASSES[seed % 3]))
        out = solve(cost, 0.1, a, b, limits=Limits(threshold, storage=storage))
        truth = marginal_error(plan(cost, np.float32(0.1), out, a, b), a, b)
        rounding = 8 * ROUNDING * (1 + np.abs(cost).max() / 0.1)
        np.testing.assert_allclose(out.marginal_error, truth, atol=rounding)
        assert out.converged == (out.marginal_error <= threshold)
        assert out.converged


def reference(cost, epsilon, a, b):
    """The value by textbook updates in float64, or None where they take too long."""
    rows, columns = a > 0, b > 0
    cost = np.asarray(cost, np.float64)[np.ix_(rows, columns)]
    a, b = (np.asarray(w[w > 0], np.float64) for w in (a, b))
    mass, a, b = (a.sum() + b.sum()) / 2, a / a.sum(), b / b.sum()
    f, level = np.zeros(len(a)), max(epsilon, np.ptp(cost))
    softmin = functools.partial(scipy.special.logsumexp, axis=1)
    for _ in range(5_000):
        level = max(epsilon, 0.7 * level)
        g = -level * softmin((f[None] - cost.T) / level, b=a[None])
        f = -level * softmin((g[None] - cost) / level, b=b[None])
        if level == epsilon:
            found = np.outer(a, b) * np.exp((f[:, None] + g[None] - cost) / epsilon)
            if np.abs(found.sum(0) - b).sum() < 1e-8:
                return mass * objective(cost, epsilon, found, a, b)
    return None


def hard_problem(seed):
    """Costs of any scale, shifted, with offsets of rows, or with few far above the others."""
    rng = np.random.default_rng(seed)
    shape = [(N, M), (M, N)][seed % 2]
    cost = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 7)
    size = np.abs(cost).mean()
    if seed % 4 == 1:
        cost += size * 10.0 ** rng.uniform(-1, 3) * rng.choice([-1, 1])
    if seed % 4 == 2:
        cost[rng.uniform(size=shape) < 0.1] = size * 10.0 ** rng.integers(1, 7)
    if seed % 4 == 3:
        cost += size * 10.0 ** rng.uniform(0, 2) * rng.normal(size=(shape[0], 1))
    a, b = (rng.uniform(0.1, 1, count) for count in shape)
    a[shape[0] - rng.integers(0, 3) :] = 0
    b[shape[1] - rng.integers(0, 3) :] = 0
    mass, epsilon = 10.0 ** rng.uniform(-3, 3), size * 10.0 ** rng.uniform(-2, 4)
    arrays = (cost, mass * a / a.sum(), mass * b / b.sum(), epsilon)
    return tuple(np.float32(array) for array in arrays)


def test_converged_means_right():
    """The value to the error that the docstring documents, in float32."""
    converged = compared = 0
    for seed in range(100):
        cost, a, b, epsilon = hard_problem(seed)
        expected = reference(cost, float(epsilon), a, b)
        if expected is None:
            continue
        compared += 1
        out = solve(cost, epsilon, a, b, limits=Limits([1e-2, 1e-3, 1e-4][seed % 3]))
        if not out.converged:
            continue
        converged += 1
        largest = np.abs(cost[np.ix_(a > 0, b > 0)]).max()
        error = float(out.marginal_error) * (largest + epsilon) + 16 * ROUNDING * largest
        bound = a.sum() * error + 16 * ROUNDING * abs(expected)
        assert abs(float(out.value) - expected) <= bound, seed
    assert compared > 80
    assert converged > 0.9 * compared


def test_what_float32_does_not_resolve_is_not_certified():
    cost, a, b = (np.float32(z) for z in problem(11))
    far = np.float32(cost + 1e6 * np.arange(N, dtype=np.float32)[:, None])
    assert solve(cost, 0.1, a, b).converged
    assert not solve(far, 0.1, a, b).converged


# Zero weights and forbidden pairs.


@pytest.mark.parametrize("anything", [0.0, -50.0, 1e30])
def test_rows_and_columns_without_mass_decide_nothing(x64, anything):
    cost, a, b = problem(12)
    a, b = (np.append(0.0, w[1:] / w[1:].sum()) for w in (a, b))
    cost[0], cost[:, 0] = anything, anything
    out = solved(cost, 0.1, a, b)
    kept = solved(cost[1:, 1:], 0.1, a[1:], b[1:])
    np.testing.assert_allclose(out.value, kept.value, rtol=1e-9)
    found, expected = plan(cost, 0.1, out, a, b), plan(cost[1:, 1:], 0.1, kept, a[1:], b[1:])
    np.testing.assert_allclose(found[1:, 1:], expected, atol=1e-9)
    assert not found[0].any() and not found[:, 0].any()
    np.testing.assert_allclose(out.neighbours, kept.neighbours, rtol=1e-8)
    slope = jax.grad(lambda cost: solve(cost, 0.1, a, b, **EXACT).value)
    np.testing.assert_allclose(slope(jnp.asarray(cost)), found, atol=1e-9)


def test_rows_without_mass_get_the_potentials_of_rows_that_join(x64):
    cost, a, b = problem(13)
    a = np.append(0.0, a[1:] / a[1:].sum())
    out = solved(cost, 0.1, a, b)
    joining = -0.1 * scipy.special.logsumexp((np.asarray(out.g) - cost[0]) / 0.1, b=b)
    np.testing.assert_allclose(out.f[0], joining, atol=1e-8)


@pytest.mark.parametrize("far", [1e3, 1e9])
def test_costs_far_above_the_others_forbid_a_pair(x64, far):
    """The plan is the one that scales a kernel with zeros there."""
    cost, _, _ = problem(14, shape=(M, M))
    cost[np.arange(M), np.roll(np.arange(M), 1)] = far
    kernel = np.exp(-cost / 0.3)
    assert not kernel[0, -1]
    u = np.ones(M)
    for _ in range(5_000):
        v = 1 / M / (kernel.T @ u)
        u = 1 / M / (kernel @ v)
    uniform = np.full(M, 1 / M)
    out = solved(cost, 0.3)
    expected = u[:, None] * kernel * v[None]
    np.testing.assert_allclose(plan(cost, 0.3, out, uniform, uniform), expected, atol=1e-9)


def test_one_cost_far_above_the_others_takes_none_of_their_digits():
    cost, a, b = problem(15)
    cost[0, 0] = 1e9
    out = solve(np.float32(cost), 0.3, a, b, limits=Limits(1e-5))
    assert out.converged
    np.testing.assert_allclose(out.value, reference(cost, 0.3, a, b), atol=1e-4)


# Batches, compilation, warm starts, dtypes.


def test_batches_and_programs_are_single_solves(x64):
    problems = [problem(seed, mass) for seed, mass in enumerate((1.0, 7.3, 1e-3, 20.0, 1.0))]
    cost, a, b = (jnp.asarray(np.stack(arrays)) for arrays in zip(*problems, strict=True))
    epsilons = jnp.asarray([0.02, 0.1, 1.0, 10.0, 0.3])
    call = lambda cost, epsilon, a, b: solve(cost, epsilon, a, b, limits=Limits(1e-8))
    batch = jax.vmap(call)(cost, epsilons, a, b)
    assert batch.converged.all()
    for index in range(5):
        arguments = (cost[index], epsilons[index], a[index], b[index])
        single, compiled = call(*arguments), jax.jit(call)(*arguments)
        assert batch.num_iterations[index] == single.num_iterations == compiled.num_iterations
        for name in ("f", "g", "value"):
            found = getattr(batch, name)[index]
            np.testing.assert_allclose(found, getattr(single, name), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(getattr(compiled, name), getattr(single, name), rtol=1e-9)
    slopes = jax.vmap(jax.grad(lambda *arguments: call(*arguments).value))(cost, epsilons, a, b)
    for index in range(5):
        out = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        expected = plan(cost[index], float(epsilons[index]), out, a[index], b[index])
        np.testing.assert_allclose(slopes[index], expected, rtol=1e-9, atol=1e-12)


def test_new_values_do_not_compile_again():
    cost, a, b = (np.float32(z) for z in problem(16))
    core = sinkflow.ot.matrix._solve
    solve(cost, 0.1, a, b, limits=Limits(1e-3, 100))
    before = core._cache_size()
    solve(2 * cost, 0.2, 3 * a, 3 * b, limits=Limits(1e-4, 200))
    assert core._cache_size() == before


def test_a_near_potential_saves_iterations(x64):
    cost, a, b = problem(17, 7.3)
    cold = solved(cost, 0.05, a, b)
    warm = solved(cost, 0.05, a, b, g_init=cold.g)
    assert warm.num_iterations <= 5 < cold.num_iterations
    np.testing.assert_allclose(warm.value, cold.value, rtol=1e-10)
    useless = solved(cost, 0.05, a, b, g_init=1e6 * cold.g)
    np.testing.assert_allclose(useless.value, cold.value, rtol=1e-10)


def test_lists_of_integers_are_costs(unchecked_shapes):
    out = sinkhorn_matrix([[0, 1], [1, 0]], 0.5, [2, 1], [1, 2])
    assert out.converged
    assert {out.f.dtype, out.value.dtype} == {jnp.zeros(()).dtype}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_product_is_rounded_unasked(gradient):
    """Every matrix product asks for full precision: accelerators otherwise take TF32."""
    options = {"gradient": gradient, "limits": Limits(max_iterations=20)}
    value = lambda cost: solve(cost, 0.1, **options).value
    second = lambda cost: jax.jvp(jax.grad(value), (cost,), (cost,))[1]
    text = jax.jit(second).lower(jnp.ones((N, M))).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert products or gradient == "unrolled"


# Exact results: what is known of the plan and the value, whatever solves.


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("mass", MASSES)
def test_two_points(x64, epsilon, mass):
    """C = (0, 1; 1, 0), equal weights: an odds ratio of e^(1 / epsilon) on each row."""
    out = solved([[0.0, 1.0], [1.0, 0.0]], epsilon, [mass / 2] * 2, [mass / 2] * 2)
    stay = scipy.special.expit(1 / epsilon)
    found = plan([[0.0, 1.0], [1.0, 0.0]], epsilon, out, [mass / 2] * 2, [mass / 2] * 2)
    expected = mass / 2 * np.array([[stay, 1 - stay], [1 - stay, stay]])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12 * mass)
    value = -mass * epsilon * (np.log1p(np.exp(-1 / epsilon)) - np.log(2))
    np.testing.assert_allclose(out.value, value, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_two_points_of_unequal_weights(x64, epsilon):
    """A plan (t, p - t; q - t, 1 - p - q + t) whose odds ratio is that of the kernel: a root."""
    p, q = 0.3, 0.6
    cost = np.array([[0.2, 1.0], [-0.5, 0.7]])
    ratio = np.exp(-(cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]) / epsilon)
    roots = np.roots([1 - ratio, 1 - p - q + ratio * (p + q), -ratio * p * q])
    (t,) = roots[(roots >= 0) & (roots <= p)]
    expected = np.array([[t, p - t], [q - t, 1 - p - q + t]])
    a, b = np.array([p, 1 - p]), np.array([q, 1 - q])
    out = solved(cost, epsilon, a, b)
    np.testing.assert_allclose(plan(cost, epsilon, out, a, b), expected, rtol=1e-7)
    np.testing.assert_allclose(out.value, objective(cost, epsilon, expected, a, b), rtol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mass", MASSES)
def test_sums_of_a_row_and_a_column_term_give_the_product_plan(x64, epsilon, mass):
    _, a, b = problem(18, mass)
    rows, columns = np.linspace(-3, 2, N), np.linspace(1, 5, M)
    cost = rows[:, None] + columns
    out = solved(cost, epsilon, a, b)
    product = np.outer(a, b) / mass
    np.testing.assert_allclose(plan(cost, epsilon, out, a, b), product, rtol=1e-8)
    np.testing.assert_allclose(out.value, a @ rows + b @ columns, rtol=1e-10)
    np.testing.assert_allclose(out.entropy, 1, rtol=1e-9)
    np.testing.assert_allclose(out.f - out.f[0], rows - rows[0], atol=1e-9 * max(1, epsilon))


def test_one_row_or_one_column(x64):
    cost, a, b = problem(19, 7.3)
    for given, sides in ((cost[:1], ([7.3], b)), (cost[:, :1], (a, [7.3]))):
        out = solved(given, 0.1, *sides)
        product = np.outer(*sides) / 7.3
        np.testing.assert_allclose(plan(given, 0.1, out, *sides), product, rtol=1e-9)
        np.testing.assert_allclose(out.value, np.sum(given * product), rtol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-2, 0.3, 3.0])
def test_circulant_costs_are_a_softmax(x64, epsilon):
    """C_ij = h(i - j mod n): constant potentials; h not even, so that C is not symmetric."""
    h = np.random.default_rng(20).normal(size=N)
    cost = h[(np.arange(N)[:, None] - np.arange(N)) % N]
    out = solved(cost, epsilon)
    uniform = np.full(N, 1 / N)
    expected = scipy.special.softmax(-cost / epsilon, axis=1) / N
    np.testing.assert_allclose(plan(cost, epsilon, out, uniform, uniform), expected, atol=1e-10)
    value = -epsilon * scipy.special.logsumexp(-h / epsilon, b=1 / N)
    np.testing.assert_allclose(out.value, value, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-2, 0.2, 2.0])
def test_a_hidden_permutation_is_found(x64, epsilon):
    """C_ij = u_i + v_j + [j != s(i)]: n - 1 equal rivals on every row."""
    rng = np.random.default_rng(21)
    matching, u, v = rng.permutation(N), rng.normal(size=N), rng.normal(size=N)
    wrong = np.ones((N, N))
    wrong[np.arange(N), matching] = 0
    out = solved(wrong + u[:, None] + v, epsilon)
    right = 1 / (1 + (N - 1) * np.exp(-1 / epsilon))
    uniform = np.full(N, 1 / N)
    found = plan(wrong + u[:, None] + v, epsilon, out, uniform, uniform)
    np.testing.assert_allclose(found[np.arange(N), matching], right / N, rtol=1e-8)
    value = u.mean() + v.mean() - epsilon * (np.log1p((N - 1) * np.exp(-1 / epsilon)) - np.log(N))
    np.testing.assert_allclose(out.value, value, rtol=1e-9)


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
def test_on_the_line_plans_end_at_the_quantile_coupling(x64, power):
    """For |x - y|^p, p >= 1, what sorted masses send to one another is optimal."""
    rng = np.random.default_rng(22)
    x, y = np.sort(rng.normal(size=N)), np.sort(rng.normal(size=M))
    a, b = weights(rng, N, 7.3), weights(rng, M, 7.3)
    levels = np.sort(np.concatenate([[0.0], np.cumsum(a), np.cumsum(b)[:-1]]))
    middle, lengths = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    sources, targets = np.searchsorted(np.cumsum(a), middle), np.searchsorted(np.cumsum(b), middle)
    exact = np.sum(lengths * np.abs(x[sources] - y[targets]) ** power)
    cost = np.abs(x[:, None] - y) ** power
    out = solved(cost, 1e-3, a, b, limits=Limits(1e-8, 1_000_000))
    certified = 7.3 * float(out.marginal_error) * cost.max()
    bound = 1e-3 * 7.3 * min(entropy(a), entropy(b))
    assert -certified <= float(out.value) - exact <= bound + certified


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_gaussians_on_a_grid(x64, epsilon):
    """Sums over a fine grid are integrals of Gaussians to rounding, so is their transport.

    For variances s^2 and t^2, means p and q: W = (p - q)^2 / 2 + (s^2 + t^2) / 2 - k
    - epsilon / 2 log(1 - k^2 / (s t)^2), k = sqrt(s^2 t^2 + epsilon^2 / 4) - epsilon / 2 the
    covariance of the plan (Janati et al. 2020, arXiv:2006.02572).
    """
    (p, s), (q, t) = (0.0, 1.0), (1.5, 0.7)
    x, y = p + s * np.linspace(-8, 8, 161), q + t * np.linspace(-8, 8, 161)
    shares = np.exp(-0.5 * np.linspace(-8, 8, 161) ** 2)
    shares /= shares.sum()
    cost = 0.5 * (x[:, None] - y) ** 2
    out = solved(cost, epsilon, shares, shares)
    k = np.sqrt(s**2 * t**2 + epsilon**2 / 4) - epsilon / 2
    value = 0.5 * (p - q) ** 2 + 0.5 * (s**2 + t**2) - k
    value -= 0.5 * epsilon * np.log(1 - k**2 / (s * t) ** 2)
    np.testing.assert_allclose(out.value, value, rtol=1e-7)
    found = plan(cost, epsilon, out, shares, shares)
    np.testing.assert_allclose((x - p) @ found @ (y - q), k, rtol=1e-6)


@pytest.mark.parametrize("mass", MASSES)
def test_a_large_epsilon_ends_at_the_product_plan(x64, mass):
    """W = <ab, C> - Var(C) / (2 epsilon) + ..., the variance that of the doubly centred costs."""
    cost, a, b = problem(23, mass)
    mean = a @ cost @ b / mass
    shares = np.outer(a, b) / mass**2
    rest = cost - (cost @ b)[:, None] / mass - (a @ cost) / mass + mean / mass
    for epsilon in (1e2, 1e4, 1e8):
        out = solved(cost, epsilon, a, b)
        expected = mean - mass * np.sum(shares * rest**2) / (2 * epsilon)
        np.testing.assert_allclose(out.value, expected, rtol=10 / epsilon**2 + 1e-12)
    np.testing.assert_allclose(plan(cost, 1e8, out, a, b), mass * shares, rtol=1e-6)


def test_a_large_epsilon_costs_float32_no_digits():
    cost, a, b = problem(23)
    out = solve(np.float32(cost), 1e6, a, b)
    assert out.converged
    np.testing.assert_allclose(out.value, a @ cost @ b, atol=1e-6)


# What callers get wrong.

COST = np.ones((3, 2))
NAN, INFINITE = np.array([[0.0, np.nan]]), np.array([[0.0, np.inf], [1.0, 2.0]])
WRONG = {
    "a vector": (
        lambda: sinkhorn_matrix(np.ones(3), 1.0),
        r"cost has shape \(3,\); it is \[n, m\]",
    ),
    "no entries": (lambda: sinkhorn_matrix(np.ones((0, 2)), 1.0), r"cost has shape \(0, 2\)"),
    "NaN": (lambda: sinkhorn_matrix(NAN, 1.0), "cost has 1 entries that are not finite"),
    "infinity": (lambda: sinkhorn_matrix(INFINITE, 1.0), "to forbid a pair, give it a finite cost"),
    "words": (lambda: sinkhorn_matrix([["a"]], 1.0), "cost"),
    "no epsilon": (lambda: sinkhorn_matrix(COST, 0.0), r"epsilon is 0\.0; it must be positive"),
    "two epsilons": (lambda: sinkhorn_matrix(COST, np.ones(2)), r"epsilon has shape \(2,\)"),
    "two masses": (
        lambda: sinkhorn_matrix(COST, 1.0, [1, 1, 1], [1, 1]),
        r"a sums to 3 and b to 2; both must have one total mass: multiply b by 1\.5",
    ),
    "no mass": (lambda: sinkhorn_matrix(COST, 1.0, np.zeros(3)), "a sums to 0"),
    "a debt": (lambda: sinkhorn_matrix(COST, 1.0, b=[2.0, -1.0]), r"b contains -1\.0"),
    "too many": (lambda: sinkhorn_matrix(COST, 1.0, b=np.ones(3)), r"b has shape \(3,\); there"),
    "potential": (lambda: sinkhorn_matrix(COST, 1.0, g_init=np.ones(3)), r"cost needs \(2,\)"),
    "gradient": (lambda: sinkhorn_matrix(COST, 1.0, gradient="none"), "unknown gradient 'none'"),
    "limits": (lambda: sinkhorn_matrix(COST, 1.0, limits=1e-3), "limits is 0.001"),
    "threshold": (lambda: sinkhorn_matrix(COST, 1.0, limits=Limits(0.0)), r"threshold is 0\.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(unchecked_shapes, case):
    call, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_values_under_a_trace_end_as_not_converged():
    cost, a, b = (jnp.asarray(z, jnp.float32) for z in problem(24))
    call = jax.jit(lambda *arguments: solve(*arguments).converged)
    assert call(cost, 0.1, a, b) and call(cost, 0.1, 5 * a, 5 * b)
    wrong = {
        "NaN": (cost.at[0, 0].set(jnp.nan), 0.1, a, b),
        "infinity": (cost.at[0, 0].set(jnp.inf), 0.1, a, b),
        "infinity without mass": (cost.at[0, 0].set(jnp.inf), 0.1, a.at[0].set(0.0), b),
        "epsilon": (cost, -0.1, a, b),
        "two masses": (cost, 0.1, a, 2 * b),
        "a debt": (cost, 0.1, a.at[0].set(-a[0]), b),
        "no mass": (cost, 0.1, 0 * a, 0 * b),
    }
    for name, arguments in wrong.items():
        assert not call(*arguments), name
