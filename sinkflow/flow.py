"""Particle flow: explicit Euler steps along the Sinkhorn velocity (NSGF, particles)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.divergence import sinkhorn_velocity
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike


class FlowState(NamedTuple):
    """What the next step needs: particles, their flow time, and warm potentials."""

    x: Float[Array, "n d"]
    t: Scalar
    xy: Float[Array, "m"]
    xx: Float[Array, "n"]


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
    zero = jnp.zeros((), x.dtype)
    return FlowState(x, zero, jnp.zeros(y.shape[0], x.dtype), jnp.zeros(x.shape[0], x.dtype))


def step(
    state: FlowState,
    y: Float[Array, "m d"],
    *,
    epsilon: ScalarLike,
    step_size: ScalarLike,
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
) -> tuple[FlowState, FlowInfo]:
    """One Euler step x + step_size v(x) of the empirical Sinkhorn flow towards ``y``.

    Args:
      state: from :func:`init` or the last step.
      y: target particles [length].
      epsilon: entropic regularisation [length^2].
      step_size: [flow time]; 1 moves every particle by its whole velocity.
      threshold: L1 marginal error [mass, total 1] of each solve.
      max_iterations: cap on each solve's iterations.

    Source:
      arXiv:2401.14069, algorithm 1, inner loop.
    """
    velocity, info = sinkhorn_velocity(
        state.x,
        y,
        epsilon,
        xy_init=state.xy,
        xx_init=state.xx,
        threshold=threshold,
        max_iterations=max_iterations,
    )
    step_size = jnp.asarray(step_size, velocity.dtype)
    moved = FlowState(state.x + step_size * velocity, state.t + step_size, info.xy.g, info.xx.g)
    iterations = info.xy.num_iterations + info.xx.num_iterations
    seen = FlowInfo(velocity, info.converged, info.marginal_error, info.neighbours, iterations)
    return moved, seen


@jax.jit
def run(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    step_sizes: Float[Array, "steps"],
    *,
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
) -> tuple[FlowState, Trajectory, FlowInfo]:
    """The whole flow as one program, potentials warm-started from step to step.

    Args:
      x: source particles [length].
      y: target particles [length].
      epsilon: entropic regularisation [length^2].
      step_sizes: one for each step [flow time]; see :func:`step_sizes`.
      threshold: L1 marginal error [mass, total 1] of each solve.
      max_iterations: cap on each solve's iterations.

    Returns:
      The last state, the :class:`Trajectory` of the states that velocities were taken
      at, and the :class:`FlowInfo` with a leading steps axis.
    """
    advance = functools.partial(
        step, epsilon=epsilon, threshold=threshold, max_iterations=max_iterations
    )

    def body(state, step_size):
        moved, info = advance(state, y, step_size=step_size)
        return moved, (Trajectory(state.x, state.t, info.velocity), info)

    step_sizes = jnp.asarray(step_sizes, x.dtype)
    state, (trajectory, info) = jax.lax.scan(body, init(x, y), step_sizes)
    return state, trajectory, info


def step_sizes(step_size: float, num_steps: int, *, full_last: bool = False) -> Array:
    """Equal steps [flow time]; ``full_last`` makes the last one 1: x + v, the target itself.

    Raises:
      ValueError: step_size outside (0, 1] or num_steps < 1.
    """
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size is {step_size}; a step of the flow is in (0, 1]")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    sizes = jnp.full(num_steps, step_size)
    return sizes.at[-1].set(1.0) if full_last else sizes
