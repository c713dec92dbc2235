"""Ways to sample image models, and the images that they give."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.cli import progress
from experiments.harness.run import Run
from experiments.images.config import METHODS, DataSet, Sampling
from sinkflow import flow_map, ode, sampling
from sinkflow.data import images
from sinkflow.fit import Field


class Scheme(NamedTuple):
    """A way to sample: ``carry(x0 [n, d])`` gives images [n, d] for ``nfe`` evaluations each."""

    label: str
    nfe: int
    carry: Callable[[jax.Array], jax.Array]


class Drawing(NamedTuple):
    """Which images are drawn, of which noise."""

    key: jax.Array
    dim: int
    """Of a source sample."""
    shape: tuple[int, ...]
    """Of an image."""
    num_samples: int
    sample_batch: int
    settings: Mapping[str, Any]
    """What a record tells of it: with other settings images are drawn anew."""

    def noise(self, number: int) -> jax.Array:
        """Source samples [sample_batch, d] of one batch; the same for every scheme and method."""
        key = jax.random.fold_in(self.key, number)
        return jax.random.normal(key, (self.sample_batch, self.dim))


def drawing_of(how: Sampling, data_set: DataSet, key: jax.Array) -> Drawing:
    """How images of a data set are drawn; ``key`` is of the noise."""
    names = ("num_samples", "sample_batch", "stepper", "phase_end", "inception_weights")
    settings = {name: getattr(how, name) for name in names}
    sizes = data_set.dim(), data_set.shape, how.num_samples, how.sample_batch
    return Drawing(key, *sizes, settings)


def schemes(
    label: str, method: str, how: Sampling, fields: dict[str, Field], split: float = 0.0
) -> list[Scheme]:
    """Every way to sample that ``nfe`` asks for and the method has.

    NSGF++ is sampled by its first phase alone too, unless its pairs are others than usual: the
    first phase does not depend on them.
    """
    own = joined(fields["first"], fields["second"], split) if split else fields.get("straight")
    alone = functools.partial(follow, stepper=how.stepper)
    made = []
    for nfe in how.nfe:
        if method == "flow-map":
            apply_fn, params = fields["map"][:2]
            carry = functools.partial(flow_map.carry, apply_fn, params, nfe=nfe)
            made.append(Scheme(label, nfe, carry))
            continue
        if method != "nsgf++":
            made.append(Scheme(label, nfe, functools.partial(alone, own, nfe=nfe)))
            continue
        if label == METHODS[method]:
            made.append(Scheme("NSGF", nfe, functools.partial(alone, fields["velocity"], nfe=nfe)))
        if nfe >= 3:
            made.append(Scheme(label, nfe, two_phases(how, fields, nfe)))
    return made


def joined(first: Field, second: Field, split: float) -> Field:
    """The field that is ``first`` before the time ``split`` and ``second`` from there on.

    Both are of one network, and all particles are at the same time.
    """

    def apply_fn(params, x, t):
        return first.apply_fn(jnp.where(t[0] < split, *params), x, t)

    return Field(apply_fn, (first.params, second.params))


def follow(field: Field, x, *, nfe: int, stepper: str, t1: float = 1.0):
    """Particles carried along a field from time 0 to ``t1``."""
    count = jnp.asarray(nfe)  # an array: one program for all counts
    return ode.integrate(field.apply_fn, field.params, x, t1=t1, nfe=count, method=stepper)


def two_phases(how: Sampling, fields: dict[str, Field], nfe: int) -> Callable:
    """``carry`` of NSGF++ for ``nfe`` evaluations."""
    first, second = sampling.phase_steps(nfe, how.phase_end)
    velocity, straight, predictor = (fields[name] for name in ("velocity", "straight", "predictor"))
    return functools.partial(
        sampling.two_phase,
        velocity.apply_fn,
        straight.apply_fn,
        predictor.apply_fn,
        (velocity.params, straight.params, predictor.params),
        nsgf_steps=jnp.asarray(first),
        straight_steps=jnp.asarray(second),
        horizon=how.phase_end,
        method=how.stepper,
    )


def phase_change(
    how: Sampling, fields: dict[str, Field], noise: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Where NSGF++'s first phase ends [sample_batch, d], and the times predicted from there."""
    velocity, predictor = fields["velocity"], fields["predictor"]
    nfe = sampling.phase_steps(max(3, *how.nfe), how.phase_end)[0]
    end = follow(velocity, noise, nfe=nfe, stepper=how.stepper, t1=how.phase_end)
    return np.asarray(end), np.asarray(jax.jit(predictor.apply_fn)(predictor.params, end))


def draw(run: Run, drawing: Drawing, scheme: Scheme) -> tuple[np.ndarray, float, int]:
    """Images [num_samples, h, w, c] of bytes, seconds per 10,000, and how many are not finite."""
    count = -(-drawing.num_samples // drawing.sample_batch)
    batches, finite, times = [], [], []
    with run.timed("sample"):
        for number in progress(title(scheme))(range(count)):
            begin, compiled = time.perf_counter(), run.times["compile"]
            x = scheme.carry(drawing.noise(number))
            finite.append(np.asarray(jnp.isfinite(x).all(axis=1)))
            batches.append(np.asarray(images.unscale(x)).reshape(-1, *drawing.shape))
            times.append(time.perf_counter() - begin - (run.times["compile"] - compiled))
    # The lower median: the first batch also traces.
    seconds = statistics.median_low(times) * 10_000 / drawing.sample_batch
    failed = np.sum(~np.concatenate(finite)[: drawing.num_samples])
    return np.concatenate(batches)[: drawing.num_samples], seconds, int(failed)


def title(scheme: Scheme) -> str:
    return f"{scheme.label}, NFE {scheme.nfe}"
