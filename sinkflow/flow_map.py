"""Flow maps: fields of mean velocities, which carry particles over any time in one evaluation.

A field u(x, s, t) gives the mean velocity, between the times s and t, of the particle that is at x
at time s. A step from s to t takes it to x + (t - s) u(x, s, t), without an error of the step's
length. So one network samples with any number of evaluations.
"""

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from sinkflow import pool as pools
from sinkflow import train
from sinkflow.ode import num_steps
from sinkflow.ot._inputs import check_positive
from sinkflow.types import Array, Float, PRNGKey, Scalar, ScalarLike, check_shape, widened

__all__ = [
    "FlowMapFn",
    "Rows",
    "carry",
    "matching_loss",
    "mean_flow_loss",
    "sample",
    "sample_mean_flow",
    "step",
]

SHORTEST = 1e-3  # of the times between whose states a mean velocity is taken


def _logit_normal(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.nn.sigmoid(0.4 + jax.random.normal(key, shape, dtype))


LAWS = {"logit-normal": _logit_normal, "uniform": jax.random.uniform}


@runtime_checkable
class FlowMapFn(Protocol):
    """``(params, x [n, d], s [n], t [n]) -> [n, d]``: a field of mean velocities from s to t."""

    def __call__(self, params: Any, x: Array, s: Array, t: Array, /) -> Array: ...


class Rows(NamedTuple):
    """A batch to match mean velocities on.

    x [length] is where a particle is at time s, velocity its mean velocity from s to t (for
    :func:`mean_flow_loss` that at s).
    """

    x: Float[Array, "batch d"]
    s: Float[Array, "batch"]
    t: Float[Array, "batch"]
    velocity: Float[Array, "batch d"]


def sample(pool: pools.Pool, key: PRNGKey, batch_size: int, power: ScalarLike = 1.0) -> Rows:
    """Pairs of states of one path each, drawn with replacement, for use inside a jitted step.

    The mean velocity from s to t is (x_t - x_s) / (t - s).

    Args:
      pool: from :func:`sinkflow.pool.build` in geodesic time, or of straight paths.
      key: PRNG key.
      batch_size: rows to draw.
      power: s is u^power, u uniform in [0, 1), and t is uniform in [s, 1). Above 1 more pairs
        begin early, where paths to different modes part.

    Raises:
      ValueError: batch_size < 1; outside a trace also power <= 0.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    check_positive("power", power)
    key_row, key_s, key_t = jax.random.split(key, 3)
    row = jax.random.randint(key_row, (batch_size,), 0, pool.x.shape[0])
    s = jax.random.uniform(key_s, (batch_size,), pool.t.dtype) ** power
    t = s + (1 - s) * jax.random.uniform(key_t, (batch_size,), pool.t.dtype)
    start, end = pools.at(pool, row, s), pools.at(pool, row, t)
    span = (t - s)[:, None]
    # Over shorter times the difference of two places is lost in their rounding.
    far = span > SHORTEST
    mean = jnp.where(far, (end.x - start.x) / jnp.where(far, span, 1), start.velocity)
    return Rows(start.x, s, t, mean)


def matching_loss(apply_fn: FlowMapFn, params: Any, rows: Rows) -> Scalar:
    """Mean over rows of the squared distance between field and mean velocity [length^2 / time^2].

    Where paths do not cross its minimum is the flow map of the paths. Where they do, it is the mean
    over the paths through x.

    Raises:
      ValueError: at trace time, if the field has another shape than the rows' velocity.
    """

    def field(params: Any, x: Array, t: Array) -> Array:
        return apply_fn(params, x, rows.s, t)

    return train.velocity_matching_loss(field, params, rows)


def sample_mean_flow(
    pool: pools.Pool,
    key: PRNGKey,
    batch_size: int,
    equal_share: ScalarLike = 0.75,
    law: str = "logit-normal",
) -> Rows:
    """Rows of :func:`mean_flow_loss`: states at s with the velocity there, not that of a pair.

    The times are the lesser and the greater of two draws of a law.

    Args:
      pool: of straight paths, from :func:`sinkflow.pool.from_pairs`, or one in geodesic time.
      key: PRNG key.
      batch_size: rows to draw.
      equal_share: share of the rows with t = s, which learn the velocity field.
      law: "logit-normal", the sigmoid of N(0.4, 1): in the source time runs from data to noise, and
        the mean is -0.4. Or "uniform", which comes nearer to the whole way from 0 to 1.

    Raises:
      ValueError: batch_size < 1, or an unknown law.

    Source: Geng et al. 2025, arXiv:2505.13447, sec. 4.3 and table 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}; choose one of {', '.join(LAWS)}")
    key_row, key_times, key_equal = jax.random.split(key, 3)
    row = jax.random.randint(key_row, (batch_size,), 0, pool.x.shape[0])
    s, t = jnp.sort(LAWS[law](key_times, (2, batch_size), pool.t.dtype), axis=0)
    equal = jax.random.uniform(key_equal, (batch_size,)) < equal_share
    start = pools.at(pool, row, s)
    return Rows(start.x, s, jnp.where(equal, s, t), start.velocity)


