"""Trajectory pool: rows (x, t, velocity) of many flows, resident on the device."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sinkflow import _flows, flow, pairs
from sinkflow._clouds import all_finite, check_finite, draw_clouds
from sinkflow.ot import _inputs
from sinkflow.ot._inputs import check_limits
from sinkflow.ot.limits import Limits
from sinkflow.types import (
    Array,
    Bool,
    Float,
    Int,
    PRNGKey,
    Sampler,
    ScalarLike,
    check_shape,
    widened,
)

__all__ = [
    "Pool",
    "PoolInfo",
    "Rows",
    "abstract",
    "abstract_info",
    "at",
    "build",
    "draw_clouds",
    "from_pairs",
    "horizon",
    "sample",
    "summary",
]

TIMES = ("geodesic", "flow")


class Pool(NamedTuple):
    """Particles' paths: row i, step k starts at x [length] and time t and moves with velocity.

    ``width`` is how long it keeps that velocity: the segment's length in geodesic time, 0
    in flow time, where only the stored states themselves are rows.
    """

    x: Float[Array, "rows steps d"]
    velocity: Float[Array, "rows steps d"]
    t: Float[Array, "rows steps"]
    width: Float[Array, "rows steps"]


class Rows(NamedTuple):
    """A batch to match velocities on."""

    x: Float[Array, "batch d"]
    t: Float[Array, "batch"]
    velocity: Float[Array, "batch d"]


class PoolInfo(NamedTuple):
    """Certificates of all solves, one per cloud and step."""

    converged: Bool[np.ndarray, "clouds steps"]
    marginal_error: Float[np.ndarray, "clouds steps"]
    neighbours: Float[np.ndarray, "clouds steps"]
    num_iterations: Int[np.ndarray, "clouds steps"]


def build(
    key: PRNGKey,
    source: Sampler,
    target: Sampler,
    *,
    num_clouds: int,
    num_particles: int,
    epsilon: ScalarLike,
    step_sizes: Array | np.ndarray | Sequence,
    time: str = "geodesic",
    clouds_per_call: int = 1,
    limits: Limits = Limits(),
    independent_self: bool = False,
    dtype: DTypeLike | None = None,
    allow_unconverged: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[Pool, PoolInfo]:
    """Simulates flows between fresh clouds and keeps every state and velocity.

    The local devices share the clouds, and so do the processes of a distributed program. The pool
    lies on the first device, whole in every process. With the storage :class:`sinkflow.Sharded`
    the devices share each solve instead, and the pool lies on its mesh. Within
    :func:`jax.set_mesh` it is built where that mesh says.

    Args:
      key: cloud i is drawn from ``fold_in(key, i)``, whatever ``clouds_per_call``.
      source: ``(key, n) -> [n, d]``, every point finite.
      target: likewise.
      num_clouds: pairs of clouds, one flow each.
      num_particles: particles in each cloud.
      epsilon: entropic regularisation [length^2].
      step_sizes: of the flow [flow time], see :func:`sinkflow.flow.check_step_sizes`; in geodesic
        time the last one must be 1. Times of the pool have their dtype.
      time: "geodesic" (s in [0, 1], 1 - s_{k+1} = (1 - s_k)(1 - step)) or "flow" (the
        paper's t_k, the sum of steps).
      clouds_per_call: clouds simulated side by side on each device; they wait for the slowest
        solve.
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.
      independent_self: take the self term from a second cloud, see :func:`sinkflow.flow.step`.
      dtype: of the positions and velocities that are kept, floating, default the clouds' own. A
        pool of images in float16 takes half the memory; :func:`sample` computes in full precision.
      allow_unconverged: keep the pool even if some solves did not converge.
      progress: wraps the iteration over calls, for a progress bar.

    Raises:
      ValueError: unknown time, no clouds or particles, epsilon <= 0, steps that
        :func:`sinkflow.flow.check_step_sizes` refuses, geodesic time without a full last step, a
        dtype that is not floating, or a sampler that gives another shape or points that are not
        finite.
      RuntimeError: some solves did not converge (unless allowed), with their count and
        the worst marginal error.

    Source:
      arXiv:2401.14069, algorithm 1; geodesic time is ours.
    """
    for name, count in (("num_clouds", num_clouds), ("num_particles", num_particles)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    _inputs.check_positive("epsilon", epsilon)
    check_limits(limits, jnp.float32)
    if clouds_per_call < 1 or num_clouds % clouds_per_call:
        raise ValueError(f"clouds_per_call is {clouds_per_call}; it must divide {num_clouds}")
    _check_time(time)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}; positions are kept in a floating dtype")
    step_sizes = flow.check_step_sizes(step_sizes)
    if time == "geodesic" and float(step_sizes[-1]) != 1:
        raise ValueError(
            f"step_sizes ends with {float(step_sizes[-1])}; geodesic time needs a full last step, 1"
        )
    parts = []
    for indices in progress(_flows.rounds(num_clouds, clouds_per_call, limits.storage)):
        x, y = draw_clouds(key, source, target, jnp.asarray(indices), num_particles)
        finite = all_finite(x, y)  # looked at below: asking now would wait for the device
        trajectory, info = _flows.simulate(x, y, epsilon, step_sizes, limits, independent_self)
        parts.append((_from_trajectories(trajectory, step_sizes, time, dtype), info, finite))
        del trajectory  # before the next one is made beside it
    rows, *certificates = _flows.together(parts, num_clouds)
    solves, finite = jax.device_get(certificates)
    certified = PoolInfo(*solves)
    check_finite(finite)
    if not allow_unconverged:
        _check_converged(certified, limits)
    return rows, certified


def _check_converged(info: PoolInfo, limits: Limits) -> None:
    """Raises RuntimeError with the number of solves that did not converge, if any."""
    if not info.converged.all():
        failed = int(np.sum(~info.converged))
        raise RuntimeError(
            f"{failed} of {info.converged.size} Sinkhorn solves did not converge (worst marginal "
            f"error {np.max(info.marginal_error):.2g}, wanted {float(limits.threshold):.2g}): "
            "raise epsilon or max_iterations, or allow an unconverged pool"
        )


def _check_time(time: str) -> None:
    if time not in TIMES:
        raise ValueError(f"unknown time {time!r}; choose one of {', '.join(TIMES)}")


@functools.partial(jax.jit, static_argnames=("time", "dtype"))
def _from_trajectories(
    trajectory: flow.Trajectory,
    step_sizes: Float[Array, "steps"],
    time: str,
    dtype: DTypeLike | None,
) -> Pool:
    """Rows of stacked trajectories [clouds, steps, n, ...], particles first."""
    clouds, _, n, _ = trajectory.x.shape
    x, velocity = (
        jnp.moveaxis(leaf, 2, 1).reshape(clouds * n, *leaf.shape[1:2], leaf.shape[3])
        for leaf in (trajectory.x, trajectory.velocity)
    )
    t, width = jnp.cumsum(step_sizes) - step_sizes, jnp.zeros_like(step_sizes)
    if time == "geodesic":
        remaining = jnp.cumprod(1 - step_sizes)  # 1 - s after each step
        before = jnp.concatenate([jnp.ones(1, remaining.dtype), remaining[:-1]])
        t, width = 1 - before, before - remaining
        velocity = velocity / before[None, :, None]  # dx/ds = v dt/ds, constant over the segment
    t, width = (jnp.broadcast_to(leaf, (clouds * n, leaf.shape[0])) for leaf in (t, width))
    dtype = x.dtype if dtype is None else dtype
    return Pool(x.astype(dtype), velocity.astype(dtype), t, width)


def from_pairs(x0: Float[Array, "rows d"], x1: Float[Array, "rows d"]) -> Pool:
    """A pool of straight paths from ``x0_i`` to ``x1_i`` in time 0 to 1: flow matching's rows.

    Source: Lipman et al. 2023, arXiv:2210.02747; with optimal pairs Tong et al. 2024,
    arXiv:2302.00482.

    Raises:
      ValueError: ``x0`` and ``x1`` of different shapes.
    """
    check_shape("x1", x1, x0.shape, "x0")
    zeros = jnp.zeros((x0.shape[0], 1), widened(x0.dtype))
    start, velocity = pairs.straight(x0, x1, zeros[:, 0])
    start, velocity = (leaf.astype(x0.dtype) for leaf in (start, velocity))
    return Pool(start[:, None], velocity[:, None], zeros, zeros + 1)


def sample(
    pool: Pool,
    key: PRNGKey,
    batch_size: int,
    power: ScalarLike = 1.0,
    start: ScalarLike = 0.0,
    stop: ScalarLike = 1.0,
) -> Rows:
    """Rows drawn with replacement, for use inside a jitted step.

    Args:
      pool: from :func:`build` or :func:`from_pairs`.
      key: PRNG key.
      batch_size: rows to draw.
      power: in geodesic time a row lies at u^power of its path's time, u uniform in [0, 1).
        Above 1 more rows are early ones, where the paths to different modes part and the
        field is hardest to learn. In flow time every stored state is as likely as any other.
      start: share of a path's time before which no row lies; u^power then counts from there.
      stop: share of a path's time after which no row lies. Both are of no effect in flow time.

    Raises:
      ValueError: batch_size < 1; outside a trace also power <= 0, or not 0 <= start < stop <= 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    _inputs.check_positive("power", power)
    traced = any(isinstance(share, jax.core.Tracer) for share in (start, stop))
    if not traced and not 0 <= start < stop <= 1:
        raise ValueError(f"start is {start} and stop is {stop}; wanted 0 <= start < stop <= 1")
    key_row, key_time = jax.random.split(key)
    row = jax.random.randint(key_row, (batch_size,), 0, pool.x.shape[0])
    u = jax.random.uniform(key_time, (batch_size,), pool.t.dtype)
    starts, widths = pool.t[row], pool.width[row]
    drawn = (starts[:, -1] + widths[:, -1]) * (start + (stop - start) * u**power)
    segment = jnp.sum(starts <= drawn[:, None], axis=1) - 1
    stored = (u * starts.shape[1]).astype(segment.dtype)
    k = jnp.where(jnp.any(widths > 0, axis=1), segment, stored)
    return _on_segments(pool, row, k, drawn)


def at(pool: Pool, row: Int[Array, "batch"], t: Float[Array, "batch"]) -> Rows:
    """Where the paths ``row`` are at times t in [0, 1], and the velocity they arrive with.

    The pool is one in geodesic time: in flow time a path is known at its stored states alone, and
    the result is the last one before t.

    Raises:
      ValueError: ``row`` and ``t`` of different shapes.
    """
    check_shape("t", t, jnp.shape(row), "one time for each row")
    before = jnp.sum(pool.t[row] < t[:, None], axis=1)
    return _on_segments(pool, row, jnp.maximum(before - 1, 0), t)


def _on_segments(
    pool: Pool, row: Int[Array, "batch"], k: Int[Array, "batch"], t: Float[Array, "batch"]
) -> Rows:
    """Paths ``row`` at times t, which are of their segments k."""
    begin, width = pool.t[row, k], pool.width[row, k]
    elapsed = jnp.clip(t - begin, 0, width)  # 0 in flow time
    x, velocity = (leaf[row, k].astype(t.dtype) for leaf in (pool.x, pool.velocity))
    return Rows(x + elapsed[:, None] * velocity, begin + elapsed, velocity)


def abstract(rows: int, steps: int, dim: int) -> Any:
    """Shapes of a :class:`Pool` in the default precision, without its memory, to restore one."""
    array, times = ((rows, steps, dim), (rows, steps))
    shapes, dtype = (array, array, times, times), jnp.zeros(()).dtype
    return Pool(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))  # type: ignore


