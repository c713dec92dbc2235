"""Particle flow: explicit Euler steps along the Sinkhorn velocity (NSGF, particles)."""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot import _inputs, _loops
from sinkflow.ot._inputs import check_limits, check_problem
from sinkflow.ot.divergence import VelocityInfo, sinkhorn_velocity
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike, widened

__all__ = [
    "FlowInfo",
    "FlowState",
    "Trajectory",
    "Warm",
    "check_step_sizes",
    "init",
    "run",
    "step",
    "step_sizes",
]


class Warm(NamedTuple):
    """Where the next solve starts: a plain prediction, corrected by what the last one missed."""

    guess: Float[Array, "k"]
    plain: Float[Array, "k"]


class FlowState(NamedTuple):
    """What the next step needs: particles, their flow time, and warm potentials."""

    x: Float[Array, "n d"]
    t: Scalar
    xy: Warm
    xx: Warm


class FlowInfo(NamedTuple):
    """What a person wants to see of a step: velocity and the certificate of its solves."""

    velocity: Float[Array, "n d"]
    converged: Bool[Array, ""]
    marginal_error: Scalar
    neighbours: Scalar
    num_iterations: Int[Array, ""]


class Trajectory(NamedTuple):
    """States x_k, their flow times t_k and velocities v_k, k = 0 .. num_steps - 1."""

    x: Float[Array, "steps n d"]
    t: Float[Array, "steps"]
    velocity: Float[Array, "steps n d"]


