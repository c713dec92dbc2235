"""Solves under jax.shard_map with its defaults, and under meshes of Explicit and Auto axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sinkflow
from sinkflow.ot.offdiagonal import sinkhorn_offdiagonal

STEPS = (0.5, 1.0)
N, M, EPSILON = 8, 6, 0.3


def gradient(x, y, **options):
    return jax.grad(lambda x: sinkflow.sinkhorn_divergence(x, y, EPSILON, **options)[0])(x)


CALLS = {
    "solve": lambda x, y: sinkflow.sinkhorn(x, y, EPSILON),
    "half": lambda x, y: (
        sinkflow.sinkhorn(x, y, EPSILON, limits=sinkflow.Limits(storage="half")).value
    ),
    "self": lambda x, y: sinkflow.sinkhorn_self(x, EPSILON),
    "velocity": lambda x, y: sinkflow.sinkhorn_velocity(x, y, EPSILON),
    "divergence": lambda x, y: sinkflow.sinkhorn_divergence(x, y, EPSILON),
    "gradient": gradient,
    "implicit gradient": functools.partial(gradient, gradient="implicit"),
    "unrolled gradient": functools.partial(
        gradient, gradient="unrolled", limits=sinkflow.Limits(max_iterations=5)
    ),
    "flow": lambda x, y: sinkflow.flow.run(x, y, EPSILON, jnp.array(STEPS))[0].x,
    "epsilon": lambda x, y: sinkflow.epsilon_for_neighbours(x, y, 3.0)[0],
    "off the diagonal": lambda x, y: sinkhorn_offdiagonal(x, EPSILON),
    "off the diagonal, unrolled": lambda x, y: sinkhorn_offdiagonal(
        x, EPSILON, gradient="unrolled", limits=sinkflow.Limits(max_iterations=5)
    ),
    "given costs": lambda x, y: sinkflow.sinkhorn_matrix(
        sinkflow.costs.squared_euclidean(x, y), EPSILON
    ),
    "implicit gradient in given costs": lambda x, y: jax.grad(
        lambda cost: sinkflow.sinkhorn_matrix(cost, EPSILON, gradient="implicit").value
    )(sinkflow.costs.squared_euclidean(x, y)),
    "unrolled gradient in given costs": lambda x, y: jax.grad(
        lambda cost: (
            sinkflow.sinkhorn_matrix(
                cost, EPSILON, gradient="unrolled", limits=sinkflow.Limits(max_iterations=5)
            ).value
        )
    )(sinkflow.costs.squared_euclidean(x, y)),
    "scaling": lambda x, y: sinkflow.scaling.matrix_scaling(
        sinkflow.costs.squared_euclidean(x, y), EPSILON, num_iterations=3
    ),
}


def clouds(key, size=()):
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (*size, N, 2)), jax.random.normal(key_y, (*size, M, 2)) + 1.0


def close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.slow
def test_shard_map_solves_as_one_device(key, name, batched):
    """Each device its own clouds; as a batch of two each, through vmap."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("i",))
    call, count = CALLS[name], len(jax.devices()) * (2 if batched else 1)
    x, y = clouds(key, (count,))

    def shard(x, y):
        if batched:
            return jax.vmap(call)(x, y)
        return jax.tree.map(lambda leaf: leaf[None], call(x[0], y[0]))

    spec = PartitionSpec("i")
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec)
    expected = [call(x[i], y[i]) for i in range(2)]
    found = jax.tree.map(lambda leaf: leaf[:2], jax.jit(mapped)(x, y))
    close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize(
    "name", ["solve", "self", "velocity", "divergence", "gradient", "flow", "given costs"]
)
def test_replicated_clouds_on_a_mesh(key, name, kind):
    mesh = jax.make_mesh((len(jax.devices()),), ("i",), axis_types=(kind,))
    x, y = clouds(key)
    expected = CALLS[name](x, y)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec())
        close(CALLS[name](jax.device_put(x, place), jax.device_put(y, place)), expected)


def test_sharded_rows(key):
    """Auto axes: right; Explicit ones: an error that says what to do."""
    x, y = clouds(key)
    expected = sinkflow.sinkhorn(x, y, EPSILON)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((len(jax.devices()),), ("i",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            moved = jax.device_put(x, NamedSharding(mesh, PartitionSpec("i")))
            if kind == AxisType.Auto:
                close(sinkflow.sinkhorn(moved, y, EPSILON), expected)
                continue
            with pytest.raises(ValueError, match=r"x is sharded as .* Explicit mesh axes"):
                sinkflow.sinkhorn(moved, y, EPSILON)


def test_sharded_rows_of_given_costs(key):
    cost = sinkflow.costs.squared_euclidean(*clouds(key))
    expected = sinkflow.sinkhorn_matrix(cost, EPSILON)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((len(jax.devices()),), ("i",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            moved = jax.device_put(cost, NamedSharding(mesh, PartitionSpec("i")))
            if kind == AxisType.Auto:
                close(sinkflow.sinkhorn_matrix(moved, EPSILON), expected)
                continue
            with pytest.raises(ValueError, match=r"cost is sharded as .* Explicit mesh axes"):
                sinkflow.sinkhorn_matrix(moved, EPSILON)


@pytest.mark.slow
def test_a_pool_on_a_mesh(key):
    def build():
        samplers = sinkflow.data.gaussian, sinkflow.data.moons
        options = {"num_clouds": 2, "num_particles": 8, "epsilon": 0.5, "step_sizes": STEPS}
        return sinkflow.pool.build(key, *samplers, clouds_per_call=2, **options)

    expected = build()[0]
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("i",), axis_types=(kind,))):
            pool, info = build()
            assert info.converged.all()
            close(pool, expected)
