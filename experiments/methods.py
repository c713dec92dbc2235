"""Training methods of the tables in the plane: one network, budget and evaluation for all.

Each seed of every method sees ``num_clouds * num_particles`` source and as many target samples,
held as a pool of rows on the device; seeds are trained side by side under vmap. A method is a
function ``(config, task, keys, timed) -> Learned`` that spends its time in ``timed("pool")`` and
``timed("train")``; :data:`METHODS` names them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from sinkflow import Limits, assignment, data, interpolants, models, ode, pool, sampling, train


class Learned(NamedTuple):
    """A method after training, all seeds of it.

    ``draw(x0 [seeds, n, 2], nfe)`` gives samples [seeds, n, 2], or None where the method has no
    scheme of exactly that many network evaluations. ``paths(x0 [1, n, 2])`` gives the states
    [steps, n, 2] of the first seed's (first) field.
    """

    draw: Callable[[jax.Array, int], jax.Array | None]
    paths: Callable[[jax.Array], jax.Array]
    certificates: dict[str, Any]


class Keys(NamedTuple):
    """Independent PRNG keys [seeds] of a method: what it draws data with, and what it fits with."""

    data: jax.Array
    fit: jax.Array

    def root(self, number: int) -> jax.Array:
        """Keys [seeds] of the ``number``-th draw of data; no key serves two draws."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.data, number)


# Pools, each leaf with a leading seeds axis.


