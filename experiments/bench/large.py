"""One solve of very many points, timed: ours, and a rival's with our certificate."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.peers import flash
from experiments.harness.settings import require_finite
from sinkflow import Limits, SinkhornOutput, sinkhorn, sinkhorn_velocity
from sinkflow.types import Array

# No L1 error is above 2: with this threshold a call compiles, anneals and stops.
ANY_ERROR = 3.0


class Solved(NamedTuple):
    """What a call took, what certifies its solves by name, and what else is recorded of it."""

    seconds: float
    solves: dict[str, SinkhornOutput]
    others: dict[str, Any]


def solver(
    work: str, library: str, dim: int, devices: int, limits: Limits
) -> Callable[..., Solved]:
    """What is timed: (x, y, epsilon, whether it is the first call) to :class:`Solved`.

    Raises:
      ValueError: a rival that does not do this.
    """
    if library == "sinkflow":
        return functools.partial(_velocity if work == "velocity" else _coupling, limits)
    if (work, dim, devices) != ("coupling", 3, 1):
        raise ValueError(
            f"library is {library}, which gives couplings of dim 3 on one device; work is "
            f"{work}, dim {dim}, devices {devices}"
        )
    return functools.partial(_coupling_of_rival, flash.multiscale(), limits)


def _velocity(limits: Limits, x: Array, y: Array, epsilon: Array, first: bool) -> Solved:
    limits = limits._replace(threshold=ANY_ERROR) if first else limits
    begin = time.perf_counter()
    found = sinkhorn_velocity(x, y, epsilon, limits=limits)
    velocity, info = jax.block_until_ready(found)
    seconds = time.perf_counter() - begin
    require_finite("velocity", velocity)
    speed = float(np.mean(np.linalg.norm(np.asarray(velocity), axis=1)))
    solves = {"cloud to target": info.xy, "cloud to itself": info.xx}
    return Solved(seconds, solves, {"mean_speed": speed})


def _coupling(limits: Limits, x: Array, y: Array, epsilon: Array, first: bool) -> Solved:
    limits = limits._replace(threshold=ANY_ERROR) if first else limits
    begin = time.perf_counter()
    out = jax.block_until_ready(sinkhorn(x, y, epsilon, limits=limits))
    seconds = time.perf_counter() - begin
    return Solved(seconds, {"cloud to target": out}, {"value": float(out.value)})


def _coupling_of_rival(
    rival: Callable, limits: Limits, x: Array, y: Array, epsilon: Array, first: bool
) -> Solved:
    """The rival's potential of the target, and the plan that this one stands for, certified.

    Raises:
      ValueError: the potential is so far from a plan that our solver drops it and starts anew: the
        certificate would be of a plan of ours.
    """
    g, seconds, said = rival(x, y, float(epsilon), float(limits.threshold))
    if first:
        return Solved(seconds, {}, {})
    measured = limits._replace(max_iterations=0)
    out = sinkhorn(x, y, epsilon, g_init=jnp.asarray(g), limits=measured)
    if out.num_iterations > 0:
        raise ValueError(f"the rival's plan misses its marginals by half or more; it says: {said}")
    others = {"value": float(out.value), "rival_says": said}
    return Solved(seconds, {"cloud to target": out}, others)
