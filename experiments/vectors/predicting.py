"""Whether position tells time on straight paths: predictors of time, and what bounds them all."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.training import adam, decaying
from sinkflow import data, nets, plotting, pool, train

HELD_OUT = 500  # digits that no predictor is trained on
HALF = 0.05  # about time 1/2, of points whose predicted times are looked at
MODES = 5 * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
MODE_VARIANCE = 0.1**0.5  # with MODES: the eight Gaussians of sinkflow.data


class Place(NamedTuple):
    """Independent pairs ``(key, n) -> (x0, x1) [n, dim]``, of training and held out."""

    pairs: Callable
    fresh: Callable
    dim: int


class Tried(NamedTuple):
    """Points on straight paths, their times, and what a predictor says of them."""

    x: np.ndarray
    t: np.ndarray
    predicted: np.ndarray


def plane(task: data.Task) -> Place:
    """Pairs of a task."""

    def pairs(key, n):
        source, target = jax.random.split(key)
        return data.SAMPLERS[task.source](source, n), data.SAMPLERS[task.target](target, n)

    return Place(pairs, pairs, 2)


def digits() -> Place:
    """Pairs of normal noise and 8x8 digits, of which HELD_OUT are kept for the trial."""
    images = data.digits()[0]

    def pairs_of(images):
        def pairs(key, n):
            source, target = jax.random.split(key)
            noise = jax.random.normal(source, (n, images.shape[1]))
            return noise, images[jax.random.randint(target, (n,), 0, len(images))]

        return pairs

    kept, tried = (jnp.asarray(part) for part in (images[:-HELD_OUT], images[-HELD_OUT:]))
    return Place(pairs_of(kept), pairs_of(tried), images.shape[1])


def trial(
    key: jax.Array,
    place: Place,
    num_pairs: int,
    *,
    hidden_dims: tuple[int, ...],
    train_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Tried:
    """A predictor trained on points between pairs, and tried on ``num_pairs`` fresh ones."""
    key_pairs, key_init, key_train, key_fresh, key_t = jax.random.split(key, 5)
    rows = pool.from_pairs(*place.pairs(key_pairs, num_pairs))
    model = nets.TimePredictorMLP(hidden_dims)
    optimizer = adam(decaying(learning_rate, train_steps))
    step = train.make_step(
        model.apply, optimizer, ema_decay=0.0, loss_fn=train.time_prediction_loss
    )
    draw = train.drawing_step(step, lambda rows, key: pool.sample(rows, key, batch_size))
    state = train.create(model.init(key_init, jnp.zeros((1, place.dim))), optimizer)
    state, _ = jax.jit(train.make_steps(draw, train_steps))(state, rows, key_train)
    fresh = pool.from_pairs(*place.fresh(key_fresh, num_pairs))
    t = jax.random.uniform(key_t, (num_pairs,))
    x = pool.at(fresh, jnp.arange(num_pairs), t).x
    return Tried(*(np.asarray(values) for values in (x, t, model.apply(state.params, x))))


def scores(tried: Tried) -> dict[str, float]:
    """Root mean square of what is missed, and the predictions of points about half-way."""
    half = tried.predicted[np.abs(tried.t - 0.5) < HALF]
    return {
        "missed": float(np.sqrt(np.mean((tried.predicted - tried.t) ** 2))),
        "half_mean": float(half.mean()),
        "half_std": float(half.std()),
    }


def least_missed(x: np.ndarray, num_times: int = 200) -> float:
    """What any predictor misses at least between normal noise and eight Gaussians.

    A point at time t is of a mixture of Gaussians around t times the modes, of variance (1 - t)^2
    + t^2 MODE_VARIANCE; times are equally likely. The result is the root of the mean over points
    x [n, 2] of the variance of time where the point is known.
    """
    t = (jnp.arange(num_times) + 0.5) / num_times
    variance = (1 - t) ** 2 + t**2 * MODE_VARIANCE
    centres = t[:, None, None] * jnp.asarray(MODES)[None]

    def spread(x):
        squares = jnp.sum((x[None, None, :] - centres) ** 2, axis=2)
        exponents = -squares / (2 * variance[:, None])
        weights = jax.nn.softmax(jax.nn.logsumexp(exponents, axis=1) - jnp.log(variance))
        return weights @ t**2 - (weights @ t) ** 2

    return float(jnp.sqrt(jnp.mean(jax.lax.map(spread, jnp.asarray(x), batch_size=1000))))


def picture(tried: Mapping[str, Tried], shown: int = 1500):
    """Predicted against true time of some points of each place."""
    fig, axes = plotting.figure(len(tried), size=2.8)
    for axis, (name, seen) in zip(axes[0], tried.items(), strict=True):
        axis.plot(seen.t[:shown], seen.predicted[:shown], ".", ms=2, alpha=0.5)
        axis.plot([0, 1], [0, 1], color="0.3", lw=1)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="true time")
        axis.set_title(f"{name}, {seen.x.shape[1]} dimensions", fontsize=9)
    axes[0, 0].set_ylabel("predicted time")
    return fig
