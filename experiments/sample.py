"""Samples from a trained run, as one array in a file.

Command:  python -m experiments.sample --run runs/plane-8gaussians-moons-geodesic --nfe 5
Runtime:  seconds; training is not repeated.
Expected: FILE.npy with an array [num_samples, d] of float32, in the units of the run's data.
Source:   arXiv:2401.14069, algorithm 2.
"""

import dataclasses
import functools
import pathlib
from typing import Literal

import jax
import numpy as np
import tyro

from experiments import common
from sinkflow import checkpoint, ode, sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw, from where, and where to put it."""

    run: str
    """Output folder of a driver, with its config.json and checkpoints."""
    num_samples: int = 10_000
    """How many samples to draw."""
    nfe: int = 10
    """Network evaluations for each sample; a multiple of the method's 1, 2 or 4 a step."""
    method: Literal["euler", "midpoint", "heun", "rk4", "ab2"] = "euler"
    """Fixed-step integrator."""
    seed: int = 0
    """Of the source samples."""
    out: str = ""
    """File to write; by default RUN/samples.npy."""


def main(config: Config) -> np.ndarray:
    """Restores the field, carries source samples along it, writes them whole or not at all."""
    if config.num_samples < 1:
        raise ValueError(f"num_samples is {config.num_samples}; it must be at least 1")
    ode.num_steps(config.nfe, config.method)
    settings, field = common.load_field(pathlib.Path(config.run))
    x0 = settings.source(jax.random.key(config.seed), config.num_samples)
    carry = functools.partial(sampling.nsgf, nfe=config.nfe, method=config.method)
    samples = np.asarray(carry(field.apply_fn, field.params, x0, horizon=field.horizon))
    path = pathlib.Path(config.out or f"{config.run}/samples.npy")
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, samples)
    print(f"{samples.shape[0]} samples of dimension {samples.shape[1]} in {path}")
    return samples


if __name__ == "__main__":
    with common.clear_errors():
        main(tyro.cli(Config, description=common.header(__doc__), prog=common.program()))
