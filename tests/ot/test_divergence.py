"""divergence: float64 oracle, finite differences, Gaussian closed form, self term, laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from sinkflow import Limits
from sinkflow.ot import barycentric, divergence
from sinkflow.ot.barycentric import barycentric_map, draw_partners
from sinkflow.ot.divergence import sinkhorn_divergence, sinkhorn_velocity
from sinkflow.ot.solver import sinkhorn
from tests import helpers

N, M = 13, 9
EXACT = {"limits": Limits(1e-10, 100_000)}  # in float64


clouds = functools.partial(helpers.clouds, n=N, m=M)


def weights(key):
    """Non-uniform, one of b zero."""
    key_a, key_b = jax.random.split(key)
    a = jax.random.uniform(key_a, N, minval=0.2)
    b = jax.random.uniform(key_b, M, minval=0.2).at[-1].set(0.0)
    return a / a.sum(), b / b.sum()


def reference_plan(x, y, epsilon, a, b, same=False):
    """Textbook log-domain Sinkhorn in float64 numpy, run until the marginals are exact.

    From a cloud to itself, where the plan is nearly the identity, the alternating updates
    hardly contract; the averaged symmetric one does.
    """
    cost = 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)
    f, g = np.zeros(len(x)), np.zeros(len(y))
    for _ in range(20_000):
        update = -epsilon * logsumexp((g[None] - cost) / epsilon, axis=1, b=b[None])
        f = 0.5 * (f + update) if same else update
        back = -epsilon * logsumexp((f[:, None] - cost) / epsilon, axis=0, b=a[:, None])
        g = f if same else back
        plan = np.exp((f[:, None] + g[None] - cost) / epsilon) * a[:, None] * b[None]
        if np.abs(plan.sum(1) - a).sum() < 1e-12:
            return plan
    raise AssertionError("the reference did not converge")


def reference_velocity(x, y, epsilon, a, b):
    x, y, a, b = (np.asarray(array, np.float64) for array in (x, y, a, b))
    a, b = a / a.sum(), b / b.sum()
    plan_xy = reference_plan(x, y, epsilon, a, b)
    plan_xx = reference_plan(x, x, epsilon, a, a, same=True)
    return (plan_xy @ y - plan_xx @ x) / a[:, None]


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("d", "epsilon"), [(2, 0.05), (2, 1.0), (64, 3.2), (64, 64.0)])
@pytest.mark.parametrize("key", [0, 1], indirect=True)
def test_velocity_matches_float64(key, d, epsilon):
    x, y = clouds(key, d)
    a, b = weights(key)
    velocity, info = sinkhorn_velocity(x, y, epsilon, a=a, b=b, limits=Limits(1e-5))
    assert info.converged
    assert info.marginal_error == max(info.xy.marginal_error, info.xx.marginal_error)
    assert relative_error(velocity, reference_velocity(x, y, epsilon, a, b)) < 1e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_velocity_is_minus_the_gradient_of_the_divergence(key, weighted):
    """-1/a_i dS/dx_i by central differences, which share no derivative with the code."""
    points = np.asarray(clouds(key)[0][:4], np.float64)
    with jax.enable_x64(True):
        x, y = jnp.asarray(points), jnp.asarray(np.asarray(clouds(key)[1], np.float64))
        a = jnp.arange(1.0, 5.0) / 10 if weighted else jnp.full(4, 0.25)
        b = jnp.arange(1.0, M + 1) / 45 if weighted else None
        step = 1e-4

        def divergence(moved):
            return sinkhorn_divergence(moved, y, 0.3, a=a, b=b, **EXACT)

        offsets = step * jnp.eye(x.size).reshape(-1, *x.shape)
        values, converged = jax.vmap(divergence)(
            jnp.concatenate([x[None] + offsets, x[None] - offsets])
        )
        assert converged.all()
        gradient = (values[: x.size] - values[x.size :]).reshape(x.shape) / (2 * step)
        velocity, info = sinkhorn_velocity(x, y, 0.3, a=a, b=b, **EXACT)
        assert info.converged
    expected = -np.asarray(gradient) / np.asarray(a)[:, None]
    assert velocity.dtype == np.float64
    assert relative_error(velocity, expected) < 1e-6


def test_warm_start_gives_the_same_velocity_sooner(key):
    x, y = clouds(key)
    _, before = sinkhorn_velocity(x, y, 0.02)
    moved = x + 0.02 * jax.random.normal(key, x.shape)
    cold, cold_info = sinkhorn_velocity(moved, y, 0.02, limits=Limits(1e-5))
    warm, warm_info = sinkhorn_velocity(
        moved, y, 0.02, xy_init=before.xy.g, xx_init=before.xx.g, limits=Limits(1e-5)
    )
    assert cold_info.converged & warm_info.converged
    assert warm_info.xy.num_iterations < cold_info.xy.num_iterations
    assert warm_info.xx.num_iterations <= cold_info.xx.num_iterations
    assert relative_error(warm, np.asarray(cold)) < 1e-4


def test_unconverged_solves_are_visible(key):
    x, y = clouds(key)
    _, info = sinkhorn_velocity(x, y, 0.02, limits=Limits(max_iterations=10))
    assert info.xx.converged
    assert not info.xy.converged
    assert not info.converged  # one bad solve of the two is enough
    limits = {"limits": Limits(1e-5, 5)}
    solved = sinkhorn(x, y, 0.02, limits=Limits(1e-5)).g
    _, info = sinkhorn_velocity(x, y, 0.02, xy_init=solved, **limits)
    assert info.xy.converged
    assert not info.xx.converged
    assert not info.converged
    _, converged = sinkhorn_divergence(x, y, 0.02, limits=Limits(max_iterations=5))
    assert not converged
    velocity, info = sinkhorn_velocity(x.at[0, 0].set(jnp.nan), y, 0.1)
    assert not info.converged
    assert jnp.isnan(velocity).any()


def test_the_cloud_as_its_own_second_cloud_changes_nothing(key):
    x, y = clouds(key)
    for epsilon in (0.1, 1.0):
        default, info = sinkhorn_velocity(x, y, epsilon, limits=Limits(1e-5))
        explicit, explicit_info = sinkhorn_velocity(
            x, y, epsilon, self_cloud=x, limits=Limits(1e-5)
        )
        assert info.converged & explicit_info.converged
        assert relative_error(explicit, np.asarray(default)) < 2e-4


def test_an_independent_self_cloud_removes_the_contraction(key):
    """METHOD 4.6: at equality of laws the velocity should be uncorrelated with x."""
    d, n = 64, 256
    x, y, second = jax.random.normal(key, (3, n, d))
    options = {"limits": Limits(0.001)}

    def contraction(**self_term):
        velocity, info = sinkhorn_velocity(x, y, 0.05 * d, **self_term, **options)
        assert info.converged
        return float(jnp.sum(velocity * x) / jnp.sum(x**2))

    assert contraction() < -0.6
    assert abs(contraction(self_cloud=second)) < 0.02


def test_a_cloud_at_its_target_stays(key):
    x, _ = clouds(key)
    velocity, info = sinkhorn_velocity(x, x, 0.1, limits=Limits(1e-5))
    assert info.converged
    np.testing.assert_allclose(velocity, 0.0, atol=2e-4)
    value, converged = sinkhorn_divergence(x, x, 0.1, limits=Limits(1e-5))
    assert converged
    np.testing.assert_allclose(value, 0.0, atol=1e-5)


def test_a_moved_cloud_is_moved_back(key):
    x, _ = clouds(key)
    shift = jnp.array([[1.5, -0.5]])
    velocity, info = sinkhorn_velocity(x, x + shift, 0.1, limits=Limits(1e-5))
    assert info.converged
    np.testing.assert_allclose(velocity, jnp.broadcast_to(shift, x.shape), atol=2e-4)
    value, _ = sinkhorn_divergence(x, x + shift, 0.1, limits=Limits(1e-5))
    np.testing.assert_allclose(value, 0.5 * jnp.sum(shift**2), rtol=1e-4)


def test_divergence_is_symmetric_and_positive(key):
    x, y = clouds(key)
    a, b = weights(key)
    one, converged = sinkhorn_divergence(x, y, 0.1, a=a, b=b, limits=Limits(1e-5))
    other, _ = sinkhorn_divergence(y, x, 0.1, a=b, b=a, limits=Limits(1e-5))
    assert converged
    assert one > 0.1
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_large_epsilon_leaves_the_distance_of_the_means(key):
    x, y = clouds(key)
    velocity, info = sinkhorn_velocity(x, y, 1e4)
    expected = jnp.broadcast_to((y.mean(0) - x.mean(0))[None], x.shape)
    np.testing.assert_allclose(velocity, expected, atol=1e-3)
    np.testing.assert_allclose(info.neighbours, M, rtol=1e-3)


def test_partners_are_drawn_from_the_rows_of_the_plan(key):
    x, y, b, epsilon = (
        jax.random.normal(key, (2, 2)),
        jnp.eye(3, 2),
        jnp.array([0.2, 0.5, 0.3]),
        0.7,
    )
    g = jnp.array([0.3, -0.2, 0.1])
    draws = 4_000
    many = jnp.repeat(x, draws, axis=0)
    chosen = np.asarray(draw_partners(key, many, y, g, epsilon, b)).reshape(2, draws)
    cost = 0.5 * np.sum((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2, axis=2)
    plan = np.asarray(b) * np.exp((np.asarray(g) - cost) / epsilon)
    for row, expected in zip(chosen, plan / plan.sum(axis=1, keepdims=True), strict=True):
        # Four standard deviations of a share of that many draws.
        np.testing.assert_allclose(np.bincount(row, minlength=3) / draws, expected, atol=0.032)


def test_partners_of_a_sharp_plan_are_the_assignment(key):
    x = jax.random.normal(key, (16, 3))
    order = jax.random.permutation(key, 16)
    y = x[order] + 0.01
    out = sinkhorn(x, y, 1e-3)
    partners = draw_partners(key, x, y, out.g, 1e-3)
    np.testing.assert_array_equal(order[partners], np.arange(16))


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_barycentric_map_is_the_plan_at_its_points_and_extends_it(key, epsilon):
    x, y = clouds(key)
    a, b = weights(key)
    out = sinkhorn(x, y, epsilon, a=a, b=b, limits=Limits(1e-5))
    images, neighbours = barycentric_map(x, y, out.g, epsilon, b)
    exact = [np.asarray(array, np.float64) for array in (x, y, a, b)]
    plan = reference_plan(*exact[:2], epsilon, exact[2] / exact[2].sum(), exact[3] / exact[3].sum())
    plan /= plan.sum(1, keepdims=True)
    np.testing.assert_allclose(images, plan @ exact[1], atol=1e-3)
    np.testing.assert_allclose(neighbours, 1 / (plan**2).sum(1), rtol=1e-3)

    new = jax.random.normal(key, (5, 2)) * 3
    images, neighbours = barycentric_map(new, y, out.g, epsilon, b)
    assert images.shape == (5, 2)
    assert (neighbours >= 1 - 1e-6).all()
    assert (neighbours <= M - 1 + 1e-4).all()  # one target has no mass
    rounding = 2 * np.finfo(np.float32).eps * jnp.abs(y).max()  # of the mean they are solved around
    assert (images >= y.min(0)[None] - rounding).all()
    assert (images <= y.max(0)[None] + rounding).all()


def test_neighbours_count_from_a_matching_to_everything(key):
    _, y = clouds(key)
    images, neighbours = barycentric_map(y, y, jnp.zeros(M), 1e-4)
    np.testing.assert_allclose(images, y, atol=1e-5)
    np.testing.assert_allclose(neighbours, 1, rtol=1e-5)
    images, neighbours = barycentric_map(y, y, jnp.zeros(M), 1e6)
    np.testing.assert_allclose(images, jnp.broadcast_to(y.mean(0)[None], y.shape), atol=1e-4)
    np.testing.assert_allclose(neighbours, M, rtol=1e-4)
    two_of_them = jnp.zeros(M).at[jnp.array([1, 4])].set(0.5)
    _, neighbours = barycentric_map(y, y, jnp.zeros(M), 1e6, two_of_them)
    np.testing.assert_allclose(neighbours, 2, rtol=1e-4)


def test_vmap_equals_a_loop(key):
    xs, ys = jax.vmap(clouds)(jax.random.split(key, 3))
    velocities, infos = jax.vmap(lambda x, y: sinkhorn_velocity(x, y, 0.1, limits=Limits(1e-5)))(
        xs, ys
    )
    assert infos.converged.shape == (3,)
    for x, y, velocity in zip(xs, ys, velocities, strict=True):
        single, _ = sinkhorn_velocity(x, y, 0.1, limits=Limits(1e-5))
        assert relative_error(velocity, np.asarray(single)) < 1e-4


def test_new_values_do_not_recompile(key):
    x, y = clouds(key)
    sinkhorn_velocity(x, y, 0.1)
    compiled = divergence._velocity._cache_size()
    sinkhorn_velocity(x + 1.0, y, 0.2, limits=Limits(1e-2, 100))
    assert divergence._velocity._cache_size() == compiled
    images = barycentric_map(x, y, jnp.zeros(M), 0.1)[0]
    compiled = barycentric._barycentric_map._cache_size()
    assert jnp.any(barycentric_map(x, y, jnp.ones(M), 0.2)[0] != images)
    assert barycentric._barycentric_map._cache_size() == compiled


def test_bad_input_raises_at_the_call(unchecked_shapes):
    x, y = jnp.zeros((4, 2)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"x and self_cloud differ in dimension"):
        sinkhorn_velocity(x, y, 0.1, self_cloud=jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"x and self_cloud differ in dimension"):
        sinkhorn_divergence(x, y, 0.1, self_cloud=jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"epsilon is -1\.0; it must be positive"):
        sinkhorn_velocity(x, y, -1.0)
    with pytest.raises(ValueError, match=r"a sums to 4\.0"):
        sinkhorn_velocity(x, y, 0.1, a=jnp.ones(4))
    with pytest.raises(ValueError, match=r"x and y differ in dimension"):
        sinkhorn_divergence(x, jnp.ones((3, 4)), 0.1)
    with pytest.raises(ValueError, match=r"b contains nan"):
        sinkhorn_divergence(x, y, 0.1, b=jnp.full(3, jnp.nan))


MEAN_X, MEAN_Y = np.array([-1.0, 0.5]), np.array([1.0, 0.0])
COV_X, COV_Y = np.array([[1.0, 0.3], [0.3, 0.6]]), np.array([[0.4, -0.2], [-0.2, 1.2]])


def square_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def gaussian_map(source, target, epsilon):
    """Linear part of the entropic barycentric map from N(0, source) to N(0, target).

    Janati et al. 2020, arXiv:2006.02572: the optimal coupling is Gaussian with cross-covariance
    K = A^1/2 (A^1/2 B A^1/2 + (epsilon/2)^2)^1/2 A^-1/2 - epsilon/2 for the cost |x - y|^2 / 2;
    the conditional mean of y given x is K^T A^-1 x.
    """
    root, half = square_root(source), 0.5 * epsilon * np.eye(len(source))
    middle = square_root(root @ target @ root + half @ half)
    cross = root @ middle @ np.linalg.inv(root) - half
    return cross.T @ np.linalg.inv(source)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_gaussian_map_is_the_optimum(epsilon):
    """The oracle itself, against the stationarity of the Gaussian problem.

    The precision of the optimal coupling has the off-diagonal block -1/epsilon.
    """
    cross = (gaussian_map(COV_X, COV_Y, epsilon) @ COV_X).T
    joint = np.block([[COV_X, cross], [cross.T, COV_Y]])
    precision = np.linalg.inv(joint)
    np.testing.assert_allclose(precision[:2, 2:], -np.eye(2) / epsilon, atol=1e-10)


@pytest.mark.slow
def test_velocity_between_gaussians_tends_to_the_closed_form(key):
    epsilon, sizes, seeds = 0.5, [64, 256, 1024], 4
    linear = gaussian_map(COV_X, COV_Y, epsilon) - gaussian_map(COV_X, COV_X, epsilon)
    errors = []
    for n in sizes:
        noise = jax.random.normal(key, (seeds, 2, n, 2))
        squares = []
        for normal_x, normal_y in np.asarray(noise, np.float64):
            x = MEAN_X + normal_x @ square_root(COV_X)
            y = MEAN_Y + normal_y @ square_root(COV_Y)
            found, info = sinkhorn_velocity(
                jnp.asarray(x, jnp.float32),
                jnp.asarray(y, jnp.float32),
                epsilon,
                limits=Limits(1e-4),
            )
            assert info.converged
            expected = MEAN_Y - MEAN_X + (x - MEAN_X) @ linear.T
            squares.append(np.mean(np.sum((found - expected) ** 2, axis=1)))
        errors.append(np.sqrt(np.mean(squares)))
    rate = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < rate < -0.4  # Monte Carlo
    assert errors[-1] < 0.05 * np.linalg.norm(MEAN_Y - MEAN_X)


def points(n):
    coordinates = st.floats(-3, 3, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, (n, 2), elements=coordinates)


@settings(deadline=None, max_examples=20)
@given(points(N), points(M), st.floats(0.1, 10))
def test_any_velocity_moves_the_mean_towards_the_target_mean(x, y, epsilon):
    velocity, info = sinkhorn_velocity(jnp.asarray(x), jnp.asarray(y), epsilon, limits=Limits(1e-4))
    assert info.converged
    # Marginals e apart in L1, of points within 3 of the origin, shift each mean by 3 e at most.
    np.testing.assert_allclose(velocity.mean(0), y.mean(0) - x.mean(0), atol=2 * 3 * 1e-4 + 1e-5)


@settings(deadline=None, max_examples=20)
@given(points(N), points(M), st.floats(0.1, 10))
def test_any_divergence_is_at_least_the_distance_of_the_means(x, y, epsilon):
    value, converged = sinkhorn_divergence(
        jnp.asarray(x), jnp.asarray(y), epsilon, limits=Limits(1e-4)
    )
    assert converged
    # S_epsilon = |difference of means|^2 / 2 + S_epsilon of the centred clouds, which is >= 0.
    means = 0.5 * np.sum((x.mean(0) - y.mean(0)) ** 2)
    assert value > means - 1e-3
