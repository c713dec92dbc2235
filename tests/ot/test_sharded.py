"""One solve spread over devices by its rows: that of one device, and no device holds more."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import sinkflow
from sinkflow import Limits, Sharded
from sinkflow.ot import _kernel

EPSILON = 0.1
M = 12
places = pytest.mark.parametrize(("count", "storage"), [(2, "full"), (4, "chunks")])


def mesh_of(count, axis="rows"):
    return Mesh(np.array(jax.devices()[:count]), (axis,))


def problem(key, n=10, d=2):
    """Clouds with weights, some of them 0; two devices divide the points, four do not."""
    keys = jax.random.split(key, 4)
    x, y = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (M, d)) + 0.5
    a, b = (jax.random.uniform(k, (size,)) + 0.1 for k, size in zip(keys[2:], (n, M), strict=True))
    a, b = a.at[1].set(0.0), b.at[2].set(0.0)
    return x, y, a / a.sum(), b / b.sum()


def same(found, expected, tolerance=1e-6):
    """Equal up to the order of sums, of the size of each array; whole numbers exactly."""
    found, expected = (jax.device_get(jax.tree.leaves(tree)) for tree in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if not np.issubdtype(other.dtype, np.floating):
            np.testing.assert_array_equal(one, other)
            continue
        size = max(1.0, float(np.max(np.abs(other))))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * size)


def both(call, count, storage, *args, **limits):
    """``call(*args, limits)`` on ``count`` devices, and on one."""
    sharded = Sharded(mesh_of(count), storage)
    return tuple(call(*args, Limits(storage=kind, **limits)) for kind in (sharded, storage))


def solved(x, y, a, b, limits):
    return sinkflow.sinkhorn(x, y, EPSILON, a=a, b=b, limits=limits)


@places
def test_a_solve_is_that_of_one_device(key, count, storage):
    """Potentials, value and the whole certificate; iterations and verdict exactly."""
    spread, one = both(solved, count, storage, *problem(key))
    assert one.converged
    same(spread, one)
    assert len(spread.f.sharding.device_set) == count


def value(x, y, epsilon, a, b, gradient, limits):
    options = {"a": a, "b": b, "gradient": gradient, "limits": limits}
    return sinkflow.sinkhorn(x, y, epsilon, **options).value


def test_the_implicit_gradient_is_that_of_one_device(key):
    """In clouds, epsilon and weights; nothing of it is 0."""
    x, y, a, b = problem(key)
    wanted = jax.grad(value, (0, 1, 2, 3, 4))
    spread, one = both(wanted, 4, "full", x, y, jnp.asarray(EPSILON), a, b, "implicit")
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-3 for leaf in one)
    same(spread, one)


def program(call, *args):
    """The text of a compiled program."""
    return jax.jit(call).lower(*args).compile().as_text()


@pytest.mark.parametrize("storage", ["full", pytest.param("chunks", marks=pytest.mark.slow)])
def test_a_device_has_its_own_rows_and_adds_up_columns(key, storage):
    """Of n = 64 and m = 48 no device has all rows; what is summed is [m] or a number."""
    x, y = jax.random.normal(key, (64, 7)), jax.random.normal(key, (48, 7))
    limits = Limits(storage=Sharded(mesh_of(4), storage))
    text = program(functools.partial(sinkflow.sinkhorn, epsilon=EPSILON, limits=limits), x, y)
    assert "f32[16,48]" in text and not re.search(r"f32\[(64,48|48,64)\]", text)
    reduced = set(re.findall(r"= f32\[([\d,]*)\]\S* all-reduce", text))
    assert {"48"} <= reduced <= {"48", "7", ""}  # 7: the mean of x, around which it is solved
    assert "all-gather" not in text


@pytest.mark.parametrize(
    ("count", "memory", "expected"),
    [(1, 2**22, "chunks"), (2, 2**22, "half"), (4, 2**22, "full"), (4, 2**20, "chunks")],
)
def test_auto_asks_what_a_devices_rows_take(monkeypatch, count, memory, expected):
    monkeypatch.setattr(_kernel, "_device_memory", lambda: memory)
    cloud = jnp.zeros((1000, 2))
    storage = _kernel.storage_for(Sharded(mesh_of(count)), cloud, cloud)
    assert storage == Sharded(mesh_of(count), expected)


def test_explicit_axes_are_taken_as_auto():
    """What jax.make_mesh makes by default in newer versions."""
    explicit = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
    assert Sharded(explicit) == Sharded(mesh_of(4))
    assert hash(Sharded(explicit)) == hash(Sharded(mesh_of(4)))


def test_what_cannot_be_spread_is_refused(key, unchecked_shapes):
    square = Mesh(np.array(jax.devices()).reshape(2, 2), ("rows", "columns"))
    with pytest.raises(ValueError, match=r"mesh has the axes \('rows', 'columns'\); .*ravel"):
        Sharded(square)
    with pytest.raises(ValueError, match=r"mesh is 4; give jax\.sharding\.Mesh"):
        Sharded(4)
    with pytest.raises(ValueError, match="unknown storage 'disk'; choose one of auto, full"):
        Sharded(mesh_of(2), "disk")
    x, y, *_ = problem(key)
    limits, cost = Limits(storage=Sharded(mesh_of(2), "full")), jnp.ones((3, 2))
    for solve in (
        lambda: sinkflow.sinkhorn_matrix(cost, EPSILON, limits=limits),
        lambda: sinkflow.offdiagonal.sinkhorn_offdiagonal(x, EPSILON, limits=limits),
    ):
        with pytest.raises(ValueError, match=r"works on one device: give it 'full'"):
            solve()
    with pytest.raises(ValueError, match="this solver stores its matrices in full"):
        sinkflow.general.sinkhorn(x, y, EPSILON, limits=limits)


def test_jax_refuses_clouds_and_meshes_elsewhere(key):
    """As Sharded says."""
    x, y, a, b = problem(key)
    limits = Limits(storage=Sharded(mesh_of(2), "full"))
    with pytest.raises(ValueError, match="incompatible devices"):
        solved(jax.device_put(x, jax.devices()[3]), y, a, b, limits)
    refused = pytest.raises(ValueError, match=r"context mesh .* should match")
    with jax.set_mesh(mesh_of(2, "other")), refused:
        solved(x, y, a, b, limits)


def warm(x, y, a, b, limits):
    """A cold solve, the warm one of moved points, and one whose guess is of no use."""
    cold = solved(x, y, a, b, limits)
    options = {"a": a, "b": b, "limits": limits}
    near = sinkflow.sinkhorn(x + 0.01, y, EPSILON, g_init=cold.g, **options)
    far = sinkflow.sinkhorn(x, y, EPSILON, g_init=100 * y[:, 0], **options)
    return cold, near, far


def itself(x, y, a, b, limits):
    del y, b
    cold = sinkflow.sinkhorn_self(x, EPSILON, a=a, limits=limits)
    return cold, sinkflow.sinkhorn_self(x + 0.01, EPSILON, a=a, f_init=cold.f, limits=limits)


def velocities(x, y, a, b, limits):
    """Of both self terms: the cloud itself, and a second one."""
    options = {"a": a, "b": b, "limits": limits}
    return [
        sinkflow.sinkhorn_velocity(x, y, EPSILON, self_cloud=other, **options)
        for other in (None, x[:7] + 0.3)
    ]


def divergence(x, y, a, b, gradient, limits):
    options = {"a": a, "b": b, "gradient": gradient, "limits": limits}
    return sinkflow.sinkhorn_divergence(x, y, EPSILON, **options)


@pytest.mark.slow
@places
@pytest.mark.parametrize("call", [warm, itself, velocities])
def test_every_solve_is_that_of_one_device(key, count, storage, call):
    same(*both(call, count, storage, *problem(key)))


@pytest.mark.slow
def test_a_warm_start_saves_iterations(key):
    spread, _ = both(warm, 4, "full", *problem(key))
    cold, near, far = (int(out.num_iterations) for out in spread)
    assert near < cold == far


@pytest.mark.slow
@places
@pytest.mark.parametrize("gradient", ["envelope", "implicit"])
def test_the_divergence_and_its_gradient(key, count, storage, gradient):
    """All three solves, in double precision: float32 rounds single entries further apart."""
    wanted = jax.value_and_grad(divergence, (0, 1, 2, 3), has_aux=True)
    with jax.enable_x64(True):
        (spread, slopes), (one, expected) = both(wanted, count, storage, *problem(key), gradient)
        assert one[1]
        same(spread, one, tolerance=1e-11)
        same(slopes, expected, tolerance=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["envelope", "implicit", "unrolled"])
def test_derivatives_forwards_and_second_ones(key, gradient):
    x, y, a, b = problem(key)

    def wanted(limits):
        def of(x):
            return value(x, y, jnp.asarray(EPSILON), a, b, gradient, limits)

        def forwards(x):
            return jax.jvp(of, (x,), (jnp.cos(x),))[1]

        return forwards(x), jax.grad(forwards)(x)

    # Plain updates: more of them would only move the last digits.
    cap = {"max_iterations": 8} if gradient == "unrolled" else {"threshold": 1e-6}
    same(*both(wanted, 4, "full", **cap), tolerance=1e-4 if gradient != "unrolled" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "storage"), [(3, "full"), (8, "full"), (10, "chunks")])
def test_in_double_precision_only_the_order_of_sums_differs(n, storage):
    """Also for fewer points than devices, and in many dimensions."""
    with jax.enable_x64(True):
        args = problem(jax.random.key(1), n, 7)
        assert args[0].dtype == jnp.float64
        same(*both(solved, 4, storage, *args, threshold=1e-9), tolerance=1e-12)


@pytest.mark.slow
def test_half_precision(key):
    """The density's rounding decides the last digits of potentials; the certificates hold."""
    spread, one = both(solved, 4, "half", *problem(key))
    assert spread.converged and one.converged
    same(spread, one, tolerance=2e-4)


