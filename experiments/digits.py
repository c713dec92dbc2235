"""Neural Sinkhorn gradient flow on real input: 1,797 handwritten digits of 8x8 pixels.

Command:  python -m experiments.digits
Runtime:  about 3 minutes on two CPU cores; --smoke ends in under a minute.
Expected: experiments/results/plane.md; a larger change than its spread is a finding.
Source:   arXiv:2401.14069, the method; the digits ship with scikit-learn.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import cli
from experiments.harness.run import Run
from experiments.harness.settings import check_positive_counts
from experiments.vectors import config as parts
from experiments.vectors.digits import report
from experiments.vectors.evaluation import Judge
from experiments.vectors.learning import Samplers, digits_source, draw_samples, learn
from sinkflow import data


@dataclasses.dataclass(frozen=True)
class Flow(parts.Flow):
    """The particle flow, and the pool of its states."""

    epsilon: float = 0.1
    """Entropic regularisation [length^2]; 0.1 leaves a particle 1 to 2 effective neighbours."""
    flow_steps: int = 4
    """Euler steps of the particle flow."""
    num_particles: int = 1297
    """Particles in each cloud; all training images by default."""


@dataclasses.dataclass(frozen=True)
class Network(parts.Network):
    """The velocity field's network."""

    hidden_dims: tuple[int, ...] = (768, 768, 768, 768)
    """Widths of the velocity network's hidden layers."""


@dataclasses.dataclass(frozen=True)
class Training(parts.Training):
    """How the field is trained."""

    batch_size: int = 512
    """Rows of each optimiser step, over all devices."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""


@dataclasses.dataclass(frozen=True)
class Config(parts.VectorConfig):
    """Every number of the run. Lengths are pixel values in [-1, 1]."""

    flow: Flow = dataclasses.field(default_factory=Flow)
    network: Network = dataclasses.field(default_factory=Network)
    training: Training = dataclasses.field(default_factory=Training)
    num_test: int = 500
    """Held-out images; as many samples are generated and compared with them."""
    num_floors: int = 5
    """Draws of training images behind the floor."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 64,
        "num_clouds": 2,
        "hidden_dims": (64, 64),
        "batch_size": 64,
        "train_steps": 100,
        "steps_per_call": 50,
        "checkpoint_every": 50,
    }

    def name(self) -> str:
        return f"digits-{self.flow.time}"


def main(config: Config) -> dict:
    """Fills the pool, fits the velocity, samples, measures; returns result.json's content."""
    images, labels = data.digits()
    particles = config.flow.num_particles
    most = min(len(images) - particles, len(images) // 2)
    if not 2 <= config.num_test <= most:
        raise ValueError(
            f"num_test is {config.num_test}; of {len(images)} images, {particles} of "
            f"them particles and as many for the floor as for the test, it must be 2 to {most}"
        )
    check_positive_counts(num_floors=config.num_floors)
    run = Run(config)
    key_learn, key_x0, key_split = jax.random.split(jax.random.key(config.seed), 3)
    order = np.asarray(jax.random.permutation(key_split, len(images)))
    test, real = order[: config.num_test], order[config.num_test :]
    pixels = jnp.asarray(images[real])

    def target(key, n):
        return pixels[jax.random.choice(key, len(pixels), (n,), replace=False)]

    source, nfe = digits_source({}), config.sampling.nfe
    field, certificates = learn(
        run,
        key_learn,
        Samplers(source, target, pixels.shape[1]),
        flow=config.flow,
        network=config.network,
        training=config.training,
        nfe=nfe,
    )
    samples = draw_samples(run, field, source(key_x0, config.num_test), nfe)
    with run.timed("evaluate"):
        judge = Judge(images[real], labels[real], images[test], labels[test], config)
    return report(run, judge, samples, images[real], certificates)


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
