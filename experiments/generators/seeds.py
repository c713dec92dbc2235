"""One-step generators as a method of the tables in the plane, all seeds side by side."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.generators import draws, training, updates
from experiments.generators.checks import check
from experiments.generators.config import preset
from experiments.vectors.methods import Learned
from experiments.vectors.seeds import Keys, Setting
from sinkflow import data, train

# Clouds as large as a GPU solves in the time of small ones, and many optimiser steps on each solve:
# all seeds train in about the time of NSGF.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys("nmk", 2048),
    "epsilon": (0.02,),
    "epsilon_start": 20.0,
    "train_steps": 300,
    "inner_steps": 16,
    "learning_rate": 4e-3,
}
STEPS = 100  # between the first parameters and the last a line of `paths` has as many points


def generator(setting: Setting, keys: Keys, timed: Callable, **changes: Any) -> Learned:
    """A generator trained by :data:`SETTINGS` and ``changes``, with the table's network.

    It draws fresh clouds in each step, so that it has no pool. Clouds are no larger than those of
    the flows, and there are no more optimiser steps than the other methods have. Samples take one
    evaluation.
    """
    task = next(name for name, known in data.TASKS.items() if known == setting.task)
    config = preset(task, hidden_dims=setting.network.hidden_dims, **{**SETTINGS, **changes})
    most, call = setting.training.train_steps, setting.training.steps_per_call
    inner = min(config.inner_steps, most // call)
    config = dataclasses.replace(
        config,
        **{name: min(getattr(config, name), setting.flow.num_particles) for name in "nmk"},
        train_steps=min(config.train_steps, most // inner),
        inner_steps=inner,
        steps_per_call=min(config.steps_per_call, call),
        warmup_steps=min(config.warmup_steps, most // 20),
    )
    check(config)
    epsilons, temperature = draws.units(config, None)
    net = training.network(config)
    step = updates.make_step(config, net, epsilons, temperature)
    steps = train.make_steps(step, config.steps_per_call, summary=updates.summary)
    split = jax.vmap(jax.random.split)(keys.fit)
    optimizer = updates.make_optimizer(config)
    state = jax.jit(jax.vmap(lambda key: train.create(net.init(key), optimizer)))(split[:, 0])
    # Compiled before the clock starts: every task has a program of its own.
    program = jax.jit(jax.vmap(lambda state, key: steps(state, None, key)), donate_argnums=0)
    several = program.lower(state, split[:, 1]).compile()
    seen = []
    with timed("train"):
        for _ in range(config.train_steps // config.steps_per_call):
            state, info = several(state, split[:, 1])
            seen.append(info)
        jax.block_until_ready(state)
    params = state.ema_params

    @jax.jit
    def move(params, x0):
        return net.apply_fn(params, x0, jnp.zeros(len(x0), int))

    def draw(x0, nfe):
        return jax.vmap(move)(params, x0) if nfe == 1 else None

    def paths(x0):
        ends = move(jax.tree.map(lambda leaf: leaf[0], params), x0[0])
        return jnp.linspace(x0[0], ends, STEPS)

    certificates = {
        "unconverged": int(sum(info.unconverged.sum() for info in seen)),
        "solves": int(sum(info.solves.sum() for info in seen)),
        "largest_marginal_error": float(max(info.marginal_error.max() for info in seen)),
    }
    return Learned(draw, paths, certificates)
