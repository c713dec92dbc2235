"""From samplers to a field: the pool with its certificates, the training, samples."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

import sinkflow
from experiments.harness.cli import progress
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import check_batch, check_steps, naming, require_finite
from experiments.harness.training import adam, certified, decaying, fit
from experiments.vectors.config import Flow, Network, Training, check_pool, check_training
from sinkflow import checkpoint, data, ode, pool, sampling, train
from sinkflow.files import misfit
from sinkflow.fit import CHECKPOINTS, NETWORK, Field


class Samplers(NamedTuple):
    """Where particles start and what they move to: ``(key, n) -> [n, dim]``."""

    source: Callable
    target: Callable
    dim: int


def learn(
    run: Run,
    key: jax.Array,
    samplers: Samplers,
    *,
    flow: Flow,
    network: Network,
    training: Training,
    nfe: tuple[int, ...],
) -> tuple[Field, dict]:
    """Fills the pool and fits the velocity; both resume where an earlier start stopped.

    Args:
      run: owns the folder, the log and the clock.
      key: PRNG key.
      samplers: of source and target.
      flow: of the particles.
      network: of the velocity.
      training: of the velocity.
      nfe: evaluations that samples will be drawn with, checked before the work begins.

    Returns:
      The field, with averaged parameters, and the pool's certificates in numbers.
    """
    key_pool, key_init, key_train, key_check = jax.random.split(key, 4)
    share = check_batch(training.batch_size)
    check_steps(
        training.steps_per_call,
        train_steps=training.train_steps,
        checkpoint_every=training.checkpoint_every,
    )
    check_pool(flow)
    check_training(network, training)
    if not nfe:
        raise ValueError("nfe is empty; give at least one number of network evaluations")
    for count in nfe:
        ode.num_steps(count)
    for name in ("source", "target"):
        require_finite(name, getattr(samplers, name)(key_check, flow.num_particles))
    with run.timed("pool"):
        rows, info = fill_pool(run, flow, key_pool, samplers)
        certificates = pool.summary(info)
    tqdm.write(certified("pool", certificates))
    with run.timed("train"):
        model = network.velocity()
        rate = decaying(training.learning_rate, training.train_steps)
        optimizer = adam(rate)
        step = train.make_step(model.apply, optimizer, ema_decay=training.ema_decay)
        draw = functools.partial(pool.sample, batch_size=share, power=training.row_power)
        state = fit(
            run,
            train.init(key_init, model, optimizer, samplers.dim),
            train.drawing_step(step, draw),
            lambda part: rows,
            key=key_train,
            rate=rate,
            batch_size=training.batch_size,
            num_steps=training.train_steps,
            steps_per_call=training.steps_per_call,
            checkpoint_every=training.checkpoint_every,
            network=model,
            horizon=flow.horizon(),
        )
    return Field(model.apply, state.ema_params, flow.horizon()), certificates


def fill_pool(run: Run, flow: Flow, key: jax.Array, samplers: Samplers):
    """The pool and its certificates, from the run's folder if they are there."""
    like = (
        pool.abstract(flow.num_clouds * flow.num_particles, flow.flow_steps, samplers.dim),
        pool.abstract_info(flow.num_clouds, flow.flow_steps),
    )
    return run.restored_pool(
        like,
        lambda: pool.build(
            key,
            samplers.source,
            samplers.target,
            **flow.pool_settings(),
            progress=progress("pool"),
        ),
    )


def draw_samples(run: Run, field: Field, x0, counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Samples from ``x0`` for every number of network evaluations."""
    with run.timed("sample"):
        return {
            str(nfe): np.asarray(
                sampling.nsgf(field.apply_fn, field.params, x0, nfe=nfe, horizon=field.horizon)
            )
            for nfe in counts
        }


def load(folder: pathlib.Path) -> tuple[Callable, Field]:
    """Source sampler and newest field of a driver's run, or of one of :func:`sinkflow.fit`."""
    return load_fitted(folder) if fitted(folder) else load_driven(folder)


def load_driven(folder: pathlib.Path) -> tuple[Callable, Field]:
    """Source sampler and newest field of a driver's run.

    Raises:
      ValueError: no run, or no checkpoint of one, in the folder, or not a run of vectors.
    """
    settings = read_settings(folder)
    if settings["driver"] not in SOURCES:
        raise ValueError(
            f"run is {folder}: {settings['driver']} draws its samples itself; start it again with "
            "the same settings and the --num-samples and --nfe you want"
        )
    if checkpoint.latest_step(folder / CHECKPOINTS) is None:
        raise ValueError(f"run is {folder}: it has no checkpoint yet; start its driver again")
    with naming(folder / "config.json"):
        source = SOURCES[settings["driver"]](settings)
    return source, sinkflow.load_field(folder)


def fitted(folder: pathlib.Path) -> bool:
    """Whether the folder is of :func:`sinkflow.fit` alone, without a driver."""
    return (folder / NETWORK).exists() and not (folder / "config.json").exists()


def load_fitted(folder: pathlib.Path) -> tuple[Callable, Field]:
    """Source sampler and field of a run of :func:`sinkflow.fit`, whose config names the source."""
    field = sinkflow.load_field(folder)
    name = field.config.get("source")
    if not isinstance(name, str) or name not in data.SAMPLERS:
        raise ValueError(
            f"source is {name!r} in the config of {folder}; sampling needs one of "
            f"{', '.join(data.SAMPLERS)} there: name it when you train, or call load_field"
        )
    return data.SAMPLERS[name], field


def plane_source(settings: dict[str, Any]) -> Callable:
    """Source sampler of a task in the plane.

    Raises:
      ValueError: the settings name no task.
    """
    wrong = misfit(settings, {"task": str})
    if wrong is not None:
        raise ValueError(wrong)
    return data.SAMPLERS[data.task(settings["task"]).source]


def digits_source(settings: dict[str, Any]) -> Callable:
    """Source sampler of digits: standard normal, of as many coordinates as an image has pixels."""
    return lambda key, n: jax.random.normal(key, (n, 64))


# Of the drivers whose fields are sampled by experiments.sample.
SOURCES: dict[str, Callable[[dict[str, Any]], Callable]] = {
    "plane": plane_source,
    "digits": digits_source,
}
