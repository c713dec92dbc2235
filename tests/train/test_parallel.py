"""The pmapped step equals the single-device step on the same global batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkflow import nets, parallel, pool, train

BATCH = 64


@pytest.fixture
def problem(key):
    key_init, key_x, key_t, key_v = jax.random.split(key, 4)
    model, optimizer = nets.VelocityMLP((16, 16)), optax.sgd(0.1)
    state = train.init(key_init, model, optimizer, dim=2)
    # Velocities grow along the batch: devices see different data, and one device's gradient
    # is not the mean of all four.
    scale = jnp.linspace(0.1, 3.0, BATCH)[:, None]
    rows = pool.Rows(
        jax.random.normal(key_x, (BATCH, 2)),
        jax.random.uniform(key_t, (BATCH,)),
        scale * jax.random.normal(key_v, (BATCH, 2)),
    )
    return train.make_step(model.apply, optimizer, ema_decay=0.9), state, rows


def largest_change(tree, other):
    return max(
        jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), tree, other))
    )


def test_pmapped_step_equals_the_single_device_step(problem):
    assert jax.local_device_count() == 4
    step, state, rows = problem
    before = jax.tree.map(np.array, state.params)  # copies: the pmapped step donates its state
    expected, expected_info = jax.jit(step)(state, rows)
    actual, info = parallel.pmap_step(step)(state, parallel.shard(rows))
    chex.assert_trees_all_close(actual.params, expected.params, atol=1e-6)
    chex.assert_trees_all_close(actual.ema_params, expected.ema_params, atol=1e-6)
    chex.assert_trees_all_close(info, expected_info, rtol=1e-5)
    assert int(actual.step) == 1
    assert largest_change(before, expected.params) > 1e-3  # or the comparison says nothing


def test_one_shard_alone_gives_another_step(problem):
    # What a forgotten pmean would return; the tolerance above tells it from the right one.
    step, state, rows = problem
    whole, _ = jax.jit(step)(state, rows)
    shard, _ = jax.jit(step)(state, jax.tree.map(lambda leaf: leaf[: BATCH // 4], rows))
    assert largest_change(whole.params, shard.params) > 1e-3


def test_pmapped_steps_take_up_their_own_result(problem):
    step, state, rows = problem
    expected, _ = jax.jit(step)(jax.jit(step)(state, rows)[0], rows)
    advance, sharded = parallel.pmap_step(step), parallel.shard(rows)
    actual, _ = advance(advance(state, sharded)[0], sharded)
    chex.assert_trees_all_close(actual.params, expected.params, atol=2e-6)
    assert int(actual.step) == 2


def test_shard_places_one_slice_on_each_device():
    batch = np.arange(24.0).reshape(8, 3)
    sharded = parallel.shard(batch)
    assert sharded.shape == (4, 2, 3)
    pieces = {piece.device: np.asarray(piece.data) for piece in sharded.addressable_shards}
    assert list(pieces) == jax.local_devices()
    for index, device in enumerate(jax.local_devices()):
        np.testing.assert_array_equal(pieces[device], batch[None, 2 * index : 2 * index + 2])


def test_shard_splits_typed_keys_too(key):
    keys = jax.random.split(key, 4)
    sharded = parallel.shard(keys)
    assert sharded.shape == (4, 1)
    np.testing.assert_array_equal(jax.random.key_data(sharded)[:, 0], jax.random.key_data(keys))


@pytest.mark.parametrize("size", [7, 2])
def test_shard_refuses_what_the_devices_cannot_share(size):
    with pytest.raises(ValueError, match=f"batch of {size} cannot be split evenly over 4 devices"):
        parallel.shard({"even": np.zeros((8, 2)), "odd": np.zeros((size, 2))})


@pytest.mark.parametrize("by", ["pmap", "shard_map"])
def test_a_batch_may_be_whole_on_every_device_in_part(by):
    def step(state, batch, *, axis_name):
        whole, own = batch
        return state + jax.lax.psum(whole * own[0], axis_name), whole.shape[0]

    batch = parallel.replicate(jnp.arange(3.0)), parallel.shard(jnp.arange(4.0))
    advance = parallel.pmap_step(step, batch_axes=(None, 0), by=by)
    state, size = advance(parallel.replicate(jnp.ones(3)), batch)
    np.testing.assert_array_equal(state, 1 + 6 * np.arange(3))
    assert int(size) == 3


def test_another_way_to_map_is_refused():
    with pytest.raises(ValueError, match="by is 'vmap'; a step is mapped by 'pmap' or by 'shard"):
        parallel.pmap_step(lambda *_: None, by="vmap")


def test_shard_map_makes_the_step_of_pmap_bit_for_bit(problem):
    step, state, rows = problem
    sharded = parallel.shard(rows)
    copy = lambda: jax.tree.map(jnp.copy, state)  # a step takes the memory of its state
    expected = parallel.pmap_step(step)(copy(), sharded)
    chex.assert_trees_all_equal(parallel.pmap_step(step, by="shard_map")(copy(), sharded), expected)


def test_parts_of_a_batch_are_those_of_shard(key):
    """Every device cuts from the whole what shard would have given it; a key stays whole."""
    batch = {"x": jax.random.normal(key, (8, 3)), "key": jax.random.key(7)}

    def step(state, shard, *, axis_name):
        whole, own = shard
        cut = train.own_part(whole, axis_name)
        assert cut["key"].shape == ()
        return state, jax.lax.psum(jnp.sum(jnp.abs(cut["x"] - own)), axis_name)

    whole, own = parallel.replicate(batch), parallel.shard(batch["x"])
    advance = parallel.pmap_step(step, batch_axes=(None, 0))
    assert float(advance(jnp.zeros(()), (whole, own))[1]) == 0
    assert train.own_part(batch, None) is batch
    with pytest.raises(ValueError, match="batch of 7 cannot be split evenly over 4 devices"):
        advance(jnp.zeros(()), (parallel.replicate({"x": jnp.ones((7, 3))}), own))


def test_devices_share_work_without_waiting():
    """Loops whose length the data decide, another on each device."""

    def halvings(part, least):
        def one(x):
            again = lambda carry: carry[0] > least
            return jax.lax.while_loop(again, lambda c: (c[0] / 2, c[1] + 1), (x, 0))[1]

        return jax.vmap(one)(part)

    x = 2.0 ** jnp.arange(8)
    parts, least = parallel.shard(x), parallel.replicate(jnp.asarray(1.0))
    found = jax.jit(lambda *inputs: parallel.spread(halvings, *inputs))(parts, least)
    np.testing.assert_array_equal(found, np.arange(8))


def test_a_replicated_state_is_compiled_for_once(problem):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )
    step, state, rows = problem
    advance, sharded, state = (
        parallel.pmap_step(step),
        parallel.shard(rows),
        parallel.replicate(state),
    )
    compiled.clear()
    for _ in range(3):
        state, _ = advance(state, sharded)
    assert int(state.step) == 3
    assert len(compiled) <= 1
    assert compiled  # it is what jax still calls the event
