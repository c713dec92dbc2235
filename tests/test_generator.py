"""Objectives of one-step generators, and their networks."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import Limits, costs, generator, generators, opponents, sinkhorn, sinkhorn_velocity
from sinkflow._generated import normal
from sinkflow.ot.offdiagonal import sinkhorn_offdiagonal
from sinkflow.ot.scaling import matrix_scaling

EPSILON = 0.3
TIGHT = {"limits": Limits(1e-5, 5_000)}


def affine(params, z):
    return z @ params["a"] + params["b"][None, :]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"a": 0.7 * jax.random.normal(keys[0], (2, 2)), "b": jnp.asarray([0.3, -0.2])}
    z, y = jax.random.normal(keys[1], (24, 2)), 1 + jax.random.normal(keys[2], (30, 2))
    return params, z, y, keys[3]


def gradient(loss, params, z, y, key, **settings):
    of_params = jax.grad(lambda p: loss(affine, p, z, y, key, **settings)[0])
    return jax.flatten_util.ravel_pytree(of_params(params))[0]


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)


def relative(one, other):
    return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))


@pytest.mark.parametrize("self_cloud", ["same", "diagonal"])
def test_regression_with_its_own_cloud_has_the_gradient_of_the_divergence(problem, self_cloud):
    settings = {"self_cloud": self_cloud, **TIGHT}
    regression = gradient(generator.regression_loss, *problem, epsilons=[EPSILON], **settings)
    envelope = gradient(generator.divergence_loss, *problem, epsilon=EPSILON, **settings)
    assert relative(regression, envelope) < 1e-3


def test_regression_with_a_second_cloud_has_the_gradient_of_the_divergence(problem):
    """Over both roles of the two clouds: the divergence shares the self term among them."""
    params, z, y, key = problem
    second = normal(key, z)

    def both_roles(loss, **settings):
        pairs = (z, second), (second, z)
        one, two = (
            gradient(loss, params, own, y, key, latent=lambda *_, o=other: o, **settings)
            for own, other in pairs
        )
        return 0.5 * (one + two)

    regression = both_roles(generator.regression_loss, epsilons=[EPSILON], **TIGHT)
    envelope = both_roles(generator.divergence_loss, epsilon=EPSILON, **TIGHT)
    assert relative(regression, envelope) < 1e-3


@pytest.mark.parametrize("self_cloud", generator.SELF_CLOUDS)
def test_gradients_agree_at_convergence(problem, self_cloud):
    settings = {"epsilon": 1.0, "self_cloud": self_cloud, "limits": Limits(1e-9, 400)}
    with jax.enable_x64(True):
        params, z, y = double(problem[:3])
        names = ["envelope", "unrolled"] + ["implicit"] * (self_cloud != "diagonal")
        envelope, *others = (
            gradient(generator.divergence_loss, params, z, y, problem[3], gradient=name, **settings)
            for name in names
        )
    assert all(relative(other, envelope) < 1e-3 for other in others)


def test_the_entropic_loss_is_the_entropic_cost(problem):
    params, z, y, _ = problem
    value, certificate = generator.entropic_loss(affine, params, z, y, epsilon=EPSILON, **TIGHT)
    expected = sinkhorn(affine(params, z), y, EPSILON, **TIGHT)
    assert float(value) == pytest.approx(float(expected.value))
    assert int(certificate.unconverged) == 0


@pytest.mark.parametrize("num_iterations", [1, 3, 20])
def test_the_tutorials_loss_is_matrix_scaling_in_either_domain(problem, num_iterations):
    with jax.enable_x64(True):
        params, z, y = double(problem[:3])
        settings = {"epsilon": EPSILON, "num_iterations": num_iterations}

        def by_hand(params):
            cost = costs.squared_euclidean(affine(params, z), y)
            return matrix_scaling(cost, EPSILON, num_iterations=num_iterations).transport_cost

        expected = jax.value_and_grad(by_hand)(params)
        for domain in generator.DOMAINS:

            def loss(params, domain=domain):
                return generator.transport_loss(affine, params, z, y, domain=domain, **settings)

            (value, certificate), slope = jax.value_and_grad(loss, has_aux=True)(params)
            assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), slope, expected[1]
            )
            assert int(certificate.unconverged) == 0


def test_underflow_is_reported_and_the_log_domain_has_none(problem):
    params, z, y, _ = problem
    settings = {"epsilon": 2e-3, "num_iterations": 20}
    (_, scaled), (value, logged) = (
        generator.transport_loss(affine, params, z, y, domain=domain, **settings)
        for domain in ("scaling", "log")
    )
    assert int(scaled.unconverged) == 1
    assert int(logged.unconverged) == 0 and np.isfinite(value)


def test_the_transport_cost_has_no_envelope(problem):
    """With the plan held, the gradient of <C, pi> is that of the entropic cost: another one."""
    settings = {"epsilon": 1.0, "num_iterations": 400}
    unrolled = gradient(generator.transport_loss, *problem, **settings)
    held = gradient(generator.entropic_loss, *problem, epsilon=1.0, **TIGHT)
    assert relative(held, unrolled) > 0.05
    params, z, y, _ = problem
    step = 1e-2
    moved = {**params, "b": params["b"] + jnp.asarray([step, 0.0])}
    back = {**params, "b": params["b"] - jnp.asarray([step, 0.0])}
    shifted = [generator.transport_loss(affine, p, z, y, **settings)[0] for p in (moved, back)]
    slope = float(shifted[0] - shifted[1]) / (2 * step)
    assert slope == pytest.approx(float(unrolled[4]), rel=2e-2)


def test_epsilons_are_added_and_normalized(problem):
    values = [
        gradient(generator.regression_loss, *problem, epsilons=epsilons, **TIGHT)
        for epsilons in ([0.3], [1.0], [0.3, 1.0])
    ]
    np.testing.assert_allclose(values[0] + values[1], values[2], rtol=1e-3, atol=1e-5)
    loss, certificate = generator.regression_loss(
        affine, *problem, epsilons=[0.3], normalize=True, **TIGHT
    )
    assert float(loss) == pytest.approx(0.5 * 2, rel=1e-4)  # two coordinates of mean square 1
    assert int(certificate.unconverged) == 0 and int(certificate.num_iterations) > 0


def test_a_plan_without_its_diagonal_is_that_of_matrix_scaling():
    x = jax.random.normal(jax.random.key(3), (12, 3))
    out = sinkhorn_offdiagonal(x, 0.4, **TIGHT)
    cost = np.asarray(costs.squared_euclidean(x, x), np.float64)
    kernel = np.exp(-cost / 0.4) * (1 - np.eye(12))
    u = v = np.ones(12)
    for _ in range(2000):
        u = 1 / (12 * kernel @ v)
        v = 1 / (12 * kernel.T @ u)
    plan = u[:, None] * kernel * v[None, :]
    f = np.asarray(out.f, np.float64)
    found = np.exp((f[:, None] + f[None, :] - cost) / 0.4) * (1 - np.eye(12)) / 144
    np.testing.assert_allclose(found, plan, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1 / 12, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1 / 12, atol=1e-5)
    np.testing.assert_allclose(out.images, 12 * plan @ np.asarray(x), atol=1e-4)
    entropic = np.sum(plan * cost) + 0.4 * np.sum(plan[plan > 0] * np.log(144 * plan[plan > 0]))
    assert float(out.value) == pytest.approx(entropic, rel=1e-4)
    neighbours = np.mean(1 / np.sum((12 * plan) ** 2, axis=1))
    assert float(out.neighbours) == pytest.approx(neighbours, rel=1e-4)
    error = np.abs(found.sum(axis=1) - 1 / 12).sum()
    assert float(out.marginal_error) == pytest.approx(error, abs=2e-6)
    assert bool(out.converged) and out.marginal_error <= TIGHT["limits"].threshold


@pytest.mark.parametrize("bad", ["iterations", "nan", "far"])
def test_a_plan_without_its_diagonal_is_not_certified_for_nothing(bad):
    x = jax.random.normal(jax.random.key(3), (12, 3))
    x = x.at[0, 0].set(jnp.nan) if bad == "nan" else x * (1e6 if bad == "far" else 1)
    limits = {"limits": Limits(1e-4, 2 if bad == "iterations" else 500)}
    out = sinkhorn_offdiagonal(x, 1e-3, **limits)
    assert not bool(out.converged)
    if bad == "iterations":
        assert float(out.marginal_error) > 1e-4


def test_without_the_diagonal_samples_contract_less_in_many_dimensions():
    """At equality of laws a velocity should not shrink the samples; METHOD 4.6's case."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, y, second = (jax.random.normal(key, (256, 64)) for key in keys)
    settings = {"epsilon": 0.05 * 64, "limits": Limits(1e-3, 1_000)}

    def contraction(v):
        return float(jnp.sum(v * x) / jnp.sum(x**2))

    same = contraction(sinkhorn_velocity(x, y, **settings)[0])
    independent = contraction(sinkhorn_velocity(x, y, self_cloud=second, **settings)[0])
    moved, solves = generator._offdiagonal_velocity(x, y, **settings)
    assert all(bool(solve.converged) for solve in solves)
    assert same < -0.5
    assert abs(contraction(moved)) < 0.05 and abs(independent) < 0.05


