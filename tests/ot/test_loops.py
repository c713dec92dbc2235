"""Batches that shrink take every member through the steps it takes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import pool, sinkhorn, sinkhorn_velocity
from sinkflow.flow import step_sizes
from sinkflow.ot import _loops, divergence


def unfinished(problem, state):
    return state["count"] < problem["wanted"]


def advance(problem, state):
    total = state["total"] + problem["matrix"] @ state["total"] + problem["shared"]
    return {"count": state["count"] + 1, "total": total / jnp.linalg.norm(total)}


def start(size=None):
    shape = () if size is None else (size,)
    return {"count": jnp.zeros(shape, int), "total": jnp.ones((*shape, 3))}


def problems(wanted, key=0):
    matrix = jax.random.normal(jax.random.key(key), (len(wanted), 3, 3))
    return {"matrix": matrix, "wanted": jnp.asarray(wanted), "shared": jnp.arange(3.0)}


AXES = {"matrix": 0, "wanted": 0, "shared": None}


def alone(problem, index):
    one = {**problem, "matrix": problem["matrix"][index], "wanted": problem["wanted"][index]}
    return _loops.while_loop(unfinished, advance, one, start())


@pytest.mark.parametrize(
    "wanted",
    [
        [3],
        [0, 0, 0, 0, 0, 0],
        [5, 1, 0, 2, 40],
        [7] * 17,
        list(np.random.default_rng(0).integers(0, 60, 70)),
        [1] * 63 + [50],
    ],
    ids=["one", "none unfinished", "five", "all equal", "three sizes", "one straggler"],
)
def test_every_member_as_if_alone(wanted):
    problem = problems(wanted)

    def loop(problem, state):
        return _loops.while_loop(unfinished, advance, problem, state)

    batch = jax.jit(jax.vmap(loop, (AXES, 0)))(problem, start(len(wanted)))
    np.testing.assert_array_equal(batch["count"], wanted)
    for index in range(len(wanted)):
        expected = alone(problem, index)["total"]
        np.testing.assert_allclose(batch["total"][index], expected, rtol=1e-4)


def test_state_that_the_batch_shares():
    problem = problems([4, 9, 2])
    batch = jax.vmap(lambda one: _loops.while_loop(unfinished, advance, one, start()), (AXES,))
    np.testing.assert_array_equal(batch(problem)["count"], [4, 9, 2])


def test_batches_of_batches():
    wanted = np.random.default_rng(1).integers(0, 30, (6, 9))
    stacked = [problems(row, key) for key, row in enumerate(wanted)]
    problem = {
        name: jnp.stack([one[name] for one in stacked]) if axis == 0 else stacked[0][name]
        for name, axis in AXES.items()
    }

    def loop(problem):
        return _loops.while_loop(unfinished, advance, problem, start())

    batch = jax.vmap(jax.vmap(loop, (AXES,)), (AXES,))(problem)
    np.testing.assert_array_equal(batch["count"], wanted)


def test_a_hard_cloud_does_not_keep_the_others_busy():
    """Work is counted in members advanced, by a callback from each."""
    advanced = []

    def counted(problem, state):
        jax.debug.callback(lambda _: advanced.append(1), state["count"])
        return advance(problem, state)

    wanted = [2] * 63 + [100]

    def loop(problem, state):
        return _loops.while_loop(unfinished, counted, problem, state)

    out = jax.vmap(loop, (AXES, 0))(problems(wanted), start(64))
    jax.block_until_ready(out)
    jax.effects_barrier()
    # 2 rounds of 64; the straggler's 98 remaining rounds in the smallest batch, not in 64.
    assert len(advanced) <= 2 * 64 + 98 * _loops.SMALLEST


def test_solves_of_a_batch_are_those_of_its_clouds():
    keys = jax.random.split(jax.random.key(0), 2)
    scales = jnp.linspace(0.2, 3.0, 20)[:, None, None]
    x = scales * jax.random.normal(keys[0], (20, 24, 2))
    y = jax.random.normal(keys[1], (20, 24, 2)) + 1
    batch = jax.vmap(lambda x, y: sinkhorn(x, y, 0.05))(x, y)
    counts = np.asarray(batch.num_iterations)
    assert counts.max() > 4 * counts.min(), "some clouds must be harder"
    assert bool(jnp.all(batch.converged))
    for index in (0, int(counts.argmin()), int(counts.argmax())):
        one = sinkhorn(x[index], y[index], 0.05)
        np.testing.assert_allclose(batch.value[index], one.value, rtol=1e-5)
        np.testing.assert_allclose(batch.marginal_error[index], one.marginal_error, atol=2e-4)


@pytest.mark.slow
def test_a_pool_is_that_of_its_clouds():
    """One by one or side by side, to what float32 leaves of differently ordered sums."""

    def source(key, n):
        return jax.random.normal(key, (n, 2))

    given = {"num_clouds": 12, "num_particles": 32, "epsilon": 0.02}
    given["step_sizes"] = step_sizes(0.5, 3, full_last=True)
    pools = [
        pool.build(jax.random.key(0), source, source, clouds_per_call=count, **given)[0]
        for count in (12, 1)
    ]
    np.testing.assert_allclose(pools[0].x, pools[1].x, atol=5e-3)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
@pytest.mark.parametrize("threshold", [-1.0, 3.0, 99.0], ids=["all", "some", "none"])
def test_a_batch_computes_what_a_member_needs_and_nothing_else(shape, threshold):
    """Members that need it by a callback from each; also of batches of batches."""
    computed = []

    def sine(x):
        jax.debug.callback(lambda _: computed.append(1), x[0])
        return 2 * jnp.sin(x)

    def one(x):
        return _loops.only_if(jnp.sum(x) > threshold, sine, x, x)

    function = one
    for _ in shape:
        function = jax.vmap(function)
    x = jnp.arange(jnp.prod(jnp.asarray((*shape, 3))).item(), dtype=float).reshape(*shape, 3)
    needed = x.sum(-1, keepdims=True) > threshold
    np.testing.assert_allclose(
        jax.jit(function)(x), jnp.where(needed, 2 * jnp.sin(x), x), rtol=1e-6
    )
    jax.effects_barrier()
    assert len(computed) == (max(1, x.size // 3) if needed.any() else 0)
    slope = jax.grad(lambda x: function(x).sum())(x)
    np.testing.assert_allclose(slope, jnp.where(needed, 2 * jnp.cos(x), 1), rtol=1e-6)


def test_clouds_that_stay_where_they_are_cost_no_projection(monkeypatch):
    """In a batch of identity plans the self term's images are the clouds."""
    projected = []
    real = divergence.project

    def counted(cost, *rest):
        jax.debug.callback(lambda _: projected.append(1), cost.x[0, 0])
        return real(cost, *rest)

    x = 10 * jax.random.normal(jax.random.key(0), (3, 32, 20))
    y = jax.random.normal(jax.random.key(1), (3, 32, 20))
    expected, _ = jax.vmap(lambda x, y: sinkhorn_velocity(x, y, 0.1))(x, y)
    jax.clear_caches()
    monkeypatch.setattr(divergence, "project", counted)
    velocity, info = jax.vmap(lambda x, y: sinkhorn_velocity(x, y, 0.1))(x, y)
    jax.block_until_ready(velocity)
    jax.effects_barrier()
    jax.clear_caches()
    assert bool(info.converged.all()) and len(projected) == len(x)  # towards the target alone
    np.testing.assert_array_equal(velocity, expected)
