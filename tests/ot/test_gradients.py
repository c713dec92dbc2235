"""gradients: envelope, implicit and unrolled derivatives against finite differences, each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkflow
from sinkflow import Limits, sinkhorn, sinkhorn_divergence, sinkhorn_self, sinkhorn_velocity

N, M, EPSILON = 7, 5, 0.3
EXACT = {"limits": Limits(1e-12, 100_000)}
OPTIONS = {
    "envelope": EXACT,
    "implicit": EXACT,
    "unrolled": {"limits": Limits(1e-12, 400)},
}


@pytest.fixture
def problem(key):
    """Clouds and weights in float64, one weight of each zero."""
    keys = jax.random.split(key, 4)
    with jax.enable_x64(True):
        a = jax.random.uniform(keys[2], N, jnp.float64, 0.2).at[0].set(0.0)
        b = jax.random.uniform(keys[3], M, jnp.float64, 0.2).at[-1].set(0.0)
        x = jax.random.normal(keys[0], (N, 2), jnp.float64)
        y = jax.random.normal(keys[1], (M, 2), jnp.float64) + 1.0
        yield x, y, jnp.float64(EPSILON), a / a.sum(), b / b.sum()


def direction(key, problem):
    """A random tangent that keeps the sum of the weights and the zeros among them."""
    keys = jax.random.split(key, 5)
    x, y, _, a, b = problem

    def of_weights(key, weights):
        move = weights * jax.random.normal(key, weights.shape)
        return move - weights * move.sum()

    return (
        jax.random.normal(keys[0], x.shape),
        jax.random.normal(keys[1], y.shape),
        jnp.float64(0.4),
        of_weights(keys[2], a),
        of_weights(keys[3], b),
    )


def central_difference(fn, problem, move, step=1e-4):
    ahead, behind = (
        fn(*jax.tree.map(lambda p, t, s=s: p + s * t, problem, move)) for s in (step, -step)
    )
    return jax.tree.map(lambda u, v: (u - v) / (2 * step), ahead, behind)


@pytest.mark.parametrize("gradient", OPTIONS)
@pytest.mark.slow
def test_value_in_every_argument(key, problem, gradient):
    def value(x, y, epsilon, a, b):
        out = sinkhorn(x, y, epsilon, a=a, b=b, gradient=gradient, **OPTIONS[gradient])
        return out.value

    move = direction(key, problem)
    for index in range(5):
        only = tuple(t if i == index else jnp.zeros_like(t) for i, t in enumerate(move))
        expected = central_difference(value, problem, only)
        _, forward = jax.jvp(value, problem, only)
        np.testing.assert_allclose(forward, expected, rtol=1e-6)
        backward = jax.grad(value, index)(*problem)
        np.testing.assert_allclose(jnp.sum(backward * only[index]), expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", OPTIONS)
def test_value_of_the_self_solve(key, problem, gradient):
    def value(x, epsilon, a):
        return sinkhorn_self(x, epsilon, a=a, gradient=gradient, **OPTIONS[gradient]).value

    x, _, epsilon, a, _ = problem
    x_dot, _, epsilon_dot, a_dot, _ = direction(key, problem)
    arguments, move = (x, epsilon, a), (x_dot, epsilon_dot, a_dot)
    expected = central_difference(value, arguments, move)
    np.testing.assert_allclose(jax.jvp(value, arguments, move)[1], expected, rtol=1e-6)
    backward = jax.grad(value, (0, 1, 2))(*arguments)
    found = sum(jnp.sum(g * t) for g, t in zip(backward, move, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_potentials(key, problem, gradient):
    def sums(x, y, epsilon, a, b):  # free of the constant
        out = sinkhorn(x, y, epsilon, a=a, b=b, gradient=gradient, **OPTIONS[gradient])
        return out.f[:, None] + out.g[None, :]

    move = direction(key, problem)
    expected = central_difference(sums, problem, move)
    np.testing.assert_allclose(jax.jvp(sums, problem, move)[1], expected, atol=1e-6)
    weights = jax.random.normal(key, (N, M))
    backward = jax.grad(lambda *problem: jnp.sum(weights * sums(*problem)), range(5))(*problem)
    found = sum(jnp.sum(g * t) for g, t in zip(backward, move, strict=True))
    np.testing.assert_allclose(found, jnp.sum(weights * expected), rtol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_self_potential(key, problem, epsilon):
    """Also where the plan is the identity, which the alternating system would not survive."""
    x, _, _, a, _ = problem
    x_dot, _, _, a_dot, _ = direction(key, problem)
    a, a_dot = (a, a_dot) if epsilon > 0.1 else (jnp.full(N, 1 / N), jnp.zeros(N))

    def potential(x, a):
        return sinkhorn_self(x, epsilon, a=a, **EXACT).f

    expected = central_difference(potential, (x, a), (x_dot, a_dot), step=1e-5)
    found = jax.jvp(potential, (x, a), (x_dot, a_dot))[1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_velocity_can_be_differentiated(key, problem):
    x, y, epsilon, _, _ = problem

    def velocity(x, y):
        return sinkhorn_velocity(x, y, epsilon, **EXACT)[0]

    move = direction(key, problem)[:2]
    expected = central_difference(velocity, (x, y), move)
    np.testing.assert_allclose(jax.jvp(velocity, (x, y), move)[1], expected, atol=1e-6)


@pytest.mark.slow
def test_second_derivative_of_the_value(key, problem):
    """The implicit rule differentiates the potentials that the first derivative holds."""
    x, y, epsilon, a, b = problem

    def gradient(x):
        out = lambda x: sinkhorn(x, y, epsilon, a=a, b=b, gradient="implicit", **EXACT).value
        return jax.grad(out)(x)

    move = direction(key, problem)[0]
    (expected,) = (central_difference(gradient, (x,), (move,)),)
    np.testing.assert_allclose(jax.jvp(gradient, (x,), (move,))[1], expected, atol=1e-6)


def test_implicit_corrects_what_is_left_to_converge(key, problem):
    x, y, epsilon, a, b = problem
    options = {"a": a, "b": b}

    def gradient(kind, count):
        value = lambda x: sinkhorn(
            x, y, epsilon, gradient=kind, limits=Limits(1e-12, count), **options
        )
        return jax.grad(lambda x: value(x).value)(x)

    exact = gradient("envelope", 100_000)
    errors = {kind: jnp.linalg.norm(gradient(kind, 15) - exact) for kind in OPTIONS}
    assert 0 < errors["implicit"] < 0.3 * errors["envelope"]


@pytest.mark.parametrize("gradient", OPTIONS)
def test_divergence_gradient_is_minus_the_velocity(problem, gradient):
    x, y, epsilon, a, b = problem
    a = jnp.full(N, 1 / N)

    def divergence(x):
        return sinkhorn_divergence(x, y, epsilon, a=a, b=b, gradient=gradient, **OPTIONS[gradient])[
            0
        ]

    velocity, info = sinkhorn_velocity(x, y, epsilon, a=a, b=b, **EXACT)
    assert info.converged
    np.testing.assert_allclose(-N * jax.grad(divergence)(x), velocity, atol=1e-8)


@pytest.mark.slow
def test_divergence_with_a_second_cloud(key, problem):
    """Both clouds carry the gradient: with x' = x, together that of the divergence."""
    x, y, epsilon, _, _ = problem

    def divergence(x, second):
        return sinkhorn_divergence(x, y, epsilon, self_cloud=second, **EXACT)[0]

    plain = sinkhorn_divergence(x, y, epsilon, **EXACT)[0]
    np.testing.assert_allclose(divergence(x, x), plain, rtol=1e-9)
    both = sum(jax.grad(divergence, (0, 1))(x, x))
    expected = jax.grad(lambda x: sinkhorn_divergence(x, y, epsilon, **EXACT)[0])(x)
    np.testing.assert_allclose(both, expected, atol=1e-9)


