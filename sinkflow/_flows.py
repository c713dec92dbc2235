"""Flows of many clouds, shared by the devices and the processes that there are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow import flow, parallel
from sinkflow.ot.limits import Limits, Sharded, Storage
from sinkflow.types import Array, Float, Int, ScalarLike


def rounds(
    num_clouds: int, clouds_per_call: int, storage: Storage
) -> list[Int[np.ndarray, "clouds"]]:
    """Numbers of the clouds that this process simulates, round by round.

    In a round every device of every process has ``clouds_per_call`` clouds, or fewer, if that is
    enough for one round. Where the clouds do not fill the last round, the last cloud is simulated
    several times; :func:`together` drops what is too much.
    """
    devices = _sharing(storage)
    own = devices * min(clouds_per_call, -(-num_clouds // (devices * jax.process_count())))
    everyone = np.arange(own) + own * jax.process_index()
    firsts = range(0, num_clouds, own * jax.process_count())
    return [np.minimum(first + everyone, num_clouds - 1) for first in firsts]


def _sharing(storage: Storage) -> int:
    """Local devices that share the clouds: one where each solve, or the user's mesh, has all."""
    meshed = not jax.sharding.get_abstract_mesh().empty
    return 1 if meshed or isinstance(storage, Sharded) else jax.local_device_count()


def together(parts: list[Any], num_clouds: int) -> Any:
    """What all processes found in all rounds, in the order of the clouds.

    Args:
      parts: of this process, a tree of arrays for each round. The last tree holds one flag or more
        of each cloud [clouds, ...]; other leaves have equally many rows for each cloud.
      num_clouds: clouds that were asked for.
    """
    if jax.process_count() == 1:
        whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    else:
        from jax.experimental import multihost_utils

        stacked = jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *parts)
        found = multihost_utils.process_allgather(stacked)  # [processes, rounds, rows, ...]
        whole = jax.tree.map(
            lambda leaf: jnp.asarray(np.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[3:])), found
        )
    simulated = len(jax.tree.leaves(whole)[-1])
    if simulated == num_clouds:
        return whole
    return jax.tree.map(lambda leaf: leaf[: len(leaf) // simulated * num_clouds], whole)


def simulate(
    x: Float[Array, "clouds n d"],
    y: Float[Array, "clouds m d"],
    epsilon: ScalarLike,
    step_sizes: Float[Array, "steps"],
    limits: Limits,
    independent_self: bool,
) -> tuple[flow.Trajectory, tuple[Array, ...]]:
    """Trajectories [clouds, steps, n, d] and certificates, on the device that had the clouds.

    The local devices share the clouds. Each goes its own way, without waiting for the others.
    """
    numbers, static = (epsilon, step_sizes, *limits[:2]), (limits.storage, independent_self)
    if _sharing(limits.storage) == 1:
        return _simulate((x, y), numbers, *static)
    clouds = parallel.shard((x, y))
    found = _spread(clouds, parallel.replicate(jax.tree.map(jnp.asarray, numbers)), *static)
    return jax.device_put(found, jax.local_devices()[0])


STATIC = ("storage", "independent_self")


@functools.partial(jax.jit, static_argnames=STATIC)
def _simulate(clouds: Any, numbers: Any, storage: Storage, independent_self: bool) -> Any:
    epsilon, step_sizes, threshold, max_iterations = numbers
    limits = Limits(threshold, max_iterations, storage)

    def one(x: Array, y: Array) -> tuple[flow.Trajectory, tuple[Array, ...]]:
        _, trajectory, info = flow.run(
            x,
            y,
            epsilon,
            step_sizes,
            limits=limits,
            independent_self=independent_self,
        )
        return trajectory, info[1:]

    return jax.vmap(one)(*clouds)


@functools.partial(jax.jit, static_argnames=STATIC)
def _spread(clouds: Any, numbers: Any, storage: Storage, independent_self: bool) -> Any:
    own = functools.partial(_simulate, storage=storage, independent_self=independent_self)
    return parallel.spread(own, clouds, numbers)
