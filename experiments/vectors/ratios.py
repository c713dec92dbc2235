"""EPT and JKO-Flow: maps that lower KL(particles | data), learnt one after the other.

Each has a network h [n] of points that learns the logarithm of the ratio of the particles' density
to the data's, from samples of both. A sample goes through all maps. A rival is a pair of pure
functions of one seed: ``learn(key, x, y) -> params`` takes particles and data [n, d] and gives
parameters of its maps [steps, ...]; ``move(params, x) -> x`` is one of the maps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.harness.training import adam, decaying
from experiments.vectors import config as parts
from sinkflow import nets, train

# Weight of EPT's gradient penalty [length^2], of a small search; in its authors' code it is 0.5.
PENALTY = 1.0

Rival = tuple[Callable, Callable]  # learn, move


def log_ratio(apply_fn: Callable, params: Any, x: jax.Array) -> jax.Array:
    """h [n] at points [n, d]."""
    return apply_fn(params, x)[:, 0]


def ratio_gradient(apply_fn: Callable, params: Any, x: jax.Array) -> jax.Array:
    """Gradient of h [1 / length] at points [n, d]."""
    return jax.grad(lambda x: jnp.sum(log_ratio(apply_fn, params, x)))(x)


def logistic_loss(
    apply_fn: Callable, params: Any, rows: tuple[jax.Array, jax.Array], penalty: float = PENALTY
) -> jax.Array:
    """Logistic regression that tells particles from data; at its optimum h is the log ratio.

    Args:
      apply_fn: network of points [n, d] to [n, 1].
      params: its parameters.
      rows: particles and data [n, d].
      penalty: weight of the mean squared gradient of h, at particles and data [length^2].

    Source: Gao et al. 2022, arXiv:2012.06094: fitting by a Bregman score, here the logistic one,
      with a gradient penalty. Theirs is at the data alone, on which modes are lost here.
    """
    x, y = rows
    told = jnp.mean(jax.nn.softplus(-log_ratio(apply_fn, params, x)))
    told += jnp.mean(jax.nn.softplus(log_ratio(apply_fn, params, y)))
    if not penalty:
        return told
    slopes = ratio_gradient(apply_fn, params, jnp.concatenate([x, y]))
    return told + penalty * jnp.mean(jnp.sum(slopes**2, axis=1))


def dual_loss(apply_fn: Callable, params: Any, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
    """E_data exp(h) - E_particles h: its minimum is 1 - KL(particles | data), at the log ratio.

    Source: Fan et al. 2022, arXiv:2112.02424, variational form of KL, with the logarithm of its h.
    """
    x, y = rows
    return jnp.mean(jnp.exp(log_ratio(apply_fn, params, y))) - jnp.mean(
        log_ratio(apply_fn, params, x)
    )


def map_loss(
    apply_fn: Callable,
    params: Any,
    rows: tuple[jax.Array, Any],
    ratio_fn: Callable,
    step_size: float,
) -> jax.Array:
    """E |T(x) - x|^2 / (2 step_size) + E h(T(x)): a JKO step of KL by a map T.

    Args:
      apply_fn: the map T of points [n, d].
      params: its parameters.
      rows: particles [n, d], and the parameters of h.
      ratio_fn: network of h.
      step_size: of the flow [length^2].

    Source: Fan et al. 2022, arXiv:2112.02424, the primal-dual iteration of each step.
    """
    x, ratio = rows
    moved = apply_fn(params, x)
    way = jnp.mean(jnp.sum((moved - x) ** 2, axis=1)) / (2 * step_size)
    return way + jnp.mean(log_ratio(ratio_fn, ratio, moved))


def make_ept(
    model: nets.GeneratorMLP,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    step_size: float,
    updates: int,
    batch_size: int,
    penalty: float = PENALTY,
) -> Rival:
    """Euler particle transport of KL: x - step_size grad h(x), h fitted anew before each step.

    It goes on from the h of the step before. Of the energies of its source KL has the velocity that
    does not vanish where particles and data are far apart.

    Args:
      model: network of h.
      optimizer: of all updates.
      num_steps: of the particles.
      step_size: of the particles [length^2].
      updates: optimiser steps before each.
      batch_size: particles and data of an update.
      penalty: see :func:`logistic_loss`.

    Source: Gao et al. 2022, arXiv:2012.06094: the residual maps, without its outer loop, which
      compresses them to a generator.
    """
    loss_fn = functools.partial(logistic_loss, penalty=penalty)
    step = train.make_step(model.apply, optimizer, ema_decay=0.0, loss_fn=loss_fn)
    fit = train.make_steps(
        train.drawing_step(step, functools.partial(draw_rows, batch_size=batch_size)), updates
    )

    def move(params, x):
        return x - step_size * ratio_gradient(model.apply, params, x)

    def learn(key, x, y):
        key_init, key_rows = jax.random.split(key)

        def advance(carried, _):
            state, x = carried
            state, _ = fit(state, (x, y), key_rows)
            return (state, move(state.params, x)), state.params

        state = train.create(model.init(key_init, x[:1]), optimizer)
        return jax.lax.scan(advance, (state, x), length=num_steps)[1]

    return learn, move


def make_jko(
    map_model: nets.GeneratorMLP,
    model: nets.GeneratorMLP,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    step_size: float,
    updates: int,
    batch_size: int,
    ema_decay: float,
) -> Rival:
    """JKO steps of KL, each a map T(x) = x + network: one update of h, one of T, and so on.

    Both networks go on from those of the step before. T is the moving average of its step.

    Args:
      map_model: network of T.
      model: network of h.
      optimizer: of each of the two.
      num_steps: of the flow.
      step_size: of the flow [length^2].
      updates: optimiser steps of each network in a step of the flow.
      batch_size: particles and data of an update.
      ema_decay: of the average, which spans a tenth of a step at most.

    Source: Fan et al. 2022, arXiv:2112.02424, the primal-dual iteration of each step.
    """

    def move(params, x):
        return x + map_model.apply(params, x)

    loss_fn = functools.partial(map_loss, ratio_fn=model.apply, step_size=step_size)
    decay = min(ema_decay, 1 - 10 / max(updates, 20))
    map_step = train.make_step(move, optimizer, ema_decay=decay, loss_fn=loss_fn)
    ratio_step = train.make_step(model.apply, optimizer, ema_decay=0.0, loss_fn=dual_loss)

    def learn(key, x, y):
        key_map, key_ratio, key_rows = jax.random.split(key, 3)

        def update(states, points, key):
            maps, ratio = states
            key_ratio, key_map = jax.random.split(jax.random.fold_in(key, maps.step))
            own, data = draw_rows(points, key_ratio, batch_size)
            ratio, _ = ratio_step(ratio, (move(maps.params, own), data))
            own, _ = draw_rows(points, key_map, batch_size)
            return (map_step(maps, (own, ratio.params))[0], ratio), None

        def advance(carried, _):
            (maps, ratio), x = carried
            states = maps._replace(ema_params=maps.params), ratio
            again = lambda states, _: update(states, (x, y), key_rows)
            states, _ = jax.lax.scan(again, states, length=updates)
            average = states[0].ema_params
            return (states, move(average, x)), average

        networks = (map_model, key_map), (model, key_ratio)
        states = tuple(train.create(net.init(key, x[:1]), optimizer) for net, key in networks)
        return jax.lax.scan(advance, (states, x), length=num_steps)[1]

    return learn, move


def draw_rows(points: tuple[jax.Array, jax.Array], key: jax.Array, batch_size: int):
    """Independent rows [batch, d] of particles and of data."""
    return tuple(
        cloud[jax.random.randint(key, (batch_size,), 0, len(cloud))]
        for cloud, key in zip(points, jax.random.split(key), strict=True)
    )


def carry(move: Callable, params: Any, x: jax.Array) -> jax.Array:
    """States [steps + 1, n, d] of points [n, d] on their way through all maps."""

    def step(x, params):
        x = move(params, x)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, params)[1]])


@functools.cache
def ept(flow: parts.Flow, network: parts.Network, training: parts.Training) -> Rival:
    """EPT of the table's settings; all its steps together have ``train_steps`` updates."""
    model = nets.GeneratorMLP(1, network.hidden_dims)
    learn, move = make_ept(model, _adam(training), **_budget(flow, training))
    return jax.jit(jax.vmap(learn)), move


@functools.cache
def jko(flow: parts.Flow, network: parts.Network, training: parts.Training) -> Rival:
    """JKO-Flow of the table's settings; each network has ``train_steps`` updates in all."""
    learn, move = make_jko(
        nets.GeneratorMLP(2, network.hidden_dims),
        nets.GeneratorMLP(1, network.hidden_dims),
        _adam(training),
        ema_decay=training.ema_decay,
        **_budget(flow, training),
    )
    return jax.jit(jax.vmap(learn)), move


def _adam(training: parts.Training) -> optax.GradientTransformation:
    return adam(decaying(training.learning_rate, training.train_steps))


def _budget(flow: parts.Flow, training: parts.Training) -> dict[str, Any]:
    return {
        "num_steps": flow.flow_steps,
        "step_size": flow.step_size,
        "updates": -(-training.train_steps // flow.flow_steps),
        "batch_size": training.batch_size,
    }