def test_the_drift_is_that_of_the_published_algorithm(problem):
    """Written out sample by sample; a sample is no negative of itself."""
    params, z, y, _ = problem
    x, y = (np.asarray(cloud, np.float64) for cloud in (affine(params, z), y))
    n, real = len(x), len(y)
    every = np.concatenate([y, x])
    kernel = np.exp(-np.linalg.norm(x[:, None] - every[None], axis=2) / 0.7)
    kernel[np.arange(n), real + np.arange(n)] = 0
    both = kernel / np.sqrt(kernel.sum(1, keepdims=True) * kernel.sum(0, keepdims=True))
    pull, push = both[:, :real], both[:, real:]
    drift = (pull * push.sum(1, keepdims=True)) @ y - (push * pull.sum(1, keepdims=True)) @ x
    value, _ = opponents.drift_loss(
        affine, params, z, problem[2], temperature=0.7, self_cloud="diagonal"
    )
    assert float(value) == pytest.approx(0.5 * np.mean(np.sum(drift**2, axis=1)), rel=1e-4)


def test_a_solve_that_runs_out_of_iterations_is_counted(problem):
    settings = {"limits": Limits(1e-6, 5)}
    _, certificate = generator.regression_loss(affine, *problem, epsilons=[1e-2], **settings)
    assert int(certificate.unconverged) > 0
    assert float(certificate.marginal_error) > 1e-6


