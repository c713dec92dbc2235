"""Solves against what is known: Gaussians, limits, the plan's own numbers, laws, lowered code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinkflow import (
    Limits,
    barycentric_map,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_self,
    sinkhorn_velocity,
)
from sinkflow.ot import _kernel
from sinkflow.ot.exact import assignment
from tests import helpers
from tests.helpers import float64, half_squares, plan

N, M = 13, 9  # random clouds have these shapes, so that they compile once
EXACT = {"limits": Limits(1e-10, 100_000)}  # in float64
STORAGES = ["full", "half", "chunks"]


clouds = functools.partial(helpers.clouds, n=N, m=M)
weights = functools.partial(helpers.weights, n=N, m=M)


def uniform(n):
    return np.full(n, 1 / n)


def marginal_error(plan, a, b):
    return max(np.abs(plan.sum(1) - a).sum(), np.abs(plan.sum(0) - b).sum())


def rounding(x, y, epsilon):
    """What float32 costs leave uncertain in the marginals (an L1 norm of total mass 1)."""
    return 8 * np.finfo(np.float32).eps * (1 + half_squares(x, y).max() / epsilon)


# Gaussians. W between N(p, A) and N(q, B), for the cost |x - y|^2 / 2: the optimal coupling is
# Gaussian with some cross-covariance K, and KL(pi | a x b) is its mutual information, so that
#   W = min_K |p - q|^2 / 2 + tr(A + B) / 2 - tr K - epsilon / 2 log det(I - A^-1 K B^-1 K^T),
# attained at K = A^1/2 (A^1/2 B A^1/2 + epsilon^2 / 4)^1/2 A^-1/2 - epsilon / 2 (Janati et al.
# 2020, arXiv:2006.02572: their |x - y|^2 + 2 sigma^2 KL is twice ours, so sigma^2 = epsilon).


def square_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def objective(source, target, epsilon, cross):
    """W of two centred Gaussians as a function of the cross-covariance."""
    joint = np.eye(len(source)) - np.linalg.solve(source, cross) @ np.linalg.solve(target, cross.T)
    information = -0.5 * np.linalg.slogdet(joint)[1]
    return 0.5 * np.trace(source + target) - np.trace(cross) + epsilon * information


def cross_covariance(source, target, epsilon):
    root, half = square_root(source), 0.5 * epsilon * np.eye(len(source))
    return root @ square_root(root @ target @ root + half @ half) @ np.linalg.inv(root) - half


def gaussian_value(source, target, epsilon, means=0.0):
    """``means`` is the difference of the two."""
    cross = cross_covariance(source, target, epsilon)
    return 0.5 * np.sum(np.square(means)) + objective(source, target, epsilon, cross)


def gaussian_slope(source, target, epsilon):
    """Of the conditional mean of y given x."""
    return np.linalg.solve(source, cross_covariance(source, target, epsilon)).T


def grid(mean, variance, count):
    """A cloud on the line whose weights are those of N(mean, variance), to float64."""
    normal = np.linspace(-7, 7, count)
    density = np.exp(-0.5 * normal**2)
    return mean + np.sqrt(variance) * normal[:, None], density / density.sum()


def quadrature(mean, covariance, order):
    """Gauss-Hermite points and weights of N(mean, covariance) in the plane."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(order)
    normal = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    masses = np.outer(masses, masses).ravel()
    return mean + normal @ square_root(covariance), masses / masses.sum()


LINE = (np.array([-1.0]), np.array([[0.7]])), (np.array([0.5]), np.array([[1.6]]))
PLANE = (
    (np.array([-1.0, 0.5]), np.array([[1.0, 0.3], [0.3, 0.6]])),
    (np.array([1.0, 0.0]), np.array([[0.4, -0.2], [-0.2, 1.2]])),
)


