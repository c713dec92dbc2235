"""flow: step, run and a loop agree; certificate; energy; Gaussian flow; compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import solve_ivp

from sinkflow import Limits, flow, sinkhorn
from sinkflow.ot.divergence import sinkhorn_divergence, sinkhorn_velocity

N, M, STEPS = 13, 9, 4


def clouds(key, d=2):
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (N, d)), 0.5 * jax.random.normal(key_y, (M, d)) + 2.0


def test_init_starts_at_time_zero(key):
    x, y = clouds(key)
    state = flow.init(x, y)
    np.testing.assert_array_equal(state.x, x)
    assert state.t == 0
    assert state.xy.guess.shape == state.xy.plain.shape == (M,)
    assert state.xx.guess.shape == state.xx.plain.shape == (N,)


def test_steps_along_optimal_transport_scale_the_targets_potential(key):
    # A cloud and its image under a gradient: the optimal map, so that what is left of the way
    # scales the potential, up to what entropy adds, which is far below it here.
    y = jax.random.normal(key, (200, 2))
    x = y @ jnp.array([[0.6, 0.2], [0.2, 0.4]]) - 3.0
    state, info = flow.step(flow.init(x, y), y, epsilon=0.01, step_size=0.5)
    _, after = flow.step(state, y, epsilon=0.01, step_size=0.5)
    _, cold = flow.step(flow.init(state.x, y), y, epsilon=0.01, step_size=0.5)
    assert info.converged and after.converged and cold.converged
    solved = sinkhorn(state.x, y, 0.01).g
    spread = jnp.std(solved)
    assert jnp.std(state.xy.guess - solved) < 0.05 * spread
    np.testing.assert_allclose(after.velocity, cold.velocity, atol=0.02)
    assert after.num_iterations < cold.num_iterations


def test_run_is_a_loop_of_steps(key):
    x, y = clouds(key)
    sizes = jnp.array([0.5, 0.25, 0.5, 1.0])
    last, trajectory, infos = flow.run(x, y, 0.1, sizes, limits=Limits(1e-5))
    state = flow.init(x, y)
    for k in range(STEPS):
        np.testing.assert_allclose(trajectory.x[k], state.x, atol=1e-5)
        np.testing.assert_allclose(trajectory.t[k], state.t, atol=1e-6)
        before = state
        state, info = flow.step(state, y, epsilon=0.1, step_size=sizes[k], limits=Limits(1e-5))
        np.testing.assert_array_equal(state.x, before.x + sizes[k] * info.velocity)
        np.testing.assert_allclose(trajectory.velocity[k], info.velocity, atol=1e-4)
        np.testing.assert_allclose(infos.neighbours[k], info.neighbours, rtol=1e-3)
        assert infos.converged[k] & info.converged
    np.testing.assert_allclose(last.x, state.x, atol=1e-4)
    np.testing.assert_allclose(last.t, 2.25, rtol=1e-6)


def test_everything_about_a_step_has_a_leading_steps_axis(key):
    x, y = clouds(key)
    last, trajectory, info = flow.run(x, y, 0.1, flow.step_sizes(0.25, STEPS))
    for record in (trajectory, info):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(record)} == {STEPS}
    assert trajectory.x.shape == trajectory.velocity.shape == info.velocity.shape == (STEPS, N, 2)
    np.testing.assert_array_equal(info.velocity, trajectory.velocity)
    np.testing.assert_allclose(trajectory.t, [0.0, 0.25, 0.5, 0.75])
    assert last.t == 1.0
    assert last.x.shape == (N, 2)


@pytest.mark.parametrize("d", [2, 64])
def test_warm_starts_do_not_change_the_path(key, d):
    x, y = clouds(key, d)
    epsilon = 0.05 * d
    last, trajectory, info = flow.run(
        x, y, epsilon, flow.step_sizes(0.5, STEPS), limits=Limits(1e-5)
    )
    assert info.converged.all()
    cold, iterations = x, []
    for k in range(STEPS):
        np.testing.assert_allclose(trajectory.x[k], cold, atol=1e-3)
        velocity, cold_info = sinkhorn_velocity(cold, y, epsilon, limits=Limits(1e-5))
        assert cold_info.converged
        iterations.append(int(cold_info.xy.num_iterations + cold_info.xx.num_iterations))
        cold = cold + 0.5 * velocity
    np.testing.assert_allclose(last.x, cold, atol=1e-3)
    # Where steps are large the solves start cold, and cost the same.
    assert info.num_iterations.sum() <= sum(iterations)


def test_warm_starts_follow_small_steps_in_few_iterations(key):
    x, y = clouds(key)
    _, _, info = flow.run(x, y, 0.1, jnp.full(STEPS, 0.02))
    assert info.converged.all()
    assert (info.num_iterations[1:] < 0.6 * info.num_iterations[0]).all()


def test_unconverged_solves_are_visible(key):
    """METHOD 4.1: five iterations a step end far from the target, and nothing would say so."""
    x, y = clouds(key)
    options = {"epsilon": 0.005, "step_sizes": jnp.full(STEPS, 0.25)}
    _, _, capped = flow.run(x, y, **options, limits=Limits(max_iterations=5))
    assert not capped.converged.any()
    assert (capped.marginal_error > 1e-3).all()
    _, _, info = flow.run(x, y, **options)
    assert (capped.num_iterations < info.num_iterations).all()
    assert info.converged.all()
    assert (info.marginal_error <= 1e-3).all()
    _, _, info = flow.run(x.at[0, 0].set(jnp.nan), y, **options)
    assert not info.converged.any()


def test_certificate_is_the_worse_solve_of_each_step(key):
    x, y = clouds(key)
    _, trajectory, info = flow.run(x, y, 0.1, flow.step_sizes(0.5, STEPS))
    first = sinkhorn_velocity(x, y, 0.1)[1]
    assert first.xy.marginal_error != first.xx.marginal_error
    worse = max(first.xy.marginal_error, first.xx.marginal_error)
    np.testing.assert_allclose(info.marginal_error[0], worse, rtol=0.05)


@pytest.mark.slow
def test_energy_falls_to_zero_along_the_flow(key):
    x, y = clouds(key)
    last, trajectory, info = flow.run(x, y, 0.1, jnp.full(20, 0.25), limits=Limits(1e-4))
    assert info.converged.all()
    path = jnp.concatenate([trajectory.x, last.x[None]])
    energy, converged = jax.vmap(
        lambda moved: sinkhorn_divergence(moved, y, 0.1, limits=Limits(1e-4))
    )(path)
    assert converged.all()
    assert (jnp.diff(energy) < 1e-4).all()
    assert energy[-1] < 0.02 * energy[0]
    # At the start the energy falls by the squared length of the velocity, to first order.
    small, _, _ = flow.run(x, y, 0.1, jnp.full(1, 0.01), limits=Limits(1e-5))
    fall = energy[0] - sinkhorn_divergence(small.x, y, 0.1, limits=Limits(1e-5))[0]
    squares = jnp.mean(jnp.sum(trajectory.velocity[0] ** 2, axis=1))
    np.testing.assert_allclose(fall, 0.01 * squares, rtol=0.02)


def test_vmapped_run_equals_a_loop(key):
    xs, ys = jax.vmap(clouds)(jax.random.split(key, 3))
    sizes = flow.step_sizes(0.5, STEPS)
    solve = functools.partial(flow.run, epsilon=0.1, step_sizes=sizes, limits=Limits(1e-5))
    last, trajectory, info = jax.vmap(lambda x, y: solve(x, y))(xs, ys)
    assert info.converged.shape == (3, STEPS)
    assert info.converged.all()
    for index in range(3):
        single, path, _ = solve(xs[index], ys[index])
        np.testing.assert_allclose(last.x[index], single.x, atol=1e-4)
        np.testing.assert_allclose(trajectory.x[index], path.x, atol=1e-4)
        np.testing.assert_allclose(trajectory.t[index], path.t)


def test_new_values_do_not_recompile(key):
    x, y = clouds(key)
    flow.run(x, y, 0.1, flow.step_sizes(0.5, STEPS))
    compiled = flow._run._cache_size()
    flow.run(x + 1.0, y, 0.2, flow.step_sizes(0.25, STEPS, full_last=True))
    flow.run(x, y, jnp.array(0.3), jnp.linspace(0.1, 0.4, STEPS))
    # Typed scalars are another aval to jit, not another value: at most one more program.
    assert flow._run._cache_size() <= compiled + 1
    flow.run(x, y, 0.4, flow.step_sizes(0.5, STEPS), limits=Limits(1e-2, 100))
    compiled = flow._run._cache_size()
    flow.run(x, y, 0.5, flow.step_sizes(0.1, STEPS), limits=Limits(1e-4, 200))
    assert flow._run._cache_size() == compiled


def test_a_full_step_lands_on_the_barycentric_targets(key):
    x, y = clouds(key)
    last, _, info = flow.run(x[:M], y, 1e-3, flow.step_sizes(0.5, STEPS, full_last=True))
    assert info.converged.all()
    # At small epsilon the plan is a matching and the self term the identity.
    distances = jnp.linalg.norm(last.x[:, None] - y[None, :], axis=-1)
    assert sorted(distances.argmin(1).tolist()) == list(range(M))
    np.testing.assert_allclose(distances.min(1), 0.0, atol=5e-3)
    np.testing.assert_allclose(info.neighbours[-1], 1.0, atol=5e-2)


def test_float64_under_x64(key):
    points = [np.asarray(cloud, np.float64) for cloud in clouds(key)]
    with jax.enable_x64(True):
        x, y = map(jnp.asarray, points)
        last, trajectory, info = flow.run(x, y, 0.1, jnp.full(2, 0.5), limits=Limits(1e-10))
    assert last.x.dtype == last.t.dtype == trajectory.velocity.dtype == np.float64
    assert info.converged.all()
    assert (np.asarray(info.marginal_error) < 1e-10).all()


def test_step_sizes():
    np.testing.assert_allclose(flow.step_sizes(0.25, 3), [0.25, 0.25, 0.25])
    np.testing.assert_allclose(flow.step_sizes(0.25, 3, full_last=True), [0.25, 0.25, 1.0])
    np.testing.assert_allclose(flow.step_sizes(1.0, 1), [1.0])


@pytest.mark.parametrize("step_size", [0.0, -0.5, 1.5, float("nan")])
def test_step_size_outside_its_range_raises(step_size):
    with pytest.raises(ValueError, match=f"step_size is {step_size}; a step of the flow is in"):
        flow.step_sizes(step_size, 3)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_raise(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; it must be at least 1"):
        flow.step_sizes(0.5, num_steps)


def test_bad_input_raises_at_the_call(unchecked_shapes):
    x, sizes = jnp.zeros((4, 2)), jnp.full(STEPS, 0.5)
    with pytest.raises(ValueError, match="x and y differ in dimension"):
        flow.run(x, jnp.zeros((3, 5)), 0.1, sizes)
    with pytest.raises(ValueError, match=r"epsilon is -1\.0; it must be positive"):
        flow.step(flow.init(x, x), x, epsilon=-1.0, step_size=0.5)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, float("nan")])
def test_a_wrong_epsilon_is_an_error_at_the_call_and_data_in_a_trace(key, epsilon):
    x, y = clouds(key)
    sizes = flow.step_sizes(0.5, STEPS)
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}"):
        flow.run(x, y, epsilon, sizes)
    traced = jax.jit(lambda value: flow.run(x, y, value, sizes, limits=Limits(max_iterations=50)))
    assert not traced(epsilon)[2].converged.any()


@pytest.mark.slow
def test_halves_are_each_others_self_reference(key):
    x, y = clouds(key)
    x, y = x[: 2 * (N // 2)], y[: 2 * (M // 2)]
    half, target = x.shape[0] // 2, y.shape[0] // 2
    options = {"limits": Limits(1e-5)}
    state, info = flow.step(
        flow.init(x, y), y, epsilon=0.5, step_size=0.25, independent_self=True, **options
    )
    expected = [
        sinkhorn_velocity(x[:half], y[:target], 0.5, self_cloud=x[half:], **options)[0],
        sinkhorn_velocity(x[half:], y[target:], 0.5, self_cloud=x[:half], **options)[0],
    ]
    np.testing.assert_allclose(info.velocity, jnp.concatenate(expected), atol=1e-3)
    np.testing.assert_allclose(state.x, x + 0.25 * info.velocity, atol=1e-6)
    assert info.converged
    same, _ = sinkhorn_velocity(x, y, 0.5, **options)
    assert not np.allclose(info.velocity, same, atol=1e-2)
    with pytest.raises(ValueError, match="even"):
        flow.step(flow.init(x[1:], y), y, epsilon=0.5, step_size=0.25, independent_self=True)


MEAN_X, MEAN_Y = np.array([-1.0, 0.5]), np.array([1.0, 0.0])
COV_X, COV_Y = np.array([[1.0, 0.3], [0.3, 0.6]]), np.array([[0.4, -0.2], [-0.2, 1.2]])


def square_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def gaussian_map(source, target, epsilon):
    """Linear part of the entropic map between centred Gaussians; test_divergence.py checks it."""
    root, half = square_root(source), 0.5 * epsilon * np.eye(len(source))
    middle = square_root(root @ target @ root + half @ half)
    cross = root @ middle @ np.linalg.inv(root) - half
    return cross.T @ np.linalg.inv(source)


def gaussian_flow(epsilon, time):
    """Mean m and linear part P of the exact flow, x(t) = m(t) + P(t) (x(0) - m(0)).

    The velocity is affine, so a Gaussian stays Gaussian with covariance P Cov P^T.
    """

    def change(_, state):
        mean, linear = state[:2], state[2:].reshape(2, 2)
        covariance = linear @ COV_X @ linear.T
        rate = gaussian_map(covariance, COV_Y, epsilon)
        rate -= gaussian_map(covariance, covariance, epsilon)
        return np.concatenate([MEAN_Y - mean, (rate @ linear).ravel()])

    start = np.concatenate([MEAN_X, np.eye(2).ravel()])
    end = solve_ivp(change, (0, time), start, rtol=1e-9, atol=1e-9).y[:, -1]
    return end[:2], end[2:].reshape(2, 2)


def test_exact_gaussian_flow_ends_at_the_target():
    """The oracle itself: its far end is known without it."""
    mean, linear = gaussian_flow(0.5, 60.0)
    np.testing.assert_allclose(mean, MEAN_Y, atol=1e-6)
    np.testing.assert_allclose(linear @ COV_X @ linear.T, COV_Y, atol=1e-3)


@pytest.mark.slow
def test_particles_between_gaussians_tend_to_the_exact_flow(key):
    epsilon, step_size, num_steps = 0.5, 0.02, 50  # Euler's own error is below 0.01 then
    mean, linear = gaussian_flow(epsilon, step_size * num_steps)
    covariance = linear @ COV_X @ linear.T
    sizes, paths, covariances = [64, 256, 1024], [], []
    for n in sizes:
        normals = np.asarray(jax.random.normal(key, (3, 2, n, 2)), np.float64)
        path, spread = [], []
        for normal_x, normal_y in normals:
            x = MEAN_X + normal_x @ square_root(COV_X)
            y = MEAN_Y + normal_y @ square_root(COV_Y)
            last, _, info = flow.run(
                jnp.asarray(x, jnp.float32),
                jnp.asarray(y, jnp.float32),
                epsilon,
                jnp.full(num_steps, step_size),
            )
            assert info.converged.all()
            end = np.asarray(last.x, np.float64)
            exact = mean + (x - MEAN_X) @ linear.T
            path.append(np.mean(np.sum((end - exact) ** 2, axis=1)))
            spread.append(np.sum((np.cov(end.T) - covariance) ** 2))
        paths.append(np.sqrt(np.mean(path)))
        covariances.append(np.sqrt(np.mean(spread)))
    assert paths[0] > paths[1] > paths[2]
    assert -0.7 < np.polyfit(np.log(sizes), np.log(paths), 1)[0] < -0.3  # Monte Carlo is -0.5
    assert paths[2] < 0.08
    assert covariances[2] < 0.5 * covariances[0]
    assert covariances[2] < 0.08


coordinates = st.floats(-3, 3, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=20)
@given(
    hnp.arrays(np.float32, (N, 2), elements=coordinates),
    hnp.arrays(np.float32, (M, 2), elements=coordinates),
    st.floats(0.1, 10),
)
def test_any_flow_moves_its_mean_geometrically(x, y, epsilon):
    """Every step of size h takes the mean a fraction h of the way, whatever the clouds."""
    last, trajectory, info = flow.run(
        jnp.asarray(x), jnp.asarray(y), epsilon, jnp.full(STEPS, 0.5), limits=Limits(1e-4)
    )
    assert info.converged.all()
    expected = y.mean(0) + 0.5**STEPS * (x.mean(0) - y.mean(0))
    np.testing.assert_allclose(last.x.mean(0), expected, atol=2e-3)
    # Images are averages of points of the two clouds, and a half step goes half the way there.
    assert jnp.abs(trajectory.velocity).max() <= 6 + 1e-3


@pytest.mark.parametrize(("seed", "cloud"), [(3, 41), (3, 119)])
def test_half_precision_does_not_stop_beyond_its_range(seed, cloud):
    """Warm solves whose first round moves potentials far, and then seems to be the last."""
    key = jax.random.split(jax.random.fold_in(jax.random.key(seed), cloud))
    centres = jax.random.normal(jax.random.key(0), (10, 784))
    index, noise = jax.random.split(key[1])
    index = jax.random.randint(index, (256,), 0, 10)
    y = jnp.tanh(2 * (0.8 * centres[index] + 0.6 * jax.random.normal(noise, (256, 784))))
    x = jax.random.normal(key[0], (256, 784))
    _, _, info = flow.run(x, y, 1.0, flow.step_sizes(0.2, 5), limits=Limits(storage="half"))
    assert info.converged.all(), info.marginal_error


def test_equal_steps_are_floating_whatever_the_numbers():
    for sizes in (flow.step_sizes(1, 1), flow.step_sizes(1, 3, full_last=True)):
        assert sizes.dtype == jnp.float32
    np.testing.assert_array_equal(flow.step_sizes(1, 2), [1.0, 1.0])


@pytest.mark.parametrize("sizes", [[0.5, 1], (1,), np.array([0.25]), np.array([0.5], np.float16)])
def test_checked_steps_keep_their_values_in_float32(sizes):
    checked = flow.check_step_sizes(sizes)
    assert isinstance(checked, jax.Array) and checked.dtype == jnp.float32
    np.testing.assert_array_equal(checked, np.asarray(sizes, np.float32))
    traced = jax.jit(flow.check_step_sizes)(jnp.asarray(sizes))
    assert traced.dtype == jnp.float32
    np.testing.assert_array_equal(traced, checked)


def test_checked_steps_keep_float64():
    with jax.enable_x64(True):
        assert flow.check_step_sizes(np.array([0.1])).dtype == jnp.float64
        assert flow.check_step_sizes(jnp.array([0.1], jnp.float32)).dtype == jnp.float32
        assert flow.check_step_sizes([0.1]).dtype == jnp.float64