def init(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> FlowState:
    """State at flow time 0. Potentials start at zero; the first solve anneals from there."""
    x, y = _inputs.as_clouds(x, y)
    zero = jnp.zeros((), x.dtype)
    xy, xx = (jnp.zeros(cloud.shape[0], x.dtype) for cloud in (y, x))
    return FlowState(x, zero, Warm(xy, xy), Warm(xx, xx))


def step(
    state: FlowState,
    y: Float[Array, "m d"],
    *,
    epsilon: ScalarLike,
    step_size: ScalarLike,
    limits: Limits = Limits(),
    independent_self: bool = False,
) -> tuple[FlowState, FlowInfo]:
    """One Euler step x + step_size v(x) of the empirical Sinkhorn flow towards ``y``.

    Args:
      state: from :func:`init` or the last step.
      y: target particles [length].
      epsilon: entropic regularisation [length^2].
      step_size: [flow time]; 1 moves every particle by its whole velocity.
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.
      independent_self: flow two clouds, the halves of ``x`` towards those of ``y``, each the
        self reference of the other: unbiased in high dimension (arXiv:2605.11755).

    Raises:
      ValueError: an odd number of particles or targets with ``independent_self``.

    Source:
      arXiv:2401.14069, algorithm 1, inner loop.
    """
    if independent_self:
        velocity, info = _halves_velocity(state, y, epsilon, limits)
    else:
        velocity, info = sinkhorn_velocity(
            state.x, y, epsilon, xy_init=state.xy.guess, xx_init=state.xx.guess, limits=limits
        )
    step_size = check_step_sizes(jnp.reshape(step_size, (1,)))[0].astype(velocity.dtype)
    first, left = state.t == 0, 1 - step_size
    moved = FlowState(
        state.x + step_size * velocity,
        state.t + step_size,
        _predict(state.xy, info.xy.g, left, left**2, first),
        _predict(state.xx, info.xx.g, 1.0, left, first),
    )
    iterations = info.xy.num_iterations + info.xx.num_iterations
    seen = FlowInfo(velocity, info.converged, info.marginal_error, info.neighbours, iterations)
    return moved, seen


def _predict(
    warm: Warm,
    solved: Float[Array, "k"],
    scale: float | Scalar,
    damping: Scalar,
    first: Bool[Array, ""],
) -> Warm:
    """The potential after a step: ``scale`` times this one, plus what that missed last time.

    Particles that go the share ``step_size`` of their way to a fixed target, as optimal transport
    moves them, leave the target's potential g (1 - step_size) times as large: with T = grad phi
    the optimal map, g(y) = |y|^2 / 2 - phi*(y), and phi* becomes (1 - step_size) phi* + step_size
    |y|^2 / 2. Entropy, and velocities that are not those of optimal transport, make the rest.
    """
    plain = scale * solved
    missed = jnp.where(first, 0.0, solved - warm.plain)
    return Warm(plain + damping * missed, plain)


def _halves_velocity(
    state: FlowState, y: Float[Array, "m d"], epsilon: ScalarLike, limits: Limits
) -> tuple[Float[Array, "n d"], VelocityInfo]:
    """Velocities of two clouds that are each other's self reference, certificates merged."""
    if state.x.shape[0] % 2 or y.shape[0] % 2:
        raise ValueError(
            f"x has {state.x.shape[0]} and y {y.shape[0]} points; halves need even numbers"
        )

    def halves(leaf: Array) -> Array:
        return leaf.reshape(2, -1, *leaf.shape[1:])

    def solve(x: Array, y: Array, other: Array, xy: Array, xx: Array) -> tuple[Array, VelocityInfo]:
        inits = {"xy_init": xy, "xx_init": xx}
        return sinkhorn_velocity(x, y, epsilon, self_cloud=other, **inits, limits=limits)

    x = halves(state.x)
    velocity, info = jax.vmap(solve)(
        x, halves(y), x[::-1], halves(state.xy.guess), halves(state.xx.guess)
    )
    merged = info._replace(
        converged=jnp.all(info.converged),
        marginal_error=jnp.max(info.marginal_error),
        neighbours=jnp.mean(info.neighbours),
        xy=_merge(info.xy),
        xx=_merge(info.xx),
    )
    return velocity.reshape(state.x.shape), merged


def _merge(solves: SinkhornOutput) -> SinkhornOutput:
    """Potentials of two solves end to end, and their iterations together."""
    return solves._replace(g=solves.g.reshape(-1), num_iterations=jnp.sum(solves.num_iterations))


def run(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    step_sizes: Float[Array, "steps"],
    *,
    limits: Limits = Limits(),
    independent_self: bool = False,
) -> tuple[FlowState, Trajectory, FlowInfo]:
    """The whole flow as one program, potentials warm-started from step to step.

    Args:
      x: source particles [length].
      y: target particles [length].
      epsilon: entropic regularisation [length^2].
      step_sizes: one for each step [flow time]; see :func:`step_sizes`.
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.
      independent_self: see :func:`step`. Static.

    Returns:
      The last state, the :class:`Trajectory` of the states that velocities were taken
      at, and the :class:`FlowInfo` with a leading steps axis.

    Raises:
      ValueError: wrong shapes; outside a trace also epsilon or threshold <= 0 and steps outside
        (0, 1].

    Numerics:
      Particles of a dtype below float32 are moved in float32, and returned in it.
    """
    x, y, epsilon, *_ = check_problem(x, y, epsilon, None, None)
    limits = check_limits(limits, x.dtype)
    step_sizes = check_step_sizes(step_sizes)
    return _run(x, y, epsilon, step_sizes, *limits, independent_self)


@functools.partial(jax.jit, static_argnames=("storage", "independent_self"))
def _run(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: Scalar,
    step_sizes: Float[Array, "steps"],
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
    independent_self: bool,
) -> tuple[FlowState, Trajectory, FlowInfo]:
    limits = Limits(threshold, max_iterations, storage)
    advance = functools.partial(
        step, epsilon=epsilon, limits=limits, independent_self=independent_self
    )

    def body(state: FlowState, step_size: Scalar) -> tuple[FlowState, tuple[Trajectory, FlowInfo]]:
        moved, info = advance(state, y, step_size=step_size)
        return moved, (Trajectory(state.x, state.t, info.velocity), info)

    step_sizes = step_sizes.astype(x.dtype)
    start = _loops.varying_with(init(x, y), (x, y, epsilon, step_sizes, threshold, max_iterations))
    state, (trajectory, info) = jax.lax.scan(body, start, step_sizes)
    return state, trajectory, info


def check_step_sizes(step_sizes: Array | np.ndarray | Sequence) -> Array:
    """Steps of a flow [flow time] as a vector, checked; of traced ones only shape and dtype.

    Args:
      step_sizes: one number for each step, in an array or a list.

    Returns:
      The steps [steps] in their own dtype from float32 up, else in the default one: times are
      sums of them.

    Raises:
      ValueError: no numbers, none at all, another shape, or outside a trace a step that is not
        in (0, 1].
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(step_sizes))
    try:
        sizes = jnp.asarray(step_sizes) if traced else np.asarray(step_sizes)
    except (TypeError, ValueError):  # rows of different lengths, for one
        raise ValueError(f"step_sizes is {step_sizes!r}; give one number for each step") from None
    if sizes.ndim != 1 or sizes.size == 0:
        raise ValueError(
            f"step_sizes has shape {sizes.shape}; give one number for each step, [steps], and at "
            "least one step"
        )
    if not any(jnp.issubdtype(sizes.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"step_sizes has dtype {sizes.dtype}; steps of the flow are real numbers")
    # Traced or not, the values that are checked are those that are used.
    sizes = sizes.astype(widened(sizes.dtype))
    if not traced and not np.all((sizes > 0) & (sizes <= 1)):
        raise ValueError(f"step_sizes is {sizes}; steps of the flow lie in (0, 1]")
    return jnp.asarray(sizes)


def step_sizes(step_size: float | int, num_steps: int, *, full_last: bool = False) -> Array:
    """Equal steps [flow time]; ``full_last`` makes the last one 1: x + v, the target itself.

    Raises:
      ValueError: step_size outside (0, 1], or num_steps no whole number from 1 up.
    """
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size is {step_size}; a step of the flow is in (0, 1]")
    try:
        count = operator.index(num_steps)
    except TypeError:
        raise ValueError(f"num_steps is {num_steps}; it must be a whole number") from None
    if count < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    sizes = jnp.full(count, step_size, float)
    return sizes.at[-1].set(1.0) if full_last else sizes