def check_gaussians(source, target, x, y, a, b, epsilon, tolerance, options):
    """Value, divergence, barycentric map and velocity of clouds that stand for two Gaussians."""
    (p, cov_x), (q, cov_y) = source, target
    x, y, a, b = map(jnp.asarray, (x, y, a, b))
    velocity, info = sinkhorn_velocity(x, y, epsilon, a=a, b=b, **options)
    images, _ = barycentric_map(x, y, info.xy.g, epsilon, b)
    divergence, converged = sinkhorn_divergence(x, y, epsilon, a=a, b=b, **options)
    assert info.converged & converged
    value = gaussian_value(cov_x, cov_y, epsilon, p - q)
    bias = gaussian_value(cov_x, cov_x, epsilon), gaussian_value(cov_y, cov_y, epsilon)
    np.testing.assert_allclose(info.xy.value, value, rtol=tolerance)
    np.testing.assert_allclose(info.xx.value, bias[0], rtol=tolerance)
    np.testing.assert_allclose(divergence, value - 0.5 * sum(bias), rtol=tolerance)

    x, a, images, velocity = float64(x, a, images, velocity)
    slope, own = gaussian_slope(cov_x, cov_y, epsilon), gaussian_slope(cov_x, cov_x, epsilon)
    expected = q + (x - p) @ slope.T
    for found, known in ((images, expected), (velocity, expected - p - (x - p) @ own.T)):
        norm = np.sqrt(a @ np.sum(known**2, axis=1))
        assert np.sqrt(a @ np.sum((found - known) ** 2, axis=1)) < tolerance * norm
        # The tails carry no mass but follow the same law, up to where the grid ends.
        centre = np.sqrt(np.sum((x - p) @ np.linalg.inv(cov_x) * (x - p), axis=1)) < 3
        np.testing.assert_allclose(found[centre], known[centre], atol=10 * tolerance)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_gaussian_cross_covariance_is_the_optimum(key, epsilon):
    """The oracle itself: no Gaussian coupling nearby is cheaper, and W tends to Bures'."""
    (_, cov_x), (_, cov_y) = PLANE
    best = cross_covariance(cov_x, cov_y, epsilon)
    least = objective(cov_x, cov_y, epsilon, best)
    for move in np.asarray(jax.random.normal(key, (20, 2, 2)), np.float64):
        step = 1e-5 * move
        ahead, behind = (objective(cov_x, cov_y, epsilon, best + s * step) for s in (1, -1))
        assert min(ahead, behind) > least
        assert abs(ahead - behind) < 1e-2 * (ahead + behind - 2 * least)  # stationary
    root = square_root(cov_x)
    bures = 0.5 * np.trace(cov_x + cov_y) - np.trace(square_root(root @ cov_y @ root))
    np.testing.assert_allclose(gaussian_value(cov_x, cov_y, 1e-7), bures, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_gaussians_on_a_grid_of_the_line(epsilon, dtype):
    exact = dtype == jnp.float64
    x, a = grid(*(part.item() for part in LINE[0]), 400)
    y, b = grid(*(part.item() for part in LINE[1]), 400)
    options = EXACT if exact else {"limits": Limits(2e-5)}
    with jax.enable_x64(exact):
        problem = (np.asarray(array, dtype) for array in (x, y, a, b))
        check_gaussians(*LINE, *problem, epsilon, 1e-6 if exact else 1e-3, options)


@pytest.mark.parametrize("epsilon", [0.5, 5.0])
def test_correlated_gaussians_in_the_plane(epsilon):
    x, a = quadrature(*PLANE[0], 22)
    y, b = quadrature(*PLANE[1], 22)
    with jax.enable_x64(True):
        check_gaussians(*PLANE, x, y, a, b, epsilon, 1e-3, {"limits": Limits(1e-7, 100_000)})


# Epsilon over six decades.

DECADES = 10.0 ** np.arange(-4, 3)


@pytest.mark.parametrize("d", [2, 64])
def test_every_epsilon_is_solved_and_certified(key, d):
    n = 64
    x, y = clouds(key, d, n=n, m=n)
    y = y - 1.0 + 1.0 / np.sqrt(d)
    cost = half_squares(x, y)
    outs = [
        sinkhorn(x, y, epsilon, limits=Limits(max_iterations=500_000))
        for epsilon in DECADES * cost.mean()
    ]
    for epsilon, out in zip(DECADES * cost.mean(), outs, strict=True):
        found = plan(x, y, epsilon, out)
        truth = marginal_error(found, uniform(n), uniform(n))
        np.testing.assert_allclose(out.marginal_error, truth, atol=rounding(x, y, epsilon))
        assert out.converged == (out.marginal_error <= 1e-3)
        assert out.converged
        assert all(np.isfinite(leaf).all() for leaf in out)
    for quality in ("entropy", "neighbours"):
        assert (np.diff([getattr(out, quality) for out in outs]) > -1e-3).all(), quality

    matched = cost[np.arange(n), assignment(x, y)].mean()
    smallest, epsilon = outs[0], DECADES[0] * cost.mean()
    # A matching costs epsilon log n in entropy; only near ties keep the plan from being one.
    np.testing.assert_allclose(smallest.value, matched + epsilon * np.log(n), rtol=1e-3)
    assert smallest.entropy < 0.01
    assert 1 <= smallest.neighbours + 1e-3 < 1.05
    largest = outs[-1]
    assert largest.entropy > 1 - 1e-4
    np.testing.assert_allclose(largest.neighbours, n, rtol=1e-3)
    # The expansion in 1 / epsilon: of the costs, only what is no u(x) + v(y) counts.
    centred = cost - cost.mean(0) - cost.mean(1, keepdims=True) + cost.mean()
    value = cost.mean() - np.mean(centred**2) / (2 * DECADES[-1] * cost.mean())
    np.testing.assert_allclose(largest.value, value, rtol=2e-5)
    np.testing.assert_allclose(largest.diagonal_mass, 1 / n, rtol=1e-2)


@pytest.mark.parametrize("d", [2, 64])
def test_small_epsilon_out_of_iterations_is_reported(key, d):
    n = 64
    x, y = clouds(key, d, n=n, m=n)
    epsilon = 1e-4 * half_squares(x, y).mean()
    out = sinkhorn(x, y, epsilon, limits=Limits(max_iterations=20))
    truth = marginal_error(plan(x, y, epsilon, out), uniform(n), uniform(n))
    assert not out.converged
    assert truth > 1e-3 + rounding(x, y, epsilon)
    np.testing.assert_allclose(out.marginal_error, truth, atol=rounding(x, y, epsilon))


# What the certificate says of the plan.


def entropy_of(weights):
    weights = weights[weights > 0]
    return -np.sum(weights * np.log(weights))


def qualities(pi, a, b):
    """Entropy, neighbours and diagonal mass by their definitions, in float64."""
    product = np.outer(a, b)
    mass = pi > 0
    divergence = np.sum(pi[mass] * np.log(pi[mass] / product[mass]))
    rows = pi[a > 0] / pi[a > 0].sum(1, keepdims=True)
    neighbours = a[a > 0] @ (1 / (rows**2).sum(1))
    return 1 - divergence / min(entropy_of(a), entropy_of(b)), neighbours, np.trace(pi)


@pytest.mark.parametrize(("n", "m", "own"), [(N, M, False), (M, N, False), (N, M, True)])
@pytest.mark.parametrize("weighted", [False, True])
def test_qualities_are_those_of_the_plan(key, n, m, own, weighted):
    x, y = clouds(key, 2, n=n, m=m)
    a, b = weights(key, n=n, m=m) if weighted else (uniform(n), uniform(m))
    y, b = (x, a) if own else (y, b)
    exact = (*float64(x, y), *(w / w.sum() for w in float64(a, b)))
    for epsilon in (0.02, 0.3, 5.0):
        for precise in (True, False):
            dtype = jnp.float64 if precise else jnp.float32
            with jax.enable_x64(precise):
                x, y, a, b = (jnp.asarray(array, dtype) for array in exact)
                options = EXACT if precise else {"limits": Limits(2e-5)}
                if own:
                    out = sinkhorn_self(x, epsilon, a=a, **options)
                else:
                    out = sinkhorn(x, y, epsilon, a=a, b=b, **options)
                assert out.converged
                expected = qualities(plan(*exact[:2], epsilon, out, *exact[2:]), *exact[2:])
                found = out.entropy, out.neighbours, out.diagonal_mass
                tolerance = 1e-8 if precise else 2e-4
                np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_neighbours_are_those_of_normalised_rows(key):
    """Also of a plan whose rows are still far from their sums."""
    x, y = float64(*clouds(key))
    with jax.enable_x64(True):
        limits = {"limits": Limits(1e-10, 20)}
        out = sinkhorn(jnp.asarray(x), jnp.asarray(y), 0.02, **limits)
    found = plan(x, y, 0.02, out)
    assert not out.converged
    assert np.ptp(found.sum(1)) > 0.1 / N
    _, neighbours, mass = qualities(found, uniform(N), uniform(M))
    np.testing.assert_allclose(out.neighbours, neighbours, rtol=1e-8)
    np.testing.assert_allclose(out.diagonal_mass, mass, rtol=1e-8)


def test_qualities_do_not_see_points_without_mass(key):
    x, y = clouds(key)
    a, b = weights(key)
    near = sinkhorn(x, y, 0.4, a=a, b=b, limits=Limits(1e-5))
    far = sinkhorn(x.at[:2].set(500.0), y.at[-2:].set(-500.0), 0.4, a=a, b=b, limits=Limits(1e-5))
    assert near.converged & far.converged
    np.testing.assert_allclose(far.entropy, near.entropy, atol=1e-4)
    np.testing.assert_allclose(far.neighbours, near.neighbours, rtol=1e-4)
    np.testing.assert_allclose(far.diagonal_mass, near.diagonal_mass, atol=1e-5)


def test_a_single_point_has_entropy_one(key):
    x, y = clouds(key)
    alone = jnp.zeros(N).at[3].set(1.0)
    for out, neighbours in (
        (sinkhorn(x[:1], y, 0.1), M),
        (sinkhorn(x, y[:1], 0.1), 1),
        (sinkhorn(x, y, 0.1, a=alone), M),  # the other points have no mass
        (sinkhorn_self(x[:1], 0.1), 1),
        (sinkhorn_self(x, 0.1, a=alone), 1),
    ):
        assert out.converged
        assert out.entropy == 1
        np.testing.assert_allclose(out.neighbours, neighbours, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_identity_plan_is_found_without_iterating(key, weighted):
    n, d = 64, 784
    x, y = clouds(key, d, n=n, m=n)
    a = jax.random.uniform(key, n, minval=0.2) if weighted else jnp.ones(n)
    a = a / a.sum()
    epsilon = 0.02 * half_squares(x, x).mean()
    own = sinkhorn_self(x, epsilon, a=a)
    assert own.converged & (own.num_iterations == 0)
    np.testing.assert_allclose(own.diagonal_mass, 1, rtol=1e-5)
    np.testing.assert_allclose(own.neighbours, 1, rtol=1e-5)
    np.testing.assert_allclose(own.entropy, 0, atol=1e-5)
    np.testing.assert_allclose(own.value, epsilon * entropy_of(np.asarray(a)), rtol=1e-5)

    velocity, info = sinkhorn_velocity(x, y, epsilon, a=a)
    images, _ = barycentric_map(x, y, info.xy.g, epsilon)
    assert info.converged & (info.xx.num_iterations == 0)
    np.testing.assert_allclose(velocity, images - x, atol=2e-4)
    # One target attracts everything: the velocity is then the self term, but for the rounding
    # of the mean that the cloud is solved around.
    velocity, _ = sinkhorn_velocity(x, jnp.zeros_like(y), epsilon, a=a)
    np.testing.assert_allclose(velocity, -x, rtol=0, atol=4 * np.finfo(np.float32).eps)
    # Where two points are close, the plan is not the identity, and the self term not x.
    pair = x.at[1].set(x[0].at[0].add(np.sqrt(2 * epsilon)))
    velocity, info = sinkhorn_velocity(pair, jnp.zeros_like(y), epsilon, a=a)
    rows = plan(pair, pair, epsilon, info.xx, a, a)
    rows /= rows.sum(1, keepdims=True)
    assert 0.5 < rows[0, 0] < 0.9
    np.testing.assert_allclose(velocity, -rows @ float64(pair)[0], atol=1e-3)


# Far from the origin, laws of the velocity.


@pytest.mark.parametrize(("d", "epsilon"), [(2, 0.05), (2, 1.0), (64, 3.0)])
def test_far_from_the_origin(key, d, epsilon):
    """In float32, 1e4 away: the same numbers as for the same points moved back."""
    shift = jnp.full((1, d), 1e4)
    x_far, y_far = (cloud + shift for cloud in clouds(key, d))
    x, y = x_far - shift, y_far - shift  # exact: a difference of neighbours
    a, b = weights(key)
    options = {"a": a, "b": b, "limits": Limits(1e-5)}
    near, far = sinkhorn(x, y, epsilon, **options), sinkhorn(x_far, y_far, epsilon, **options)
    assert near.converged & far.converged
    assert abs(far.num_iterations - near.num_iterations) <= 5
    np.testing.assert_allclose(far.value, near.value, rtol=2e-5)
    np.testing.assert_allclose(
        plan(x, y, epsilon, far, a, b), plan(x, y, epsilon, near, a, b), atol=2e-5
    )
    for quality in ("entropy", "neighbours", "diagonal_mass"):
        expected = getattr(near, quality)
        np.testing.assert_allclose(getattr(far, quality), expected, rtol=2e-4, atol=2e-5)
    solves = [sinkhorn_velocity(x, y, epsilon, **options) for x, y in ((x, y), (x_far, y_far))]
    assert all(info.converged for _, info in solves)
    np.testing.assert_allclose(solves[1][0], solves[0][0], atol=3e-4)
    divergences = [
        sinkhorn_divergence(x, y, epsilon, **options) for x, y in ((x, y), (x_far, y_far))
    ]
    assert all(converged for _, converged in divergences)
    np.testing.assert_allclose(divergences[1][0], divergences[0][0], rtol=1e-4)
    images = [barycentric_map(x, y, near.g, epsilon, b)[0] for x, y in ((x, y), (x_far, y_far))]
    np.testing.assert_allclose(images[1] - shift, images[0], atol=5e-3)  # digits of 1e4


def solve_velocity(x, y, epsilon, a, b):
    """Exactly, in float64."""
    with jax.enable_x64(True):
        x, y, a, b = map(jnp.asarray, (x, y, a, b))
        velocity, info = sinkhorn_velocity(x, y, epsilon, a=a, b=b, **EXACT)
        assert info.converged
        return np.asarray(velocity)


@pytest.mark.parametrize(("d", "epsilon"), [(2, 0.1), (64, 1.0)])
def test_laws_of_the_velocity(key, d, epsilon):
    epsilon = epsilon * d
    x, y = (cloud.copy() for cloud in float64(*clouds(key, d)))
    a, b = (w / w.sum() for w in float64(*weights(key)))
    base = solve_velocity(x, y, epsilon, a, b)

    shift, move = np.linspace(-3, 5, d), np.linspace(1, -2, d)
    both = solve_velocity(x + shift, y + shift, epsilon, a, b)
    np.testing.assert_allclose(both, base, atol=1e-7)
    # Moving the target alone adds the move to every velocity.
    np.testing.assert_allclose(solve_velocity(x, y + move, epsilon, a, b), base + move, atol=1e-7)

    for scale in (1e-3, 20.0):
        scaled = solve_velocity(scale * x, scale * y, scale**2 * epsilon, a, b)
        np.testing.assert_allclose(scaled / scale, base, atol=1e-7)

    turn, _ = np.linalg.qr(np.asarray(jax.random.normal(key, (d, d)), np.float64))
    turned = solve_velocity(x @ turn, y @ turn, epsilon, a, b)
    np.testing.assert_allclose(turned, base @ turn, atol=1e-7)

    rows, columns = np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(M)
    permuted = solve_velocity(x[rows], y[columns], epsilon, a[rows], b[columns])
    np.testing.assert_allclose(permuted, base[rows], atol=1e-7)

    # Points without mass take a share of others: the velocity is that of the whole.
    x[0], a[0], a[-1] = x[-1], 0.3 * a[-1], 0.7 * a[-1]
    y[-1], b[-1], b[0] = y[0], 0.6 * b[0], 0.4 * b[0]
    expected = np.concatenate([base[-1:], base[1:]])
    np.testing.assert_allclose(solve_velocity(x, y, epsilon, a, b), expected, atol=1e-7)


# What is compiled.


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("d", [2, 64])
def test_no_product_is_rounded_unasked(key, d, storage):
    """Every matrix product asks for full precision: accelerators otherwise take TF32."""
    x, y = clouds(key, d)
    second = x + 1.0

    def value(x, gradient):
        limits = {"limits": Limits(max_iterations=20, storage=storage)}
        return sinkhorn(x, y, 0.1, gradient=gradient, **limits).value

    programs = {
        "velocity": lambda x: sinkhorn_velocity(x, y, 0.1, limits=Limits(storage=storage)),
        "two clouds": lambda x: sinkhorn_velocity(
            x, y, 0.1, self_cloud=second, limits=Limits(storage=storage)
        ),
        "self": lambda x: sinkhorn_self(x, 0.1, limits=Limits(storage=storage)),
        "envelope": jax.grad(lambda x: value(x, "envelope")),
        "implicit": jax.grad(lambda x: value(x, "implicit")),
        "unrolled": jax.grad(lambda x: value(x, "unrolled")),
    }
    for name, program in programs.items():
        text = jax.jit(program).lower(x).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        careless = [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
        assert not careless, name
        assert "dot " not in text and "convolution" not in text
        assert products or name in ("self", "unrolled"), name


# Batches.


@pytest.fixture
def small_chunks(monkeypatch):
    """Rows that really are recomputed in pieces; traces made with others are dropped."""
    monkeypatch.setattr(_kernel, "CHUNK", 3 * M)
    jax.clear_caches()
    yield
    jax.clear_caches()


def batch(key):
    """The third pair has costs far above epsilon = 0.5."""
    xs, ys = jax.vmap(clouds)(jax.random.split(key, 4))
    return (xs.at[2].multiply(10.0), ys.at[2].multiply(10.0)), [True, True, False, True]


def both_ways(solve, pairs):
    scanned = jax.lax.scan(lambda carry, pair: (carry, solve(*pair)), 0, pairs)[1]
    return jax.vmap(solve)(*pairs), scanned


@pytest.mark.slow
def test_one_velocity_of_a_batch_that_fails_is_the_one_flagged(key):
    pairs, expected = batch(key)
    solve = jax.jit(lambda x, y: sinkhorn_velocity(x, y, 0.5, limits=Limits(max_iterations=40)))
    loop = [solve(x, y) for x, y in zip(*pairs, strict=True)]
    for velocities, info in both_ways(solve, pairs):
        assert info.converged.tolist() == info.xy.converged.tolist() == expected
        assert info.xx.converged.all()
        for index, (velocity, single) in enumerate(loop):
            assert info.converged[index] == single.converged
            assert info.xy.num_iterations[index] == single.xy.num_iterations
            if single.converged:  # what fails next to it leaves a solve alone
                np.testing.assert_allclose(velocities[index], velocity, atol=1e-4)


@pytest.mark.slow
def test_one_solve_of_a_batch_in_chunks_that_fails_is_the_one_flagged(key, small_chunks):
    pairs, expected = batch(key)
    solve = lambda x, y: sinkhorn(x, y, 0.5, limits=Limits(max_iterations=40, storage="chunks"))
    for out in both_ways(solve, pairs):
        assert out.converged.tolist() == expected
        for index, (x, y) in enumerate(zip(*pairs, strict=True)):
            found = plan(x, y, 0.5, jax.tree.map(lambda leaf, index=index: leaf[index], out))
            truth = marginal_error(found, uniform(N), uniform(M))
            np.testing.assert_allclose(out.marginal_error[index], truth, atol=rounding(x, y, 0.5))


# Any input.


def points(n):
    return hnp.arrays(np.float32, (n, 2), elements=st.floats(-3, 3, width=32))


def masses(n):
    numbers = hnp.arrays(np.float32, n, elements=st.floats(0, 1, width=32))
    usable = numbers.filter(lambda weights: weights.sum() > 0.5)
    return usable.map(lambda weights: weights / weights.sum(dtype=np.float64))


@settings(deadline=None, max_examples=10)
@given(points(N), points(M), masses(N), masses(M), st.floats(0.1, 10))
def test_any_divergence_is_symmetric_and_not_negative(x, y, a, b, epsilon):
    x, y, a, b = (jnp.asarray(array, jnp.float32) for array in (x, y, a, b))
    one, converged = sinkhorn_divergence(x, y, epsilon, a=a, b=b, limits=Limits(1e-4))
    other, swapped = sinkhorn_divergence(y, x, epsilon, a=b, b=a, limits=Limits(1e-4))
    assert converged & swapped
    # Each of the values is off by at most the certificate times the spread of the costs.
    tolerance = 1e-4 * half_squares(np.concatenate([x, y]), np.concatenate([x, y])).max() + 1e-5
    assert one > -tolerance
    np.testing.assert_allclose(one, other, atol=tolerance)
