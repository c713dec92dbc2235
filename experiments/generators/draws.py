"""Latent points and real samples that one-step generators are trained on.

Samples are vectors [n, d] outside of the networks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generators.config import GeneratorConfig
from sinkflow import Limits, costs, data
from sinkflow.data import images
from sinkflow.ot.regularisation import epsilon_for_neighbours, mean_cost

UNIT_SAMPLES = 2_048  # real samples that epsilon's unit is measured with, twice


class Real(NamedTuple):
    """Real samples, and where those of each class are.

    ``rows`` [classes, most] is filled up behind the first ``counts`` [classes].
    """

    samples: jax.Array
    rows: jax.Array
    counts: jax.Array


def latent(config: GeneratorConfig, key, count: int):
    """Source points z [count, k]: of the task in the plane, else standard normal."""
    if config.dataset in data.TASKS:
        return data.SAMPLERS[data.task(config.dataset).source](key, count)
    return jax.random.normal(key, (count, config.dim()))


def share(config: GeneratorConfig, count: int) -> int:
    """Samples of each class among ``count``."""
    return count // config.num_classes()


def labels_of(config: GeneratorConfig, count: int):
    """As many of each class as there is room for, in order [classes * share]."""
    return jnp.repeat(jnp.arange(config.num_classes()), share(config, count))


def real_samples(config: GeneratorConfig, samples=None, labels=None) -> Real | None:
    """Samples [N, ...], shuffled; None in the plane, drawn afresh."""
    if samples is None:
        return None
    order = np.asarray(jax.random.permutation(config.key("shuffle"), len(samples)))
    own = np.asarray(labels)[order] if config.labels else np.zeros(order.shape, int)
    found = [np.flatnonzero(own == label) for label in range(config.num_classes())]
    counts = np.array([len(rows) for rows in found])
    if not counts.all():
        raise ValueError("a class has no real samples; leave --labels away")
    rows = np.stack([np.resize(rows, counts.max()) for rows in found])
    return Real(jnp.asarray(samples[order]), jnp.asarray(rows), jnp.asarray(counts))


def draw_real(config: GeneratorConfig, real: Real | None, key, count: int):
    """Real samples [classes, share, d] of one cloud, with replacement."""
    if real is None:
        return data.SAMPLERS[data.task(config.dataset).target](key, count)[None]
    shape = (config.num_classes(), share(config, count))
    picks = jax.random.randint(key, shape, 0, real.counts[:, None])
    drawn = real.samples[jnp.take_along_axis(real.rows, picks, axis=1)]
    drawn = images.scale(drawn) if drawn.dtype == jnp.uint8 else drawn
    return drawn.reshape(*shape, -1)


def units(config: GeneratorConfig, real: Real | None) -> tuple[np.ndarray, float]:
    """Epsilons [length^2] at the end of the training, and the drift's temperature [length].

    Raises:
      RuntimeError: no epsilon gives the wanted number of neighbours.
    """
    count = config.m if config.epsilon_unit == "neighbours" else UNIT_SAMPLES
    draw = jax.jit(functools.partial(draw_real, config, count=count))
    x, y = (draw(real, key) for key in jax.random.split(config.key("epsilon")))
    flat = [cloud.reshape(-1, cloud.shape[-1]) for cloud in (x, y)]
    distance = float(jnp.mean(jnp.sqrt(2 * costs.squared_euclidean(*flat))))
    unit = float(mean_cost(*flat)) if config.epsilon_unit == "mean-cost" else 1.0
    values = np.array(config.epsilon) * unit
    if config.epsilon_unit == "neighbours":
        values = np.array([_for_neighbours(x, y, wanted) for wanted in config.epsilon])
    return values.astype(np.float32), config.temperature * distance


def _for_neighbours(x, y, wanted: float) -> float:
    """Mean over classes of the epsilon that gives the wanted number of neighbours."""
    found = []
    for clouds in zip(x, y, strict=True):
        value, out = epsilon_for_neighbours(*clouds, wanted, limits=Limits(1e-3))
        if not out.converged or abs(float(out.neighbours) / wanted - 1) > 0.05:
            raise RuntimeError(
                f"no epsilon gives clouds of {len(clouds[1])} samples {wanted} neighbours: the "
                f"closest has {float(out.neighbours):.3g}; choose another number"
            )
        found.append(float(value))
    return float(np.mean(found))


def draw_clouds(config: GeneratorConfig, real: Real | None, key) -> tuple:
    """Latent points of a cloud and of the self term's, real samples, and a key of the objective."""
    keys = jax.random.split(key, 4)
    y = draw_real(config, real, keys[0], config.m)
    counts = (len(labels_of(config, count)) for count in (config.n, config.k))
    z, z_other = (latent(config, k, n) for k, n in zip(keys[1:3], counts, strict=True))
    return z, z_other, y, keys[3]