def abstract_info(clouds: int, steps: int) -> Any:
    """Shapes of the :class:`PoolInfo` beside it."""
    real, count = jnp.zeros(()).dtype, jnp.asarray(0).dtype
    dtypes = (jnp.bool_, real, real, count)
    return PoolInfo(*(jax.ShapeDtypeStruct((clouds, steps), dtype) for dtype in dtypes))  # type: ignore


def summary(info: PoolInfo) -> dict[str, float | int | list[float]]:
    """A pool's certificates in numbers; neighbours are the mean of each step of the flow."""
    # On the host, in float64: means of arrays that a checkpoint brought back onto the device would
    # be taken there, in its precision, and a resumed run would end with other last digits.
    error, neighbours, iterations = (np.asarray(leaf, np.float64) for leaf in info[1:])
    return {
        "solves": int(np.size(info.converged)),
        "unconverged": int(np.sum(~np.asarray(info.converged))),
        "worst_marginal_error": float(np.max(error)),
        "mean_iterations": float(np.mean(iterations)),
        "neighbours": np.mean(neighbours, axis=0).tolist(),
    }


def horizon(step_sizes: Array | np.ndarray | Sequence, time: str) -> float:
    """The time at which a field trained on such a pool ends: 1, or the sum of the steps.

    Raises:
      ValueError: unknown time, or steps that :func:`sinkflow.flow.check_step_sizes` refuses.
    """
    _check_time(time)
    steps = np.asarray(flow.check_step_sizes(step_sizes), np.float64)
    return 1.0 if time == "geodesic" else float(np.sum(steps))
