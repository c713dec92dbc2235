"""Velocity matching: loss, one step by hand, moving average, several steps in one call."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkflow import nets, pool, train

LEARNING_RATE, DECAY = 0.1, 0.9


def field(params, x, t):
    """Linear in its parameters, so that loss and gradient are short by hand."""
    return jnp.matmul(x, params["a"], precision="highest") + t[:, None] * params["b"][None]


def parameters():
    return {"a": jnp.array([[0.5, -1.0], [0.2, 0.3]]), "b": jnp.array([1.0, -2.0])}


def batch_of(key, size=32, true=None):
    key_x, key_t, key_v = jax.random.split(key, 3)
    x, t = jax.random.normal(key_x, (size, 2)), jax.random.uniform(key_t, (size,))
    velocity = jax.random.normal(key_v, (size, 2)) if true is None else field(true, x, t)
    return pool.Rows(x, t, velocity)


def state_of(params, optimizer):
    copied = jax.tree.map(jnp.copy, params)
    return train.TrainState(jnp.zeros((), jnp.int32), params, copied, optimizer.init(params))


@pytest.fixture
def sgd():
    optimizer = optax.sgd(LEARNING_RATE)
    step = train.make_step(field, optimizer, ema_decay=DECAY)
    return step, state_of(parameters(), optimizer)


def by_hand(params, rows):
    """Loss and gradient in numpy: mean over rows of |x A + t b - v|^2."""
    x, t, v = (np.asarray(leaf, np.float64) for leaf in rows)
    a, b = (np.asarray(params[name], np.float64) for name in "ab")
    error = x @ a + t[:, None] * b - v
    gradient = {"a": 2 * x.T @ error / len(x), "b": 2 * t @ error / len(x)}
    return np.mean(np.sum(error**2, axis=1)), gradient


def test_loss_is_the_mean_squared_length_of_the_error(key):
    rows = batch_of(key)
    loss = train.velocity_matching_loss(field, parameters(), rows)
    assert float(loss) == pytest.approx(by_hand(parameters(), rows)[0], rel=1e-5)


def test_loss_sums_over_all_axes_of_an_image(key):
    # Two "images" of 2x3: error 1 everywhere in one, 2 in the other.
    error = jnp.array([1.0, 2.0])[:, None, None] * jnp.ones((2, 2, 3))
    rows = pool.Rows(jnp.zeros((2, 2, 3)), jnp.zeros(2), -error)
    loss = train.velocity_matching_loss(lambda params, x, t: x, None, rows)
    assert float(loss) == pytest.approx((6 * 1 + 6 * 4) / 2)


def test_one_sgd_step_by_hand(key, sgd):
    step, state = sgd
    rows = batch_of(key)
    loss, gradient = by_hand(state.params, rows)
    expected = {k: np.asarray(parameters()[k]) - LEARNING_RATE * gradient[k] for k in "ab"}
    average = {k: DECAY * np.asarray(parameters()[k]) + (1 - DECAY) * expected[k] for k in "ab"}
    moved, info = jax.jit(step)(state, rows)
    chex.assert_trees_all_close(moved.params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(moved.ema_params, average, rtol=1e-5, atol=1e-6)
    assert int(moved.step) == 1
    assert float(info.loss) == pytest.approx(loss, rel=1e-5)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    assert float(info.gradient_norm) == pytest.approx(norm, rel=1e-5)


def test_moving_average_over_many_steps_equals_its_formula(sgd):
    step, state = sgd
    step, visited = jax.jit(step), []
    for seed in range(6):
        state, _ = step(state, batch_of(jax.random.key(seed)))
        visited.append(state.params)
    # ema_k = d^k p_0 + (1 - d) sum_j d^(k - j) p_j
    weights = (1 - DECAY) * DECAY ** np.arange(5, -1, -1.0)
    formula = lambda first, *later: (
        DECAY**6 * np.asarray(first)
        + sum(w * np.asarray(p) for w, p in zip(weights, later, strict=True))
    )
    expected = jax.tree.map(formula, parameters(), *visited)
    chex.assert_trees_all_close(state.ema_params, expected, rtol=1e-5, atol=1e-6)
    gap = jax.tree.map(lambda a, p: float(jnp.max(jnp.abs(a - p))), state.ema_params, state.params)
    assert min(jax.tree.leaves(gap)) > 1e-3


def test_training_learns_a_linear_field(key):
    true = {"a": jnp.array([[-1.0, 0.5], [0.3, 2.0]]), "b": jnp.array([0.5, 1.5])}
    optimizer = optax.adam(0.05)
    step = jax.jit(train.make_step(field, optimizer, ema_decay=DECAY))
    state = state_of(parameters(), optimizer)
    first = float(step(state, batch_of(key, true=true))[1].loss)
    for number in range(300):
        rows = batch_of(jax.random.fold_in(key, number), true=true)
        state, info = step(state, rows)
    assert float(info.loss) < 1e-3 * first
    chex.assert_trees_all_close(state.params, true, atol=0.05)


def test_step_lowers_the_loss_of_the_network(key):
    model, optimizer = nets.VelocityMLP((16, 16)), optax.sgd(0.01)
    state = train.init(key, model, optimizer, dim=2)
    step, rows = jax.jit(train.make_step(model.apply, optimizer, ema_decay=DECAY)), batch_of(key)
    losses = []
    for _ in range(5):
        state, info = step(state, rows)
        losses.append(float(info.loss))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_init_starts_the_average_at_the_parameters_in_memory_of_its_own(key):
    state = train.init(key, nets.VelocityMLP((8,)), optax.adam(0.1), dim=3)
    chex.assert_trees_all_equal(state.params, state.ema_params)
    assert int(state.step) == 0
    buffers = lambda tree: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
    assert not buffers(state.params) & buffers(state.ema_params)
    assert state.params["params"]["Dense_1"]["kernel"].shape == (8, 3)


def draw(data, key):
    """A batch that depends on the data and on the key."""
    rows = batch_of(key, 8)
    return rows._replace(velocity=rows.velocity * data)


def test_several_steps_equal_single_ones(key, sgd):
    step, state = sgd
    expected, infos = state, []
    for number in range(4):
        expected, info = jax.jit(step)(expected, draw(2.0, jax.random.fold_in(key, number)))
        infos.append(info)
    steps = jax.jit(train.make_steps(train.drawing_step(step, draw), 4))
    actual, info = steps(state, jnp.array(2.0), key)
    assert int(actual.step) == 4
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves), *infos)
    chex.assert_trees_all_close(info, mean, rtol=1e-5)


def test_draws_depend_on_the_number_of_the_step_only(key, sgd):
    # Ten steps in one call, or four and six after a restart from the saved state: the same.
    step, state = sgd
    data = jnp.array(1.0), key
    go = lambda count: jax.jit(train.make_steps(train.drawing_step(step, draw), count))
    whole, _ = go(10)(state, *data)
    halted, _ = go(4)(state, *data)
    restarted = jax.tree.map(jnp.asarray, jax.device_get(halted))
    resumed, _ = go(6)(restarted, *data)
    chex.assert_trees_all_close(resumed, whole, atol=1e-6)
    # Steps 0..5 instead of 4..9 would be other draws, and other parameters.
    forgot, _ = go(6)(restarted._replace(step=jnp.zeros((), jnp.int32)), *data)
    difference = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))), forgot.params, whole.params
    )
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_steps_sample_from_a_pool(key):
    shape = (5, 3, 2)
    rows = pool.Pool(
        jax.random.normal(key, shape), jnp.ones(shape), jnp.zeros((5, 3)), jnp.zeros((5, 3))
    )
    optimizer = optax.adam(0.1)
    state = state_of({"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, optimizer)
    step = train.make_step(field, optimizer, ema_decay=DECAY)
    sample = functools.partial(pool.sample, batch_size=4)
    steps = train.make_steps(train.drawing_step(step, sample), 1)
    _, info = jax.jit(steps)(state, rows, key)
    assert float(info.loss) == pytest.approx(2.0)  # a zero field against velocity (1, 1)


def test_a_perfect_network_of_another_shape_is_no_loss(key):
    # Broadcast, [n, 1] against [n] is every pair of rows: a loss of 0.28 for perfect times.
    rows = batch_of(key)
    with pytest.raises(ValueError, match=r"predictor has shape \(32, 1\); it must be \(32,\)"):
        train.time_prediction_loss(lambda params, x: rows.t[:, None], None, rows)
    assert float(train.time_prediction_loss(lambda params, x: rows.t, None, rows)) == 0
    line = rows._replace(x=rows.x[:, :1], velocity=rows.velocity[:, :1])
    with pytest.raises(ValueError, match=r"field has shape \(32,\); it must be \(32, 1\)"):
        train.velocity_matching_loss(lambda *_: line.velocity[:, 0], None, line)
    assert float(train.velocity_matching_loss(lambda *_: line.velocity, None, line)) == 0


def test_losses_of_half_precision_are_means_in_float32(key):
    rows = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), batch_of(key))
    with jax.numpy_dtype_promotion("strict"):
        loss = train.velocity_matching_loss(lambda *_: jnp.zeros((32, 2)), None, rows)
    expected = np.mean(np.sum(np.asarray(rows.velocity, np.float64) ** 2, axis=1))
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(expected, rel=1e-6)


def test_strict_promotion_allows_training(key):
    model, optimizer = nets.VelocityMLP((8,)), optax.sgd(0.1)  # Adam of optax promotes itself
    step = jax.jit(train.make_step(model.apply, optimizer, ema_decay=0.9))
    with jax.numpy_dtype_promotion("strict"):
        state, info = step(train.init(key, model, optimizer, dim=2), batch_of(key))
    assert np.isfinite(info.loss) and int(state.step) == 1