@pytest.mark.parametrize(
    ("loss", "settings"),
    [(opponents.energy_loss, {}), (opponents.drift_loss, {"temperature": 1.0})],
)
@pytest.mark.parametrize("self_cloud", generator.SELF_CLOUDS)
def test_opponents_without_a_solver_move_samples_to_the_data(problem, loss, settings, self_cloud):
    params, z, y, key = problem
    far = {**params, "b": params["b"] - 3}
    settings = {**settings, "self_cloud": self_cloud}
    slope = jax.grad(lambda p: loss(affine, p, z, y, key, **settings)[0])(far)
    assert np.all(np.asarray(slope["b"]) < 0)  # towards y, whose mean is 1
    assert bool(loss(affine, far, z, y, key, **settings)[1])


def test_wrong_settings_are_named(problem):
    with pytest.raises(
        ValueError, match="unknown self_cloud 'third'; choose one of second, same, diagonal"
    ):
        generator.divergence_loss(affine, *problem, epsilon=1.0, self_cloud="third")
    with pytest.raises(ValueError, match="needs a key"):
        generator.divergence_loss(affine, *problem[:3], epsilon=1.0)
    with pytest.raises(ValueError, match="unknown domain 'sqrt'; choose one of log, scaling"):
        generator.transport_loss(affine, *problem, epsilon=1.0, num_iterations=1, domain="sqrt")
    with pytest.raises(ValueError, match="x has 1 point, which has no other one"):
        sinkhorn_offdiagonal(jnp.zeros((1, 2)), 1.0)
    with pytest.raises(ValueError, match="'implicit' of a plan without its diagonal"):
        sinkhorn_offdiagonal(jnp.zeros((3, 2)), 1.0, gradient="implicit")
    with pytest.raises(ValueError, match="to unroll it must be a Python int"):
        sinkhorn_offdiagonal(
            jnp.zeros((3, 2)), 1.0, gradient="unrolled", limits=Limits(max_iterations=1.5)
        )
    with pytest.raises(ValueError, match="epsilons is empty"):
        generator.regression_loss(affine, *problem, epsilons=[])


@pytest.mark.slow
def test_the_image_generator_has_the_asked_shape_range_and_labels():
    z = jax.random.normal(jax.random.key(0), (3, 5))
    net = generators.ConvGenerator(channels=8, num_classes=10)
    params = net.init(jax.random.key(1), z, jnp.zeros(3, int))
    zeros, ones = (net.apply(params, z, jnp.full(3, label)) for label in (0, 1))
    assert zeros.shape == (3, 28, 28, 1) and zeros.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(zeros))) < 1 and not np.allclose(zeros, ones)
    with pytest.raises(ValueError, match="no labels given and num_classes is 10"):
        net.apply(params, z)
    odd = generators.ConvGenerator(shape=(30, 30, 1), channels=8)
    with pytest.raises(ValueError, match="images of 30x30 with 3 levels; pad"):
        odd.init(jax.random.key(1), z)
    with pytest.raises(ValueError, match="unknown head 'relu'; choose tanh or linear"):
        generators.ConvGenerator(channels=8, head="relu").init(jax.random.key(1), z)


def test_the_mlp_generates_the_asked_dimension():
    z = jax.random.normal(jax.random.key(0), (3, 5))
    net = generators.GeneratorMLP(2, (16, 16))
    assert net.apply(net.init(jax.random.key(1), z), z).shape == (3, 2)