def mean_flow_loss(
    apply_fn: FlowMapFn, params: Any, rows: Rows, weight_power: ScalarLike = 1.0
) -> Scalar:
    """MeanFlow's objective: mean velocities from the velocities of single pairs, without a pool.

    Along a path (t - s) u(x, s, t) loses what was travelled, so that u = v + (t - s) du/ds. The
    total derivative is taken forwards, in the direction (v, 1) of x and s. The right side is the
    target, and has no gradient.

    Args:
      apply_fn: the field, differentiable forwards.
      params: its parameters.
      rows: from :func:`sample_mean_flow`.
      weight_power: p of the weights 1 / (error^2 + 1e-3)^p of rows, which have no gradient; 0 for
        the squared error itself [length^2 / time^2].

    Raises:
      ValueError: at trace time, if the field has another shape than the rows' velocity.

    Source: Geng et al. 2025, arXiv:2505.13447, algorithm 1 and eq. 22, with time from source to
      target.
    """

    def field(x: Array, s: Array) -> Array:
        return apply_fn(params, x, s, rows.t)

    tangent = (rows.velocity, jnp.ones_like(rows.s))
    mean, change = jax.jvp(field, (rows.x, rows.s), tangent)
    check_shape("the field", mean, rows.velocity.shape, "rows.velocity has")
    target = rows.velocity + (rows.t - rows.s)[:, None] * change
    squares = jnp.sum((mean - jax.lax.stop_gradient(target)) ** 2, axis=1)
    weights = jax.lax.stop_gradient((squares + 1e-3) ** -jnp.asarray(weight_power, squares.dtype))
    return jnp.mean(weights * squares)


def step(
    apply_fn: FlowMapFn,
    params: Any,
    x: Float[Array, "n d"],
    s: Float[Array, "n"],
    t: Float[Array, "n"],
) -> Float[Array, "n d"]:
    """Particles at times t that are at x at times s: x + (t - s) u(x, s, t), one evaluation.

    Raises:
      ValueError: a field of another shape than x.
    """
    velocity = apply_fn(params, x, s, t)
    check_shape("the field", velocity, x.shape, "x")
    return x + ((t - s)[:, None] * velocity).astype(x.dtype)


def carry(
    apply_fn: FlowMapFn,
    params: Any,
    x: Float[Array, "n d"],
    *,
    nfe: int,
    power: ScalarLike = 1.0,
) -> Float[Array, "n d"]:
    """Particles at time 1 that were at x at time 0, in steps x + (t - s) u(x, s, t).

    Args:
      apply_fn: the field of mean velocities. Static: hand over one function, not a fresh lambda a
        call.
      params: its parameters.
      x: source samples [length].
      nfe: steps, and exactly as many evaluations of the field.
      power: step k of K starts at (k/K)^power.

    Returns:
      Particles [n, d] in the dtype of ``x``. All in between is in float32 at least.

    Raises:
      ValueError: nfe < 1, or a field of another shape than x; outside a trace also power <= 0.
    """
    check_positive("power", power)
    return _carry(apply_fn, params, x, num_steps(nfe), power)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _carry(
    apply_fn: FlowMapFn, params: Any, x: Float[Array, "n d"], steps: int, power: ScalarLike
) -> Float[Array, "n d"]:
    times = jnp.arange(steps + 1, dtype=widened(x.dtype)) / steps
    times = times ** jnp.asarray(power, times.dtype)

    def body(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        s, t = (jnp.broadcast_to(time, x.shape[:1]) for time in ends)
        return step(apply_fn, params, x, s, t), None

    return jax.lax.scan(body, x.astype(times.dtype), (times[:-1], times[1:]))[0].astype(x.dtype)