def draw_pairs(config, task, keys, size: int):
    """The points of NSGF's pools as source and target clouds [seeds, clouds, size, 2].

    With the same keys every method learns from the very same points: what its pool lacks in one
    mode, all lack.
    """
    total = config.num_clouds * config.num_particles
    if total % size:
        raise ValueError(f"clouds of {size} do not divide the {total} pairs of a seed")
    samplers = data.SAMPLERS[task.source], data.SAMPLERS[task.target]
    indices = jnp.arange(config.num_clouds)
    x, y = jax.vmap(lambda key: pool.draw_clouds(key, *samplers, indices, config.num_particles))(
        keys
    )
    x, y = (cloud.reshape(len(keys), total // size, size, 2) for cloud in (x, y))
    return x, y


def pair_pool(x: jax.Array, y: jax.Array) -> pool.Pool:
    """Straight paths between paired clouds [seeds, ..., 2]."""
    x, y = (cloud.reshape(cloud.shape[0], -1, 2) for cloud in (x, y))
    return jax.vmap(pool.from_pairs)(x, y)


def optimal_partners(x: jax.Array, y: jax.Array) -> jax.Array:
    """y reordered within each cloud so that (x_i, y_i) are the optimal pairs: they stay pairs."""
    flat_x, flat_y = (np.asarray(cloud).reshape(-1, *cloud.shape[2:]) for cloud in (x, y))
    order = assignment.assignment_many(list(zip(flat_x, flat_y, strict=True)))
    partners = [cloud[indices] for cloud, indices in zip(flat_y, order, strict=True)]
    return jnp.asarray(np.stack(partners)).reshape(y.shape)


def sinkhorn_partners(epsilon: float, x: jax.Array, y: jax.Array, keys) -> jax.Array:
    """For every x_i one y drawn from its row of ott-jax's Sinkhorn plan."""
    from ott.geometry import epsilon_scheduler, pointcloud
    from ott.solvers import linear

    # OTT's cost has no factor one half: its epsilon is twice ours. It is annealed from a thousand
    # times as much, without which some solves of 8gaussians-moons do not end.
    annealed = epsilon_scheduler.Epsilon(2 * epsilon, init=1000.0, decay=0.9)

    def partners(cloud):
        key, x, y = cloud
        out = linear.solve(pointcloud.PointCloud(x, y, epsilon=annealed), max_iterations=20_000)
        chosen = jax.random.categorical(key, jnp.log(out.matrix + 1e-30), axis=1)
        return y[chosen], out.converged

    flat = [cloud.reshape(-1, *cloud.shape[2:]) for cloud in (x, y)]
    split = jax.vmap(lambda key: jax.random.split(key, x.shape[1]))(keys).reshape(-1)
    # Side by side each waits for the slowest, and on a CPU gains nothing from it.
    batch = 1 if jax.default_backend() == "cpu" else 64
    with jax.numpy_rank_promotion("allow"):  # OTT relies on it
        solve = jax.jit(lambda clouds: jax.lax.map(partners, clouds, batch_size=batch))
        drawn, converged = solve((split, *flat))
    if not converged.all():
        raise RuntimeError(
            f"{int(jnp.sum(~converged))} of {converged.size} of ott-jax's solves did not converge "
            f"at epsilon {epsilon}: raise epsilon"
        )
    return drawn.reshape(y.shape)


def flow_pool(config, task, keys, independent_self: bool):
    """Pools of Sinkhorn flows and their certificates in numbers, worst seed first."""
    pools, infos = [], []
    for key in keys:
        rows, info = pool.build(
            key,
            data.SAMPLERS[task.source],
            data.SAMPLERS[task.target],
            **config.pool_settings(),
            independent_self=independent_self,
            limits=Limits(max_iterations=20_000),
        )
        pools.append(rows)
        infos.append(pool.summary(info))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pools)
    return stacked, max(infos, key=lambda info: info["worst_marginal_error"])


# Training, seeds side by side.


def pool_rows(rows, key, batch_size, power):
    return pool.sample(rows, key, batch_size, power)


def trigonometric_rows(rows, key, batch_size, power):
    """Rows of the stochastic interpolant, from a pool of pairs."""
    key_row, key_t = jax.random.split(key)
    row = jax.random.randint(key_row, (batch_size,), 0, rows.x.shape[0])
    t = jax.random.uniform(key_t, (batch_size,)) ** power
    x0 = rows.x[row, 0]
    x, velocity = interpolants.trigonometric(x0, x0 + rows.velocity[row, 0], t)
    return pool.Rows(x, t, velocity)


@functools.cache
def training(config, draw_rows: Callable, predictor: bool):
    """Initialisation and the compiled call of one way of training; few ways, few compilations."""
    model, optimizer = common.network(config)
    if predictor:
        model = models.TimePredictorMLP(config.hidden_dims)
    loss_fn = train.time_prediction_loss if predictor else train.velocity_matching_loss
    step = train.make_step(model.apply, optimizer, ema_decay=config.ema_decay, loss_fn=loss_fn)
    power = 1.0 if predictor else config.row_power  # each of the predictor's times is as likely
    draw = functools.partial(draw_rows, batch_size=config.batch_size, power=power)
    steps = train.make_steps(train.drawing_step(step, draw), config.steps_per_call)
    inputs = (jnp.zeros((1, config.DIM)), jnp.zeros(1))[: 1 if predictor else 2]
    init = jax.vmap(lambda key: train.create(model.init(key, *inputs), optimizer))
    return model.apply, init, jax.jit(jax.vmap(steps), donate_argnums=0)


def fit(config, keys, pools, timed, draw_rows=pool_rows, predictor=False) -> tuple[Callable, Any]:
    """Apply function and averaged parameters [seeds, ...] after ``train_steps``.

    ``pools`` is one pool for the whole training, or a function of a number that gives the pool of
    each of ``config.refreshes`` equal parts.
    """
    apply_fn, init, steps = training(config.training_only(), draw_rows, predictor)
    split = jax.vmap(jax.random.split)(keys.fit)
    state, key_rows = init(split[:, 0]), split[:, 1]
    calls, uneven = divmod(config.train_steps, config.steps_per_call * config.refreshes)
    if uneven or not calls:
        raise ValueError(
            f"train_steps is {config.train_steps}; it must be a multiple of steps_per_call "
            f"times refreshes, {config.steps_per_call} x {config.refreshes}"
        )
    for number in range(config.refreshes):
        rows = pools(number) if callable(pools) else pools
        with timed("train"):
            for _ in range(calls):
                state, _ = steps(state, rows, key_rows)
            jax.block_until_ready(state)
    return apply_fn, state.ema_params


def drawer(config, apply_fn, params, horizon: float = 1.0) -> tuple[Callable, Callable]:
    """``draw`` and ``paths`` of a single field."""

    def draw(x0, nfe):
        carry = functools.partial(
            sampling.nsgf,
            apply_fn,
            nfe=nfe,
            horizon=horizon,
            method=config.stepper,
            power=config.time_power,
        )
        return jax.vmap(carry)(params, x0)

    def paths(x0):
        first = jax.tree.map(lambda leaf: leaf[0], params)
        return ode.trajectory(apply_fn, first, x0[0], t1=horizon, nfe=50)

    return draw, paths


# Methods.


def flow_matching(config, task, keys, timed, *, partners=None, size=None, rows=pool_rows):
    """Straight (or trigonometric) paths between pairs; ``partners(config, x, y, keys)`` couples."""
    with timed("pool"):
        x, y = draw_pairs(config, task, keys.root(0), size or config.num_particles)
        pairs = pair_pool(x, partners(config, x, y, keys.root(1)) if partners else y)
        jax.block_until_ready(pairs)
    return Learned(*drawer(config, *fit(config, keys, pairs, timed, rows)), {})


def rectified_flow(config, task, keys, timed, *, rectifications: int):
    """Flow matching on the pairs (x0, where the last flow takes it), again and again."""
    with timed("pool"):
        x, y = draw_pairs(config, task, keys.root(0), config.num_particles)
    draw, paths = drawer(config, *fit(config, keys, pair_pool(x, y), timed))
    for number in range(1, rectifications):
        with timed("pool"):
            x = draw_pairs(config, task, keys.root(number), config.num_particles)[0]
            pairs = pair_pool(x, draw(x.reshape(x.shape[0], -1, 2), 100).reshape(x.shape))
            jax.block_until_ready(pairs)
        draw, paths = drawer(config, *fit(config, keys, pairs, timed))
    return Learned(draw, paths, {})


def nsgf(config, task, keys, timed, *, independent_self=False):
    """Neural Sinkhorn gradient flow, arXiv:2401.14069; its pool may be refreshed on the way."""
    certificates = {}

    def pools(number):
        with timed("pool"):
            rows, seen = flow_pool(config, task, keys.root(number), independent_self)
            certificates.update(seen)
            return jax.block_until_ready(rows)

    field = fit(config, keys, pools, timed)
    return Learned(*drawer(config, *field, config.horizon()), certificates)


def nsgf_plus_plus(config, task, keys, timed):
    """Two phases and a time predictor; all their steps count as NFE."""
    with timed("pool"):
        rows, certificates = flow_pool(config, task, keys.root(0), False)
        pairs = pair_pool(*draw_pairs(config, task, keys.root(1), config.num_particles))
        jax.block_until_ready((rows, pairs))
    first, params_first = fit(config, keys, rows, timed)
    second, params_second = fit(config, keys, pairs, timed)
    predict, params_predict = fit(config, keys, pairs, timed, predictor=True)
    params = params_first, params_second, params_predict

    def draw(x0, nfe):
        if nfe < 3:
            return None
        early, late = sampling.phase_steps(nfe, most=config.flow_steps)

        def two(params, x):
            return sampling.two_phase(
                first,
                second,
                predict,
                params,
                x,
                nsgf_steps=early,
                straight_steps=late,
                horizon=config.horizon(),
                method=config.stepper,
                power=config.time_power,
            )

        return jax.vmap(two)(params, x0)

    return Learned(draw, drawer(config, first, params_first, config.horizon())[1], certificates)


def exact(config, x, y, keys):
    return optimal_partners(x, y)


def entropic(config, x, y, keys):
    return sinkhorn_partners(config.epsilon, x, y, keys)


# Settings that a method adds to the table's own. A field of flow time is known at the times of the
# particles' own Euler steps alone: it is followed by such steps.
FLOW_TIME = {"time": "flow", "stepper": "euler", "time_power": 1.0}
PAPER = {**FLOW_TIME, "step_size": 0.5, "flow_steps": 10}
EARLY = {**FLOW_TIME, "step_size": 0.2, "flow_steps": 5}

METHODS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "NSGF": (nsgf, {}),
    "OT-CFM n=256": (functools.partial(flow_matching, partners=exact, size=256), {}),
    "OT-CFM n=cloud": (functools.partial(flow_matching, partners=exact), {}),
    "FM": (flow_matching, {}),
    "NSGF flow time": (nsgf, PAPER),
    "NSGF++": (nsgf_plus_plus, EARLY),
    "SI": (functools.partial(flow_matching, rows=trigonometric_rows), {}),
    "RF-2": (functools.partial(rectified_flow, rectifications=2), {}),
    "RF-3": (functools.partial(rectified_flow, rectifications=3), {}),
    "OT-CFM Sinkhorn n=256": (functools.partial(flow_matching, partners=entropic, size=256), {}),
    "NSGF independent self": (functools.partial(nsgf, independent_self=True), {}),
}
