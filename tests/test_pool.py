"""Trajectory pool: times and velocities by hand, sampling, certificates, errors."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import sinkflow
from sinkflow import Limits, data, flow, pool

CLOUDS, N, STEPS, ETA = 4, 8, 4, 0.5
# A large epsilon, so that float32 reaches the threshold well above its rounding. Velocities are
# then known to about 3e-5 times the clouds' extent of 10, geodesic ones to eight times that.
SETTINGS = {"num_clouds": CLOUDS, "num_particles": N, "epsilon": 4.0, "limits": Limits(3e-5)}
DRAWS = 20_000


def built(key, time="geodesic", **changes):
    steps = flow.step_sizes(ETA, STEPS, full_last=time == "geodesic")
    settings = {**SETTINGS, "step_sizes": steps, "time": time, **changes}
    return pool.build(key, data.gaussian, data.eight_gaussians, **settings)


def handmade(key):
    """Three particles with two steps each: own times, and widths that differ by particle."""
    key_x, key_v = jax.random.split(key)
    first = jnp.array([0.5, 0.9, 0.1])
    t = jnp.stack([jnp.zeros(3), first], axis=1)
    width = jnp.stack([first, 1 - first], axis=1)
    shape = (3, 2, 2)
    return pool.Pool(jax.random.normal(key_x, shape), jax.random.normal(key_v, shape), t, width)


def test_geodesic_times_are_one_minus_powers(key):
    rows, _ = built(key)
    # By hand: 1 - s_k = (1 - eta)^k; the last step is a full one and ends at s = 1.
    s = np.append(1 - (1 - ETA) ** np.arange(STEPS), 1.0)
    np.testing.assert_allclose(rows.t, np.tile(s[:-1], (CLOUDS * N, 1)), atol=1e-6)
    np.testing.assert_allclose(rows.width, np.tile(np.diff(s), (CLOUDS * N, 1)), atol=1e-6)


def test_flow_times_are_sums_of_steps_without_width(key):
    rows, _ = built(key, "flow")
    np.testing.assert_allclose(rows.t, np.tile(ETA * np.arange(STEPS), (CLOUDS * N, 1)), atol=1e-6)
    assert np.all(np.asarray(rows.width) == 0)


def test_flow_rows_hold_the_velocity_of_their_own_cloud(key):
    rows, _ = built(key, "flow")
    for cloud in (0, CLOUDS - 1):
        key_x, key_y = jax.random.split(jax.random.fold_in(key, cloud))
        x, y = data.gaussian(key_x, N), data.eight_gaussians(key_y, N)
        own = slice(cloud * N, (cloud + 1) * N)
        np.testing.assert_array_equal(rows.x[own, 0], x)
        for k in range(STEPS):
            expected, info = sinkflow.sinkhorn_velocity(rows.x[own, k], y, 4.0, limits=Limits(3e-5))
            assert bool(info.converged)
            np.testing.assert_allclose(rows.velocity[own, k], expected, atol=1e-3)
    assert np.max(np.abs(rows.velocity)) > 1  # a thousand times the tolerance


def test_flow_rows_follow_one_another_by_euler_steps(key):
    rows, _ = built(key, "flow")
    moved = rows.x[:, :-1] + ETA * rows.velocity[:, :-1]
    np.testing.assert_allclose(moved, rows.x[:, 1:], atol=1e-5)


def test_geodesic_velocity_is_that_of_the_flow_over_the_time_left(key):
    geodesic, _ = built(key)
    plain, _ = built(key, "flow")
    np.testing.assert_allclose(geodesic.x, plain.x, atol=1e-5)  # the last step comes after them
    left = ((1 - ETA) ** np.arange(STEPS))[None, :, None]
    np.testing.assert_allclose(geodesic.velocity, plain.velocity / left, rtol=1e-4, atol=1e-4)


def test_geodesic_segments_join_and_the_last_one_ends_at_x_plus_v(key):
    rows, _ = built(key)
    plain, _ = built(key, "flow")
    ends = rows.x + rows.width[:, :, None] * rows.velocity
    np.testing.assert_allclose(ends[:, :-1], rows.x[:, 1:], atol=1e-5)
    np.testing.assert_allclose(ends[:, -1], plain.x[:, -1] + plain.velocity[:, -1], atol=1e-4)


def test_sampled_rows_lie_on_their_segments(key):
    rows = handmade(key)
    batch = jax.tree.map(np.asarray, pool.sample(rows, jax.random.key(1), DRAWS))
    rows = jax.tree.map(np.asarray, rows)
    # Every draw must fit one particle: inside its segment, and on the line.
    inside = (batch.t[:, None, None] >= rows.t - 1e-6) & (
        batch.t[:, None, None] <= rows.t + rows.width + 1e-6
    )
    elapsed = (batch.t[:, None, None] - rows.t)[..., None]
    line = rows.x[None] + elapsed * rows.velocity[None]
    off = np.max(np.abs(batch.x[:, None, None] - line), axis=-1)
    wrong = np.max(np.abs(batch.velocity[:, None, None] - rows.velocity[None]), axis=-1)
    fits = inside & (off < 1e-5) & (wrong == 0)
    assert np.all(fits.any(axis=(1, 2)))
    counts = fits.sum(axis=0)
    assert counts.sum() == DRAWS
    # Particles alike, segments in proportion to their width.
    expected = np.array([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]]) * DRAWS / 3
    assert scipy.stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-4


def test_a_path_is_known_at_any_time(key):
    rows = handmade(key)
    at = pool.at(rows, jnp.array([0, 0, 1, 2, 2]), jnp.array([0.25, 0.75, 0.9, -1.0, 2.0]))
    x, v = np.asarray(rows.x), np.asarray(rows.velocity)
    expected = [
        x[0, 0] + 0.25 * v[0, 0],
        x[0, 1] + 0.25 * v[0, 1],
        x[1, 0] + 0.9 * v[1, 0],  # the corner
        x[2, 0],  # before the path
        x[2, 1] + 0.9 * v[2, 1],  # after it
    ]
    np.testing.assert_allclose(at.x, expected, atol=1e-6)
    np.testing.assert_allclose(at.t, [0.25, 0.75, 0.9, 0.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(at.velocity, [v[0, 0], v[0, 1], v[1, 0], v[2, 0], v[2, 1]])


def test_a_path_of_a_full_step_is_known_to_its_end(key):
    rows, _ = built(key, step_sizes=flow.step_sizes(1.0, 3, full_last=True))
    row = jnp.arange(4)
    end = pool.at(rows, row, jnp.ones(4))
    np.testing.assert_allclose(end.x, rows.x[:4, 0] + rows.velocity[:4, 0], atol=1e-4)


def test_a_path_in_flow_time_is_known_where_it_was_stored(key):
    rows, _ = built(key, "flow")
    at = pool.at(rows, jnp.array([3, 3]), jnp.array([1.1 * ETA, 1.7 * ETA]))
    np.testing.assert_array_equal(at.x, rows.x[jnp.array([3, 3]), jnp.array([1, 1])])
    np.testing.assert_array_equal(at.t, [ETA, ETA])


def test_sample_times_are_uniform_in_geodesic_time(key):
    rows, _ = built(key)
    for source in (rows, handmade(key)):
        batch = pool.sample(source, jax.random.key(2), DRAWS)
        assert scipy.stats.kstest(np.asarray(batch.t), "uniform").pvalue > 1e-4


def test_a_power_prefers_early_times_and_stays_on_the_paths(key):
    rows = handmade(key)
    batch = jax.tree.map(np.asarray, pool.sample(rows, jax.random.key(2), DRAWS, power=3.0))
    rows = jax.tree.map(np.asarray, rows)
    # t = u^3 with u uniform: its cube root is uniform.
    assert scipy.stats.kstest(np.cbrt(batch.t), "uniform").pvalue > 1e-4
    elapsed = (batch.t[:, None, None] - rows.t)[..., None]
    off = np.abs(batch.x[:, None, None] - (rows.x[None] + elapsed * rows.velocity[None]))
    assert np.all(off.max(axis=-1).min(axis=(1, 2)) < 1e-5)


@pytest.mark.parametrize("stop", [1.0, 0.6])
def test_a_start_and_a_stop_leave_other_times_out(key, stop):
    rows, _ = built(key)
    own = {"power": 2.0, "start": 0.3, "stop": stop}
    t = np.asarray(pool.sample(rows, jax.random.key(2), DRAWS, **own).t)
    assert t.min() >= 0.3 and t.max() <= stop
    assert scipy.stats.kstest(np.sqrt((t - 0.3) / (stop - 0.3)), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_flow_samples_are_stored_states_alike_often(key, power):
    rows, _ = built(key, "flow")
    batch = pool.sample(rows, jax.random.key(3), DRAWS, power)
    stored = np.concatenate([rows.x, rows.velocity, rows.t[..., None]], axis=-1).reshape(-1, 5)
    drawn = np.concatenate([batch.x, batch.velocity, batch.t[:, None]], axis=-1)
    index = {tuple(row): number for number, row in enumerate(stored.tolist())}
    assert len(index) == CLOUDS * N * STEPS  # else the counts below are not of rows
    counts = np.bincount([index[tuple(row)] for row in drawn.tolist()], minlength=len(index))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_sample_follows_from_its_key_and_runs_under_jit(key):
    rows = handmade(key)
    draw = jax.jit(pool.sample, static_argnums=2)
    batch = draw(rows, jax.random.key(5), 7)
    assert batch.x.shape == batch.velocity.shape == (7, 2) and batch.t.shape == (7,)
    chex.assert_trees_all_close(batch, pool.sample(rows, jax.random.key(5), 7), atol=1e-6)
    assert not np.array_equal(batch.t, draw(rows, jax.random.key(6), 7).t)


def test_full_steps_before_the_last_are_never_drawn(key):
    # A step of 1 arrives at s = 1: what comes after has no width and an infinite speed.
    rows, _ = built(key, step_sizes=flow.step_sizes(1.0, 3, full_last=True))
    batch = pool.sample(rows, key, 2_000)
    assert all(np.all(np.isfinite(leaf)) for leaf in batch)
    assert scipy.stats.kstest(np.asarray(batch.t), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("sizes", [[-1.0, 2.0, 1.0], [0.0, 1.0], [0.5, np.nan]])
def test_steps_outside_the_unit_interval_are_refused(key, sizes):
    with pytest.raises(ValueError, match="step_sizes is"):
        built(key, step_sizes=jnp.array(sizes), time="flow")


def test_pool_follows_from_its_key(key):
    first, _ = built(key)
    second, _ = built(key)
    chex.assert_trees_all_equal(first, second)
    other, _ = built(jax.random.key(1))
    assert np.max(np.abs(first.x - other.x)) > 0.1


def test_clouds_do_not_depend_on_their_company(key):
    one, info_one = built(key)
    many, info_many = built(key, clouds_per_call=4)
    chex.assert_trees_all_close(many, one, atol=3e-3)
    np.testing.assert_allclose(info_many.neighbours, info_one.neighbours, rtol=1e-3)
    fewer, _ = built(key, num_clouds=2)
    chex.assert_trees_all_equal(fewer, jax.tree.map(lambda leaf: leaf[: 2 * N], one))
    assert np.max(np.abs(one.x[:N] - one.x[N : 2 * N])) > 0.1  # and they are different clouds


def test_certificates_have_one_entry_for_each_cloud_and_step(key):
    _, info = built(key, clouds_per_call=2)
    assert all(leaf.shape == (CLOUDS, STEPS) for leaf in info)
    assert info.converged.all() and info.marginal_error.max() <= SETTINGS["limits"].threshold
    assert info.num_iterations.min() > 0
    assert np.all((info.neighbours >= 1) & (info.neighbours <= N))


def test_progress_sees_every_call(key):
    seen = []
    _, info = built(key, num_clouds=6, progress=lambda calls: seen.extend(calls) or seen)
    # Four devices share the clouds; the last one fills the second call.
    assert [list(call) for call in seen] == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert len(info.converged) == 6


def test_unconverged_pool_is_refused_with_count_and_worst_error(key):
    settings = {"epsilon": 0.01, "limits": Limits(3e-5, 30)}
    rows, info = built(key, allow_unconverged=True, **settings)
    failed = int((~info.converged).sum())
    assert failed > 0
    assert rows.x.shape == (CLOUDS * N, STEPS, 2)
    worst = f"{info.marginal_error.max():.2g}"
    expected = f"{failed} of {CLOUDS * STEPS} Sinkhorn solves did not converge (worst marginal "
    with pytest.raises(RuntimeError, match=re.escape(expected + f"error {worst}, wanted 3e-05)")):
        built(key, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "physical"}, "unknown time 'physical'; choose one of geodesic, flow"),
        ({"num_clouds": 0}, "num_clouds is 0"),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be positive"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"clouds_per_call": 3}, "clouds_per_call is 3; it must divide 4"),
        ({"clouds_per_call": 0}, "clouds_per_call is 0"),
        ({"step_sizes": jnp.array([0.5, 0.5])}, "step_sizes ends with 0.5"),
    ],
)
def test_impossible_pools_raise(key, changes, message):
    steps = flow.step_sizes(ETA, STEPS, full_last=True)
    settings = {**SETTINGS, "step_sizes": steps, **changes}
    with pytest.raises(ValueError, match=message):
        pool.build(key, data.gaussian, data.eight_gaussians, **settings)


@pytest.mark.parametrize("sizes", [[0.5, 1], (0.5, 1.0), np.array([0.5, 1], np.float16)])
def test_steps_come_in_any_container_and_times_in_full_precision(key, sizes):
    expected, _ = built(key, step_sizes=jnp.array([0.5, 1.0]))
    rows, _ = built(key, step_sizes=sizes)
    chex.assert_trees_all_equal_shapes_and_dtypes(rows, expected)
    chex.assert_trees_all_equal(rows, expected)


def test_one_whole_step_makes_a_pool_that_can_be_sampled(key):
    rows, _ = built(key, step_sizes=flow.step_sizes(1, 1))
    batch = pool.sample(rows, key, 16)
    assert batch.t.dtype == jnp.float32 and len(np.unique(batch.t)) > 8


def spoiled(sampler, cloud_key):
    """The sampler with one NaN in the cloud of that key."""

    def sample(key, n):
        hit = jnp.all(jax.random.key_data(key) == jax.random.key_data(cloud_key))
        return sampler(key, n).at[3, 0].set(jnp.where(hit, jnp.nan, 0.0))

    return sample


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("clouds_per_call", [1, 2])
def test_a_sampler_that_gives_nan_is_named(key, name, clouds_per_call):
    samplers = {"source": data.gaussian, "target": data.eight_gaussians}
    third = jax.random.split(jax.random.fold_in(key, 2))[0 if name == "source" else 1]
    samplers[name] = spoiled(samplers[name], third)
    steps = flow.step_sizes(ETA, STEPS, full_last=True)
    settings = {**SETTINGS, "step_sizes": steps, "clouds_per_call": clouds_per_call}
    message = f"^{name} gave points that are not finite in 1 of 4 clouds, first in cloud 2: mend"
    for allow in (False, True):
        with pytest.raises(ValueError, match=message):
            pool.build(key, **samplers, **settings, allow_unconverged=allow)


def test_strict_promotion_allows_sampling_a_pool(key):
    with jax.numpy_dtype_promotion("strict"):
        batch = pool.sample(handmade(key), key, 16, power=2.0, start=0.1)
    assert batch.x.dtype == jnp.float32


def test_times_of_half_precision_pairs_are_float32(key):
    x0, x1 = jax.random.normal(key, (2, 6, 2)).astype(jnp.bfloat16)
    rows = pool.from_pairs(x0, x1)
    assert rows.x.dtype == jnp.bfloat16 and rows.t.dtype == rows.width.dtype == jnp.float32
    assert pool.sample(rows, key, 4).x.dtype == jnp.float32


@pytest.mark.parametrize("time", pool.TIMES)
def test_abstract_pool_matches_a_built_one(key, time):
    rows, _ = built(key, time)
    chex.assert_trees_all_equal_shapes_and_dtypes(rows, pool.abstract(CLOUDS * N, STEPS, dim=2))


def test_half_precision_pool_holds_the_same_rows_in_half_the_memory(key):
    full, half = built(key)[0], built(key, dtype=jnp.float16)[0]
    assert half.x.nbytes + half.velocity.nbytes == (full.x.nbytes + full.velocity.nbytes) // 2
    rows, expected = (pool.sample(leaf, key, 256) for leaf in (half, full))
    chex.assert_trees_all_equal_shapes_and_dtypes(rows, expected)
    # Rounded to 11 digits: positions and velocities are at most about 20.
    chex.assert_trees_all_close(rows, expected, atol=20 * 2**-11)
    assert np.any(np.asarray(rows.x) != np.asarray(expected.x))


def test_summary_by_hand():
    info = pool.PoolInfo(
        converged=np.array([[True, False], [True, True]]),
        marginal_error=np.array([[1e-4, 3e-2], [2e-4, 1e-5]]),
        neighbours=np.array([[8.0, 2.0], [6.0, 1.0]]),
        num_iterations=np.array([[10, 20], [30, 40]]),
    )
    assert pool.summary(info) == {
        "solves": 4,
        "unconverged": 1,
        "worst_marginal_error": 3e-2,
        "mean_iterations": 25.0,
        "neighbours": [7.0, 1.5],
    }


def test_summary_of_a_restored_pool_is_that_of_a_new_one(key):
    # As the drivers have them: new ones are NumPy's, restored ones JAX's on the device.
    random = np.random.default_rng(0)
    info = pool.PoolInfo(
        np.ones((64, 8), bool),
        random.uniform(size=(64, 8)).astype(np.float32),
        random.uniform(1, 9, size=(64, 8)).astype(np.float32),
        random.integers(1, 5_000, size=(64, 8)).astype(np.int32),
    )
    assert pool.summary(pool.PoolInfo(*map(jnp.asarray, info))) == pool.summary(info)


def test_horizon_is_one_or_the_sum_of_steps():
    steps = flow.step_sizes(0.1, 30)
    assert pool.horizon(steps, "geodesic") == 1.0
    assert pool.horizon(steps, "flow") == pytest.approx(3.0, rel=1e-6)
