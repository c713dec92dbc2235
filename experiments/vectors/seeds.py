"""Training of several seeds side by side, under vmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.harness.training import adam, decaying
from experiments.vectors import config as parts
from sinkflow import data, flow_map, nets, ode, pool, sampling, train
from sinkflow.pairs import trigonometric

DIM = 2


@dataclasses.dataclass(frozen=True)
class Training(parts.Training):
    """How the networks are trained."""

    batch_size: int = 2048
    """Rows of each optimiser step."""
    train_steps: int = 10_000
    """Optimiser steps of every network."""
    learning_rate: float = 4e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    steps_per_call: int = 500
    """Optimiser steps of one dispatched call."""
    refreshes: int = 1
    """Pools built in the course of a training."""
    checkpoint_every: tyro.conf.Suppress[int] = 0
    """Of no use here: what is kept of a killed grid are its finished groups."""


@dataclasses.dataclass(frozen=True)
class Sampling(parts.Sampling):
    """How samples are drawn and measured."""

    num_samples: int = 4096
    """Generated and target samples of each W2, both stratified."""
    stepper: Literal["euler", "ab2"] = "ab2"
    """How fields are integrated, one evaluation a step: Euler's method, or that of Adams and
    Bashforth, which is of second order. In flow time it is Euler's."""
    time_power: float = 1.5
    """Step k of K starts at (k/K)^time_power of the time, also with the rivals."""
    num_floors: int = 5
    """Independent draws behind each floor."""


class Setting(NamedTuple):
    """What a method is run with: a task, and a row's settings in their parts."""

    task: data.Task
    flow: parts.Flow
    network: parts.Network
    training: Training
    sampling: Sampling


class Keys(NamedTuple):
    """Independent PRNG keys [seeds] of a method: what it draws data with, and what it fits with."""

    data: jax.Array
    fit: jax.Array

    def root(self, number: int) -> jax.Array:
        """Keys [seeds] of the ``number``-th draw of data; no key serves two draws."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.data, number)


def pool_rows(rows, key, batch_size, power):
    return pool.sample(rows, key, batch_size, power)


def trigonometric_rows(rows, key, batch_size, power):
    """Rows of the stochastic interpolant, from a pool of pairs."""
    key_row, key_t = jax.random.split(key)
    row = jax.random.randint(key_row, (batch_size,), 0, rows.x.shape[0])
    t = jax.random.uniform(key_t, (batch_size,)) ** power
    x0 = rows.x[row, 0]
    x, velocity = trigonometric(x0, x0 + rows.velocity[row, 0], t)
    return pool.Rows(x, t, velocity)


def mean_flow_rows(rows, key, batch_size, power):
    """MeanFlow's, with times of its own; ``power`` is of no effect.

    Uniform times, equal ones in half of the rows, and the plain squared error were the best of a
    small search on 8gaussians and 8gaussians-moons. With the values for images W2 is higher at
    every number of evaluations: few of their pairs of times span the whole way, which one step is.
    """
    return flow_map.sample_mean_flow(rows, key, batch_size, equal_share=0.5, law="uniform")


class Fitting(NamedTuple):
    """What is fitted: a network of x and so many times, its loss, and the power of its rows."""

    model: Callable[[tuple[int, ...]], Any]
    loss_fn: Callable
    num_times: int
    power: float | None = None
    """In place of the training's own."""


FIELD = Fitting(nets.VelocityMLP, train.velocity_matching_loss, 1)
# Each of the predictor's times is as likely.
PREDICTOR = Fitting(nets.TimePredictorMLP, train.time_prediction_loss, 0, power=1.0)
FLOW_MAP = Fitting(nets.FlowMapMLP, flow_map.matching_loss, 2)
MEAN_FLOW = Fitting(
    nets.FlowMapMLP, functools.partial(flow_map.mean_flow_loss, weight_power=0.0), 2
)


@functools.cache
def programs(network: parts.Network, training: Training, draw_rows: Callable, fitting: Fitting):
    """Initialisation and the compiled call of one way of training; few ways, few compilations."""
    model = fitting.model(network.hidden_dims)
    optimizer = adam(decaying(training.learning_rate, training.train_steps))
    step = train.make_step(
        model.apply, optimizer, ema_decay=training.ema_decay, loss_fn=fitting.loss_fn
    )
    power = training.row_power if fitting.power is None else fitting.power
    draw = functools.partial(draw_rows, batch_size=training.batch_size, power=power)
    steps = train.make_steps(train.drawing_step(step, draw), training.steps_per_call)
    inputs = (jnp.zeros((1, DIM)), *[jnp.zeros(1)] * fitting.num_times)
    init = jax.vmap(lambda key: train.create(model.init(key, *inputs), optimizer))
    return model.apply, init, jax.jit(jax.vmap(steps), donate_argnums=0)


def fit_seeds(
    setting: Setting, keys: Keys, pools, timed, draw_rows=pool_rows, fitting=FIELD
) -> tuple[Callable, Any]:
    """Apply function and averaged parameters [seeds, ...] after ``train_steps``.

    ``pools`` is one pool for the whole training, or a function of a number that gives the pool of
    each of ``refreshes`` equal parts.
    """
    training = setting.training
    # Pools of every kind share what is compiled.
    alike = dataclasses.replace(training, refreshes=1)
    apply_fn, init, steps = programs(setting.network, alike, draw_rows, fitting)
    split = jax.vmap(jax.random.split)(keys.fit)
    state, key_rows = init(split[:, 0]), split[:, 1]
    calls, uneven = divmod(training.train_steps, training.steps_per_call * training.refreshes)
    if uneven or not calls:
        raise ValueError(
            f"train_steps is {training.train_steps}; it must be a multiple of steps_per_call "
            f"times refreshes, {training.steps_per_call} x {training.refreshes}"
        )
    for number in range(training.refreshes):
        rows = pools(number) if callable(pools) else pools
        with timed("train"):
            for _ in range(calls):
                state, _ = steps(state, rows, key_rows)
            jax.block_until_ready(state)
    return apply_fn, state.ema_params


def drawer(
    sampling_of: Sampling, apply_fn, params, horizon: float = 1.0
) -> tuple[Callable, Callable]:
    """``draw`` and ``paths`` of a single field."""

    def draw(x0, nfe):
        carry = functools.partial(
            sampling.nsgf,
            apply_fn,
            nfe=nfe,
            horizon=horizon,
            method=sampling_of.stepper,
            power=sampling_of.time_power,
        )
        return jax.vmap(carry)(params, x0)

    def paths(x0):
        first = jax.tree.map(lambda leaf: leaf[0], params)
        return ode.trajectory(apply_fn, first, x0[0], t1=horizon, nfe=50)

    return draw, paths


def map_drawer(sampling_of: Sampling, apply_fn, params) -> tuple[Callable, Callable]:
    """``draw`` and ``paths`` of a field of mean velocities."""

    def draw(x0, nfe):
        move = functools.partial(flow_map.carry, apply_fn, nfe=nfe, power=sampling_of.time_power)
        return jax.vmap(move)(params, x0)

    def paths(x0):
        first = jax.tree.map(lambda leaf: leaf[0], params)
        start = jnp.zeros(x0.shape[1])
        to = functools.partial(flow_map.step, apply_fn, first, x0[0], start)
        return jnp.stack([to(start + share) for share in np.linspace(0, 1, 51)])

    return draw, paths