def test_unrolled_solves_are_certified(problem):
    x, y, epsilon, a, b = problem
    exact = sinkhorn(x, y, epsilon, a=a, b=b, **EXACT)
    for count, converged in ((3, False), (400, True)):
        out = sinkhorn(x, y, epsilon, a=a, b=b, gradient="unrolled", limits=Limits(1e-9, count))
        assert out.converged == converged
        assert out.num_iterations == count
    np.testing.assert_allclose(out.value, exact.value, rtol=1e-9)
    np.testing.assert_allclose(out.neighbours, exact.neighbours, rtol=1e-9)


def test_wrong_settings_are_named(problem):
    x, y, epsilon, _, _ = problem
    with pytest.raises(ValueError, match="unknown gradient 'danskin'; choose one of envelope"):
        sinkhorn(x, y, epsilon, gradient="danskin")
    with pytest.raises(ValueError, match=r"max_iterations is 2\.5; to unroll"):
        sinkhorn_self(x, epsilon, gradient="unrolled", limits=Limits(max_iterations=2.5))


@pytest.mark.slow
def test_gradients_far_from_the_origin(key):
    """In float32, 1e4 away: the shift costs the digits of the points, not of the sums."""
    x = jax.random.normal(key, (N, 2))
    y = jax.random.normal(jax.random.fold_in(key, 1), (M, 2)) + 1.0
    shift = jnp.full((1, 2), 1e4)
    x_far, y_far = x + shift, y + shift
    x, y = x_far - shift, y_far - shift  # with the same rounding
    gradients = [
        jax.grad(lambda x, y=y: sinkhorn(x, y, EPSILON, limits=Limits(1e-5)).value)(x)
        for x, y in ((x, y), (x_far, y_far))
    ]
    np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-5)


