"""certificate: what says converged agrees with float64, whatever weights, places and epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sinkflow

ROUNDING = float(np.finfo(np.float32).eps)
SHAPES = [(9, 6), (6, 9)]  # n != m both ways; more would compile more


def centred(x, a):
    x = np.asarray(x, np.float64)
    return x - a @ x


def reference(x, y, epsilon, a, b):
    """Value and images by textbook updates in float64 numpy, around the means; None: no answer.

    Points without mass are left out of the solve. Few points at epsilons far below the gaps of
    their costs need more updates than are made here; those problems are not drawn.
    """
    x, y = x[a > 0], y[b > 0]
    a, b = (np.asarray(w[w > 0], np.float64) for w in (a, b))
    a, b = a / a.sum(), b / b.sum()
    shift = a @ x.astype(np.float64) - b @ y.astype(np.float64)
    x, y = centred(x, a), centred(y, b)
    cost = 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)
    f, g = np.zeros(len(x)), np.zeros(len(y))
    level = max(epsilon, cost.max())
    for step in range(4_000):
        level = max(epsilon, 0.7 * level)
        f = -softmax_mean(g[None] - cost, level, b)
        g = -softmax_mean(f[None] - cost.T, level, a)
        if level == epsilon and step % 20 == 0:
            exponent = (f[:, None] + g[None] - cost) / epsilon
            plan = a[:, None] * b[None] * np.exp(exponent)
            if np.abs(plan.sum(1) - a).sum() < 1e-9:
                value = a @ f + b @ g + 0.5 * shift @ shift
                return value, plan @ y / plan.sum(1, keepdims=True), cost
    return None


def softmax_mean(exponents, epsilon, weights):
    """epsilon log sum_j w_j exp(e_ij / epsilon), of rows."""
    largest = exponents.max(1, keepdims=True)
    sums = np.exp((exponents - largest) / epsilon) @ weights
    return largest[:, 0] + epsilon * np.log(sums)


@st.composite
def problems(draw):
    n, m = draw(st.sampled_from(SHAPES))
    d = draw(st.sampled_from([2, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    if draw(st.booleans()):  # duplicates
        x[1], y[2] = x[0], y[0]
    a, b = (rng.uniform(0.1, 1, size) for size in (n, m))
    a[n - draw(st.integers(0, 3)) :] = 0
    b[m - draw(st.integers(0, 3)) :] = 0
    far = 10.0 ** draw(st.integers(-2, 6))
    x[a == 0], y[b == 0] = far, -far
    x += draw(st.sampled_from([0.0, 1.0, -1.0])) * 10.0 ** draw(st.integers(0, 6))
    y += draw(st.sampled_from([0.0, 1.0, -1.0])) * 10.0 ** draw(st.integers(0, 6))
    epsilon = d * 10.0 ** draw(st.floats(-4, 4))
    arrays = (np.asarray(z, np.float32) for z in (x, y, a / a.sum(), b / b.sum()))
    return *arrays, np.float32(epsilon)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_converged_means_right(problem):
    """Value and map to the errors that the docstring of sinkhorn documents."""
    x, y, a, b, epsilon = problem
    expected = reference(x, y, float(epsilon), a, b)
    assume(expected is not None)
    value, images, cost = expected
    given = dict(zip("xyab", map(jnp.asarray, (x, y, a, b)), strict=True))
    out = sinkflow.sinkhorn(epsilon=epsilon, **given)
    velocity, info = sinkflow.sinkhorn_velocity(epsilon=epsilon, **given)
    diameter = np.sqrt(2 * cost.max())
    weights = a[a > 0] / a.sum()
    mean_y = (b / b.sum()).astype(np.float64) @ np.asarray(y, np.float64)
    allowed = (30 * float(out.marginal_error) + 0.02) * diameter
    if out.converged:
        largest = cost.max() + float(epsilon)
        bound = float(out.marginal_error) * largest + 16 * ROUNDING * (cost.max() + abs(value))
        assert abs(float(out.value) - value) <= bound
        found, _ = sinkflow.barycentric_map(given["x"], given["y"], out.g, epsilon, given["b"])
        moved = np.linalg.norm(np.asarray(found, np.float64)[a > 0] - mean_y - images, axis=1)
        inputs = 4 * ROUNDING * np.abs(y[b > 0]).max()  # the images are as far from the origin
        assert weights @ moved <= allowed + inputs
    if info.converged:
        self_map = reference(x, x, float(epsilon), a, a)
        assume(self_map is not None)
        mean_x = (a / a.sum()).astype(np.float64) @ np.asarray(x, np.float64)
        truth = images + mean_y - self_map[1] - mean_x
        moved = np.linalg.norm(np.asarray(velocity, np.float64)[a > 0] - truth, axis=1)
        diameter += np.sqrt(2 * self_map[2].max())
        allowed = (30 * float(info.marginal_error) + 0.02) * diameter
        assert weights @ moved <= allowed + 4 * ROUNDING * np.linalg.norm(truth, axis=1).max()


def clouds(n=30, m=20, d=16):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


@pytest.mark.parametrize("d", [pytest.param(2, marks=pytest.mark.slow), 16])
@pytest.mark.parametrize("place", [1e3, pytest.param(1e9, marks=pytest.mark.slow), 1e30])
def test_points_without_mass_decide_nothing(d, place):
    x, y = clouds(d=d)
    epsilon = 0.25 * d
    padded_x = jnp.concatenate([x, jnp.full((8, d), -place)])
    padded_y = jnp.concatenate([y, jnp.full((12, d), place)])
    a = jnp.concatenate([jnp.full(30, 1 / 30), jnp.zeros(8)])
    b = jnp.concatenate([jnp.full(20, 1 / 20), jnp.zeros(12)])
    solves = [
        (
            sinkflow.sinkhorn(x, y, epsilon),
            sinkflow.sinkhorn(padded_x, padded_y, epsilon, a=a, b=b),
        ),
        (sinkflow.sinkhorn_self(x, epsilon), sinkflow.sinkhorn_self(padded_x, epsilon, a=a)),
    ]
    for storage in ("half", "chunks") if d == 2 else ():  # each compiles for long
        padded = sinkflow.sinkhorn(
            padded_x, padded_y, epsilon, a=a, b=b, limits=sinkflow.Limits(storage=storage)
        )
        solves.append(
            (sinkflow.sinkhorn(x, y, epsilon, limits=sinkflow.Limits(storage=storage)), padded)
        )
    for plain, padded in solves:
        assert plain.converged & padded.converged
        np.testing.assert_allclose(padded.value, plain.value, rtol=1e-5)
        np.testing.assert_allclose(padded.neighbours, plain.neighbours, rtol=1e-3)
        np.testing.assert_allclose(padded.f[:30], plain.f, atol=1e-3 * epsilon)
    plain, _ = sinkflow.sinkhorn_velocity(x, y, epsilon, limits=sinkflow.Limits(1e-5))
    padded, info = sinkflow.sinkhorn_velocity(
        padded_x, padded_y, epsilon, a=a, b=b, limits=sinkflow.Limits(1e-5)
    )
    assert info.converged
    np.testing.assert_allclose(padded[:30], plain, atol=1e-4)
    divergences = (
        sinkflow.sinkhorn_divergence(x, y, epsilon)[0],
        sinkflow.sinkhorn_divergence(padded_x, padded_y, epsilon, a=a, b=b)[0],
    )
    np.testing.assert_allclose(*divergences, rtol=1e-4)
    gradient = jax.grad(lambda x, y, a, b: sinkflow.sinkhorn(x, y, epsilon, a=a, b=b).value)
    plain = gradient(x, y, a[:30], b[:20])
    np.testing.assert_allclose(gradient(padded_x, padded_y, a, b)[:30], plain, atol=1e-5)
    costs = (
        sinkflow.regularisation.mean_cost(x, y),
        sinkflow.regularisation.mean_cost(padded_x, padded_y, a, b),
    )
    np.testing.assert_allclose(*costs, rtol=1e-6)
    out = sinkflow.general.sinkhorn(
        padded_x, padded_y, epsilon, a=a, b=b, limits=sinkflow.Limits(0.0001)
    )
    if place < 1e19:  # beyond, a square overflows in whatever ground cost is given
        assert out.converged
        np.testing.assert_allclose(out.value, solves[0][0].value, rtol=1e-4)


def test_the_value_of_the_issue_in_float64():
    x, y = clouds()
    expected = reference(
        np.asarray(x), np.asarray(y), 4.0, np.full(30, 1 / 30), np.full(20, 1 / 20)
    )
    np.testing.assert_allclose(sinkflow.sinkhorn(x, y, 4.0).value, expected[0], rtol=1e-5)


WRONG = {
    "negative": lambda a: a.at[0].set(-0.1).at[1].add(0.1 + a[0]),
    "not finite": lambda a: a.at[0].set(jnp.inf),
    "NaN": lambda a: a.at[0].set(jnp.nan),
    "wrong sum": lambda a: 2 * a,
}


@jax.jit
def everything(a):
    """What every solve says of these weights: values, errors, flags, and whether it underflowed."""
    x, y = clouds()
    out, alone = sinkflow.sinkhorn(x, y, 4.0, a=a), sinkflow.sinkhorn_self(x, 4.0, a=a)
    velocity, info = sinkflow.sinkhorn_velocity(x, y, 4.0, a=a)
    value, converged = sinkflow.sinkhorn_divergence(x, y, 4.0, a=a)
    other = sinkflow.general.sinkhorn(x, y, 4.0, a=a)
    values = out.value, alone.value, velocity[0, 0], value, other.value
    errors = out.marginal_error, alone.marginal_error, info.marginal_error
    flags = out.converged, alone.converged, info.converged, converged, other.converged
    images, _ = sinkflow.barycentric_map(y, x, jnp.zeros(30), 4.0, a)
    cost = sinkflow.regularisation.mean_cost(x, y, a)
    cost_matrix = sinkflow.costs.squared_euclidean(x, y)
    scaled = sinkflow.scaling.matrix_scaling(cost_matrix, 9.0, a, num_iterations=3)
    return (*values, images[0, 0], cost, scaled.transport_cost), errors, flags, scaled.underflow


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_traced_weights_end_a_solve(wrong):
    weights = WRONG[wrong](jnp.full(30, 1 / 30))
    values, errors, flags, underflow = everything(weights)
    assert all(jnp.isnan(value) for value in values)
    assert not any(flags)
    assert underflow
    assert not any(error < 0 for error in errors)


@pytest.mark.parametrize("total", [0.9995, 1.0, 1.0005])
def test_weights_are_divided_by_their_sum(total):
    x, y = clouds()
    weights = jnp.full(30, total / 30)
    expected = sinkflow.sinkhorn(x, y, 4.0)
    for out in (
        sinkflow.sinkhorn(x, y, 4.0, a=weights),
        jax.jit(lambda a: sinkflow.sinkhorn(x, y, 4.0, a=a))(weights),
    ):
        assert out.converged
        np.testing.assert_allclose(out.value, expected.value, rtol=1e-5)


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e8])
def test_huge_epsilon(ratio):
    """The limits: the mean cost, and half the squared distance of the means (float64)."""
    x, y = clouds()
    x64, y64 = (np.asarray(cloud, np.float64) for cloud in (x, y))
    mean_cost = 0.5 * ((x64[:, None] - y64[None]) ** 2).sum(-1).mean()
    epsilon = ratio * mean_cost
    out = sinkflow.sinkhorn(x, y, epsilon)
    expected, images, _ = reference(
        np.asarray(x), np.asarray(y), epsilon, np.full(30, 1 / 30), np.full(20, 1 / 20)
    )
    assert out.converged
    np.testing.assert_allclose(out.value, expected, rtol=1e-5)
    divergence, converged = sinkflow.sinkhorn_divergence(x, y, epsilon)
    limit = 0.5 * ((x64.mean(0) - y64.mean(0)) ** 2).sum()
    assert converged
    np.testing.assert_allclose(divergence, limit, rtol=2 / ratio + 1e-5)
    general = sinkflow.general.sinkhorn(x, y, epsilon)
    assert general.converged
    np.testing.assert_allclose(general.value, expected, rtol=1e-5)
    # d value / d epsilon is KL(pi | a x b), of the order of (cost / epsilon)^2.
    with jax.enable_x64(True):
        exact = jnp.asarray(x64), jnp.asarray(y64)
        solve = lambda e: sinkflow.sinkhorn(*exact, e, limits=sinkflow.Limits(1e-12)).value
        slope = jax.grad(solve)(jnp.float64(epsilon))
    found = jax.grad(lambda e: sinkflow.sinkhorn(x, y, e).value)(jnp.float32(epsilon))
    assert abs(float(found - slope)) * epsilon < 1e-4 * mean_cost


def test_far_apart_the_velocity_is_right_and_lost_potentials_are_said():
    x, y = clouds()
    epsilon = 0.1 * float(sinkflow.regularisation.mean_cost(x, y))
    far = y + 1e5  # rounded to 0.008
    expected, _ = sinkflow.sinkhorn_velocity(x, far - 1e5, epsilon, limits=sinkflow.Limits(1e-4))
    velocity, info = sinkflow.sinkhorn_velocity(x, far, epsilon, limits=sinkflow.Limits(1e-4))
    assert info.converged
    assert not info.xy.converged
    np.testing.assert_allclose(velocity - 1e5, expected, atol=0.02)
    assert not sinkflow.sinkhorn(x, far, epsilon).converged
    both, info = sinkflow.sinkhorn_velocity(x + 1e5, far, epsilon, limits=sinkflow.Limits(1e-4))
    moved, _ = sinkflow.sinkhorn_velocity(
        x + 1e5 - 1e5, far - 1e5, epsilon, limits=sinkflow.Limits(1e-4)
    )
    assert info.converged & info.xy.converged
    np.testing.assert_allclose(both, moved, atol=1e-3)


def test_costs_that_float32_does_not_resolve_are_not_certified():
    x, y = clouds()
    assert not sinkflow.sinkhorn(x, y, 1e-6 * 16, limits=sinkflow.Limits(0.1, 2000)).converged


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "list"])
def test_other_numbers_are_computed_in_float32(dtype, unchecked_shapes):
    x, y = (np.round(np.asarray(cloud) * 4) for cloud in clouds())
    x, y = x - x.min(), y - y.min()
    a = np.full(30, 1 / 30)
    expected = sinkflow.sinkhorn(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 9.0)
    given = [z.tolist() if dtype == "list" else np.asarray(z).astype(dtype) for z in (x, y)]
    out = sinkflow.sinkhorn(*given, 9, a=a.tolist())
    assert out.converged
    assert out.value.dtype == out.f.dtype == jnp.float32
    np.testing.assert_allclose(out.value, expected.value, rtol=1e-6)
    velocity, _ = sinkflow.sinkhorn_velocity(*given, 9)
    exact, _ = sinkflow.sinkhorn_velocity(x, y, 9)
    half = dtype in ("float16", "bfloat16")
    rtol = float(jnp.finfo(dtype).eps) if half else 1e-5
    assert velocity.dtype == (jnp.dtype(dtype) if half else jnp.float32)
    np.testing.assert_allclose(velocity.astype(jnp.float32), exact, atol=1e-5, rtol=rtol)
    np.testing.assert_allclose(
        sinkflow.costs.squared_euclidean(*given), sinkflow.costs.squared_euclidean(x, y)
    )
    images, _ = sinkflow.barycentric_map(*given, expected.g, 9)
    exact, _ = sinkflow.barycentric_map(x, y, expected.g, 9)
    np.testing.assert_allclose(images.astype(jnp.float32), exact, atol=1e-5, rtol=rtol)
    key = jax.random.key(0)
    partners = sinkflow.ot.draw_partners(key, *given, expected.g, 9)
    assert len(np.unique(partners)) > 1
    np.testing.assert_array_equal(partners, sinkflow.ot.draw_partners(key, x, y, expected.g, 9))
    steps = sinkflow.flow.step_sizes(1, 1)
    state, *_ = sinkflow.flow.run(*given, 9, steps)
    moved, *_ = sinkflow.flow.run(x, y, 9, steps)
    np.testing.assert_allclose(state.x, moved.x, atol=1e-4)
    general = sinkflow.general.sinkhorn(*given, 9)
    np.testing.assert_allclose(general.value, expected.value, rtol=1e-4)


@pytest.mark.slow
def test_no_nan_is_made_in_a_right_solve():
    """A user who looks for NaN op by op does not stop in ours."""
    x, y = clouds(6, 5, 2)
    with jax.disable_jit(), jax.debug_nans(True):
        assert sinkflow.sinkhorn(x, y, 1.0, limits=sinkflow.Limits(max_iterations=20)).converged
        assert sinkflow.sinkhorn_self(x, 1.0, limits=sinkflow.Limits(max_iterations=20)).converged


@pytest.mark.slow
def test_strict_promotion():
    x, y = clouds(6, 5, 2)
    with jax.numpy_dtype_promotion("strict"):
        sinkflow.sinkhorn(x, y, 1.0, g_init=jnp.zeros(5))
        sinkflow.sinkhorn_velocity(x, y, 1.0, self_cloud=x)
        jax.grad(lambda x: sinkflow.sinkhorn_divergence(x, y, 1.0, gradient="implicit")[0])(x)
        jax.grad(lambda x: sinkflow.general.sinkhorn_divergence(x, y, 1.0)[0])(x)
        sinkflow.epsilon_for_neighbours(x, y, 2.0)
        sinkflow.barycentric_map(x, y, jnp.zeros(5), 1.0)
        sinkflow.ot.draw_partners(jax.random.key(0), x, y, jnp.zeros(5), 1.0)
        sinkflow.flow.run(x, y, 1.0, sinkflow.flow.step_sizes(0.5, 2))
        cost = sinkflow.costs.squared_euclidean(x, y)
        sinkflow.scaling.matrix_scaling(cost, 1.0, num_iterations=2)
