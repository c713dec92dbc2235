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
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.generators import draws, training
from experiments.harness import cli
from experiments.harness.run import read_settings
from experiments.vectors import learning
from sinkflow import checkpoint, ode, sampling
from sinkflow.data import images

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
    folder, count, key = pathlib.Path(config.run), config.num_samples, jax.random.key(config.seed)
    if learning.fitted(folder) or read_settings(folder)["driver"] != "generator":
        ode.num_steps(config.nfe, config.method)
        if config.labels:
            raise ValueError(
                f"labels is {config.labels}; this run's field has none, leave them away"
            )
        source, field = learning.load(folder)
        carry = functools.partial(sampling.nsgf, nfe=config.nfe, method=config.method)
        x0 = source(key, count)
        samples = np.asarray(carry(field.apply_fn, field.params, x0, horizon=field.horizon))
    else:
        samples = one_step(folder, key, count, config.labels)
    path = pathlib.Path(config.out or f"{config.run}/samples.npy")
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, samples)
    print(f"{samples.shape[0]} samples of dimension {samples.shape[1]} in {path}")
    return samples


def one_step(folder: pathlib.Path, key, count: int, labels: tuple[int, ...]) -> np.ndarray:
    """One evaluation of a run's generator for each sample."""
    made = training.restored(folder)
    if labels and not made.config.labels:
        raise ValueError(
            f"labels is {labels}; this generator was trained without, start a run with "
            "--labels or leave them away"
        )
    most = images.NUM_CLASSES - 1
    if any(not 0 <= label <= most for label in labels):
        raise ValueError(f"labels is {labels}; classes are 0 to {most}")
    asked = jnp.asarray(labels or range(images.NUM_CLASSES))
    starts = range(0, count, BATCH)
    batches = [
        made.draw(draws.latent(made.config, key, BATCH), asked[(at + COUNT) % len(asked)])
        for at, key in zip(starts, jax.random.split(key, len(starts)), strict=True)
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])[:count]


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
