"""Samples from a trained run, as one array in a file.

Command:  python -m experiments.sample --run runs/plane-8gaussians-moons-geodesic --nfe 5
Runtime:  seconds; training is not repeated.
Expected: FILE.npy with an array [num_samples, d] of float32, in the units of the run's data.
Source:   arXiv:2401.14069, algorithm 2. Of a run of experiments.generator samples take one
          evaluation, and --labels asks for digits: --run runs/generator-digits-... --labels 3 7
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import sinkflow
from experiments import common, generating
from sinkflow import checkpoint, data, images, ode, sampling
from sinkflow.fit import NETWORK, Field

BATCH = 1_000  # samples of one call of a one-step generator
COUNT = np.arange(BATCH)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw, from where, and where to put it."""

    run: str
    """Output folder of a driver, with its config.json and checkpoints, or of sinkflow.fit, with its
    network.json; its config then names the source, a sampler of sinkflow.data."""
    num_samples: int = 10_000
    """How many samples to draw."""
    nfe: int = 10
    """Network evaluations for each sample; a multiple of the method's 1, 2 or 4 a step. A one-step
    generator always takes one."""
    method: Literal["euler", "midpoint", "heun", "rk4", "ab2"] = "euler"
    """Fixed-step integrator."""
    labels: tuple[int, ...] = ()
    """Classes to draw, in turn, of a generator that was trained with --labels; by default all."""
    seed: int = 0
    """Of the source samples."""
    out: str = ""
    """File to write; by default RUN/samples.npy."""


def main(config: Config) -> np.ndarray:
    """Restores the field, carries source samples along it, writes them whole or not at all."""
    if config.num_samples < 1:
        raise ValueError(f"num_samples is {config.num_samples}; it must be at least 1")
    folder = pathlib.Path(config.run)
    draw = along_field if fitted(folder) or driver(folder) != "generator" else one_step
    samples = draw(config, folder)
    path = pathlib.Path(config.out or f"{config.run}/samples.npy")
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, samples)
    print(f"{samples.shape[0]} samples of dimension {samples.shape[1]} in {path}")
    return samples


def along_field(config: Config, folder: pathlib.Path) -> np.ndarray:
    """Source samples carried along a run's field."""
    ode.num_steps(config.nfe, config.method)
    if config.labels:
        raise ValueError(f"labels is {config.labels}; this run's field has none, leave them away")
    source, field = load_fitted(folder) if fitted(folder) else load_driven(folder)
    x0 = source(jax.random.key(config.seed), config.num_samples)
    carry = functools.partial(sampling.nsgf, nfe=config.nfe, method=config.method)
    return np.asarray(carry(field.apply_fn, field.params, x0, horizon=field.horizon))


def driver(folder: pathlib.Path) -> str:
    """Name of the driver that a run is of."""
    return common.read_settings(folder)["driver"]


def fitted(folder: pathlib.Path) -> bool:
    """Whether the folder is of :func:`sinkflow.fit` alone, without a driver."""
    return (folder / NETWORK).exists() and not (folder / "config.json").exists()


def load_driven(folder: pathlib.Path) -> tuple[Callable, Field]:
    """Source sampler and field of a driver's run."""
    settings, field = common.load_field(folder)
    return settings.source, field


def load_fitted(folder: pathlib.Path) -> tuple[Callable, Field]:
    """Source sampler and field of a run of :func:`sinkflow.fit`, whose config names the source."""
    field = sinkflow.load_field(folder)
    name = field.config.get("source")
    if name not in data.SAMPLERS:
        raise ValueError(
            f"source is {name!r} in the config of {folder}; sampling needs one of "
            f"{', '.join(data.SAMPLERS)} there: name it when you train, or call load_field"
        )
    return data.SAMPLERS[name], field


def one_step(config: Config, folder: pathlib.Path) -> np.ndarray:
    """One evaluation of a run's generator for each sample."""
    made = generating.restored(folder)
    if config.labels and not made.config.labels:
        raise ValueError(
            f"labels is {config.labels}; this generator was trained without, start a run with "
            "--labels or leave them away"
        )
    most = images.NUM_CLASSES - 1
    if any(not 0 <= label <= most for label in config.labels):
        raise ValueError(f"labels is {config.labels}; classes are 0 to {most}")
    asked = jnp.asarray(config.labels or range(images.NUM_CLASSES))
    starts = range(0, config.num_samples, BATCH)
    keys = jax.random.split(jax.random.key(config.seed), len(starts))
    batches = [
        made.draw(generating.latent(made.config, key, BATCH), asked[(at + COUNT) % len(asked)])
        for at, key in zip(starts, keys, strict=True)
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])[: config.num_samples]


if __name__ == "__main__":
    with common.clear_errors():
        main(tyro.cli(Config, description=common.header(__doc__), prog=common.program()))