@pytest.mark.slow
def test_what_did_not_converge_is_said(key):
    x, y, a, b = problem(key)
    spread, one = both(solved, 4, "full", x, y, a, b, threshold=1e-7, max_iterations=5)
    assert not one.converged and not spread.converged
    same(spread, one)
    spread, _ = both(solved, 4, "full", x.at[0, 0].set(jnp.nan), y, a, b)
    assert not spread.converged


@pytest.mark.slow
def test_a_batch_of_spread_solves(key):
    """Members that finish at different times, each spread over all devices."""

    def batch(clouds, y, a, b, limits):
        return jax.vmap(lambda x: solved(x, y, a, b, limits))(clouds)

    with jax.enable_x64(True):
        x, *others = problem(key)
        clouds = jnp.stack([x * scale for scale in (0.2, 0.5, 1.0, 1.5, 2.0, 3.0)])
        spread, one = both(batch, 4, "full", clouds, *others)
        assert len(set(one.num_iterations.tolist())) > 1
        same(spread, one, tolerance=1e-11)


@pytest.mark.slow
def test_clouds_that_lie_on_the_mesh_already(key):
    """And the results of one solve in the next one."""
    x, y, a, b = problem(key, n=12)
    place = NamedSharding(mesh_of(4), PartitionSpec("rows"))
    limits = Limits(storage=Sharded(mesh_of(4), "full"))
    spread = solved(jax.device_put(x, place), y, jax.device_put(a, place), b, limits)
    same(spread, solved(x, y, a, b, Limits(storage="full")))
    velocity, _ = sinkflow.sinkhorn_velocity(x, y, EPSILON, limits=limits)
    again = sinkflow.sinkhorn(x + velocity, y, EPSILON, g_init=spread.g, limits=limits)
    assert again.converged