RIGHT = np.array([[0.311275, 0.188725], [0.188725, 0.311275]])  # float64, implicit gradient


@pytest.mark.parametrize("gradient", ["envelope", "implicit", "general"])
def test_second_derivatives_see_the_potentials_move(gradient):
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.3], [2.0]])

    def value(x):
        if gradient == "general":
            return sinkflow.general.sinkhorn(x, y, 0.5, limits=Limits(1e-6)).value
        return sinkhorn(x, y, 0.5, limits=Limits(1e-6), gradient=gradient).value

    np.testing.assert_allclose(jax.hessian(value)(x).reshape(2, 2), RIGHT, atol=2e-5)


@pytest.mark.slow
def test_second_derivatives_against_differences_of_first_ones(key, problem):
    """Of the divergence in clouds, of the self solve, and of what a velocity depends on."""
    x, y, epsilon, a, b = problem

    def squares_around_mean(f):  # potentials are free of a constant
        return jnp.sum(a * (f - jnp.sum(a * f)) ** 2)

    calls = {
        "divergence": lambda x: sinkhorn_divergence(x, y, epsilon, a=a, b=b, **EXACT)[0],
        "self": lambda x: sinkhorn_self(x, epsilon, a=a, **EXACT).value,
        "velocity": lambda x: jnp.sum(sinkhorn_velocity(x, y, epsilon, a=a, b=b, **EXACT)[0] ** 2),
        "potential": lambda x: squares_around_mean(sinkhorn(x, y, epsilon, a=a, b=b, **EXACT).f),
        "soft": lambda x: (
            sinkflow.general.sinkhorn(
                x,
                y,
                EPSILON,
                a=a,
                b=b,
                marginal_penalty=1.0,
                limits=Limits(1e-12, 10_000),
            ).value
        ),
    }
    move = jax.random.normal(key, x.shape, x.dtype)
    for name, call in calls.items():
        first = jax.grad(call)
        _, found = jax.jvp(first, (x,), (move,))
        expected = (first(x + 1e-4 * move) - first(x - 1e-4 * move)) / 2e-4
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, err_msg=name)