@pytest.mark.slow
def test_the_passes_that_the_guide_counts(monkeypatch, key):
    """Each is over all pairs; what a velocity of many points takes is their number."""
    made, map_rows = [], _kernel._map_rows

    def counted(*args):
        jax.debug.callback(lambda: made.append(1))
        return map_rows(*args)

    monkeypatch.setattr(_kernel, "_map_rows", counted)
    x, y = sinkflow.data.gaussian(key, 211), sinkflow.data.moons(key, 199)  # sizes of no other test
    limits = Limits(storage="chunks")
    _, info = sinkflow.sinkhorn_velocity(x, y, EPSILON, limits=limits)
    jax.effects_barrier()
    assert info.xx.num_iterations > 0
    assert len(made) == 2 * info.xy.num_iterations + 3 + info.xx.num_iterations + 4


@pytest.mark.slow
def test_pools_pairs_and_plans(key):
    """What takes limits takes devices: the same pool, pairs, images and epsilon."""
    x, y, _, b = problem(key)

    def wanted(limits):
        steps = sinkflow.flow.step_sizes(0.5, 3, full_last=True)
        samplers = sinkflow.data.gaussian, sinkflow.data.moons
        options = {"num_particles": 10, "epsilon": 0.5, "limits": limits}
        pool, info = sinkflow.pool.build(
            key, *samplers, num_clouds=2, clouds_per_call=2, step_sizes=steps, **options
        )
        assert info.converged.all()
        partners, converged = sinkflow.pairs.entropic(key, x[None], y[None], 0.5, limits=limits)
        assert converged.all()
        g = sinkflow.sinkhorn(x, y, 0.5, b=b, limits=limits).g
        images = sinkflow.barycentric_map(x, y, g, 0.5, b, storage=limits.storage)
        epsilon, out = sinkflow.epsilon_for_neighbours(x, y, 3.0, limits=limits)
        return pool, partners, images, epsilon, out

    same(*both(wanted, 4, "full"), tolerance=1e-5)
